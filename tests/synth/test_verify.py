"""The step Verify: what passes stays, what does not is dropped with its verdict, what cannot be judged fails."""

from __future__ import annotations

import json
import shutil

import duckdb
import pytest

from factory.engine.errors import FactoryError
from factory.sandbox.selftest import require_isolation
from factory.verify import code
from tests.engine.build import build, check_law, content, make

ROWS = [("one", "e"), ("TWO", "o"), ("two", "e"), ("six", ""), ("o", "o")]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": r, "text": "", "response": r, "gold": e}) + "\n" for r, e in ROWS))
    return {"use": "ingest.JsonLines", "glob": str(path), "columns": ["response", "gold"]}


def verify(**options):
    return {"use": "verify.Verify", "check": "tests.verify.verifiers:ends_with", "columns": ["ending=gold"], **options}


def test_what_does_not_pass_is_dropped_with_its_verdict(source, tmp_path):
    built = build(make(source, verify(values=["minimum=2"])), tmp_path / "runs")
    check_law(built)
    read = duckdb.sql
    assert read(f"select response, verdict_score from '{built.folder}/rows/*.parquet'").fetchall() == [("one", 1.0)]
    dropped = read(
        f"select response, reason, verdict_reason, verdict_score from '{built.folder}/dropped/*.parquet'"
    ).fetchall()
    assert dropped == [
        ("TWO", "not_ends_with", "not o", 0.0),
        ("two", "not_ends_with", "not e", 0.0),
        ("o", "not_ends_with", "short", 0.25),
    ]
    assert read(f"select id, error from '{built.folder}/failed/*.parquet'").fetchall() == [
        ("six", "the ending is empty")
    ]


def test_all_may_be_kept(source, tmp_path):
    step = verify(keep="all", name="ends", values=["exact=false"])
    built = build(make(source, step), tmp_path / "runs")
    check_law(built)
    rows = duckdb.sql(f"select response, ends, ends_confidence from '{built.folder}/rows/*.parquet'").fetchall()
    assert rows == [("one", True, 1.0), ("TWO", True, 1.0), ("two", False, 1.0), ("o", True, 1.0)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"check": "tests.verify.verifiers:end_with"}, "no function"),
        ({"columns": ["ending:gold"]}, "write parameter="),
        ({"values": ["minimun=3"]}, "did you mean 'minimum'"),
        ({"values": ["minimum=many"]}, "expected int"),
        ({"columns": ["ending=golden"]}, "golden"),
    ],
)
def test_mistakes_show_before_any_work(source, tmp_path, options, told):
    with pytest.raises(FactoryError, match=f"(?s)test.toml: step 2.*{told}"):
        build(make(source, verify(**options)), tmp_path / "runs")


def test_an_edited_verifier_of_ones_own_makes_another_dataset(source, tmp_path, monkeypatch):
    mine = tmp_path / "mine_verifier.py"
    monkeypatch.syspath_prepend(tmp_path)
    body = "from factory.verify.check import Check\n\ndef mine(response, gold):\n    return Check(%s)\n"
    mine.write_text(body % "True")
    recipe = make(source, {"use": "verify.Verify", "check": "mine_verifier:mine"})
    assert build(recipe, tmp_path / "runs").counts["rows_kept"] == len(ROWS)
    mine.write_text(body % "False")
    with pytest.raises(FactoryError, match="the files that it names"):
        build(recipe, tmp_path / "runs")


def test_a_value_for_a_parameter_of_text_stays_text():
    import pyarrow as pa

    from factory.engine.step import Memo
    from factory.synth.verify import Verify

    for answer in ("18", "[1, 2]", "true"):
        step = Verify(check="mathematics:correct", values=(f"answer={answer}",))
        batch = pa.record_batch({"response": pa.array([f"The answer is {answer}.", "7"], pa.large_string())})
        made = step(batch, Memo(2))
        assert made.batch["verdict"].to_pylist() == [True, False] and made.errors.to_pylist() == [None, None]


def test_verdicts_that_may_differ_are_kept(source, tmp_path):
    lines = [{"id": str(n), "text": "", "response": str(n), "gold": "x" if n else ""} for n in range(100)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = make(source, verify(check="tests.verify.verifiers:by_lot", keep="all", cache=str(tmp_path / "kept")))
    first = build(recipe, tmp_path / "a", workers=2)
    check_law(first)
    assert first.counts["rows_failed"] == 1  # what cannot be judged is no verdict
    second = build(recipe, tmp_path / "b")
    assert content(first) == content(second) and first.key == second.key
    shutil.rmtree(tmp_path / "kept")
    assert content(build(recipe, tmp_path / "c")) != content(first)


def test_without_a_toolchain_what_was_judged_gives_the_same_bytes(tmp_path, monkeypatch):
    try:
        require_isolation(None)
    except FactoryError as error:
        pytest.skip(str(error))
    programs = ["def f(x):\n    return x + 1", "def f(x):\n    return x", "def f(x:", "no program at all"]
    lines = [{"id": str(n), "text": "", "response": one, "tests": "assert f(1) == 2"} for n, one in enumerate(programs)]
    (tmp_path / "programs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"use": "ingest.JsonLines", "glob": str(tmp_path / "programs.jsonl"), "columns": ["response", "tests"]}
    step = {"use": "verify.Verify", "check": "code:passes", "columns": ["tests=tests"]}
    recipe = make(source, {**step, "keep": "all"})
    first = build(recipe, tmp_path / "runs")
    found = [passed for (passed,) in duckdb.sql(f"select verdict from '{first.folder}/rows/*.parquet'").fetchall()]
    assert found == [True, False, False, False]
    bytes_ = content(first)
    for folder in (tmp_path / "runs").iterdir():
        if folder.name != ".answers":
            shutil.rmtree(folder)
    code._close()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(FactoryError):
        code.passes(programs[0], "assert f(1) == 3")
    assert content(build(recipe, tmp_path / "runs")) == bytes_
    # Another response has no verdict yet.
    (tmp_path / "programs.jsonl").write_text(json.dumps(lines[0] | {"response": "def f(x): return 2"}) + "\n")
    again = build(make(source, step, name="other"), tmp_path / "runs")
    assert (again.counts["rows_kept"], again.counts["rows_failed"]) == (0, 1)

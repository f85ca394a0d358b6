"""The step Verify: what passes stays, what does not is dropped with its verdict, what cannot be judged fails."""

from __future__ import annotations

import json

import duckdb
import pytest

from factory.engine.errors import FactoryError
from tests.engine.build import build, check_law, make

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
    rows = duckdb.sql(f"select response, ends from '{built.folder}/rows/*.parquet'").fetchall()
    assert rows == [("one", True), ("TWO", True), ("two", False), ("o", True)]


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

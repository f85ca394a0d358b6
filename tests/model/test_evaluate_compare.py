"""Several checkpoints held together: table, picture, conditions, and what was asked before is not asked again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import torch

from factory.engine.errors import FactoryError
from model.evaluate import compare as comparing
from model.evaluate import run as evaluating
from model.evaluate import stages
from model.evaluate.compare import failures, main, parse
from model.evaluate.intervals import by_problem, difference, estimate
from tests.model.adding import adder, write_problems

STEPS = {"base": 30, "sft": 80, "noisy": 35, "dpo": 130}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Checkpoints that know ever more sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("stages")
    yield {name: adder(root / name, steps) for name, steps in STEPS.items()}
    torch.set_num_threads(threads)


@pytest.fixture
def words(folders: dict[str, Path], tmp_path: Path) -> list[str]:
    data = write_problems(tmp_path / "sums.parquet")
    given = [f"{label}={folder}" for label, folder in folders.items()]
    options = [f"data={data}", "verifier=mathematics:correct", 'columns={answer = "gold"}', "max_new_tokens=4"]
    return [*given, "controls=noisy", *options, f"out={tmp_path / 'out'}"]


def test_the_whole_comparison(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conditions = "sft>=base+0.10, sft>noisy, dpo>=sft-.03, greedy:dpo>0.5, base<sft, T=1:base<=dpo"
    assert main([*words, f"assert={conditions}"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert f"holds: {conditions.replace(' ', '').replace(',', ', ')}" in lines
    out = tmp_path / "out"
    assert (out / "accuracy.png").read_bytes()[:4] == b"\x89PNG"

    rows = {(row["label"], row["measure"]): row for row in pq.read_table(out / "accuracy.parquet").to_pylist()}
    assert list(dict.fromkeys(label for label, _ in rows)) == list(STEPS)
    counted = duckdb.sql(
        f"select model, subtask, avg(score), count(*) from '{out}/*/results.parquet' group by all"
    ).fetchall()
    assert len(counted) == len(rows) == 8
    for label, measure, mean, count in counted:
        row = rows[label, measure]
        assert row["accuracy"] == pytest.approx(mean) and row["answers"] == count and row["problems"] == 100
    scores = {}
    for label in STEPS:
        table = pq.read_table(out / label / "results.parquet", filters=[("subtask", "==", "T=1")])
        scores[label] = table["score"].to_pylist(), table["id"].to_pylist()
        row = rows[label, "T=1"]
        assert (row["accuracy"], row["low"], row["high"]) == pytest.approx(estimate(*scores[label]))
    for label, better, than in (("sft", "sft", "base"), ("noisy", "sft", "noisy"), ("dpo", "dpo", "sft")):
        row = rows[label, "T=1"]
        gain = difference(by_problem(*scores[better]), by_problem(*scores[than]))
        assert (row["better"], row["than"], row["control"]) == (better, than, label == "noisy")
        found = (row["difference"], row["difference_low"], row["difference_high"], row["p"])
        assert found == pytest.approx(gain)
        (line,) = [line for line in lines if f"{better} - {than}: {gain.value:+.3f}" in line]
        assert line.split()[0] == label and line.startswith("  ") == (label == "noisy")
    assert rows["base", "T=1"]["difference"] is None
    marks = {line.split()[0]: line for line in lines if re.search("[●○]", line)}
    assert list(marks) == list(STEPS) and "○" in marks["noisy"] and marks["sft"].index("●") < marks["dpo"].index("●")
    assert max(map(len, lines)) <= 120

    results = {label: (out / label / "results.parquet").read_bytes() for label in STEPS}
    assert main(words) == 0
    again = capsys.readouterr().out
    assert again.count("asked before") == 4
    assert re.sub(r".*(: asked before|answers in .*)\n|holds.*\n", "", printed) == re.sub(
        r".*: asked before\n", "", again
    )
    assert all((out / label / "results.parquet").read_bytes() == held for label, held in results.items())


def test_only_what_was_asked_in_the_same_way_is_not_asked_again(
    words: list[str], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A killed comparison goes on; other weights, other options and other data are asked anew."""

    def asked_before(*given: str) -> int:
        assert main(list(given)) == 0
        return capsys.readouterr().out.count("asked before")

    first = [word for word in words if not word.startswith(("noisy=", "dpo=", "controls="))]
    assert asked_before(*first) == 0
    assert asked_before(*words) == 2, "two more stages"
    assert asked_before(*words, "problems=20") == 0
    assert asked_before(*words, "samples=1") == 0
    assert asked_before(*words, "samples=1", "batch_tokens=500") == 4, "how they are put together decides no answer"
    words = [*words, "samples=1"]
    copied = tmp_path / "copied"
    shutil.copytree(folders["base"], copied)
    moved = [f"base={copied}" if word.startswith("base=") else word for word in words]
    assert asked_before(*moved) == 4, "where the same weights lie makes no difference"
    shutil.copy(folders["sft"] / "model.safetensors", copied / "model.safetensors")
    assert asked_before(*moved) == 3
    data = tmp_path / "sums.parquet"
    pq.write_table(pq.read_table(data).slice(0, 50), data)
    assert asked_before(*moved) == 0
    whole = tmp_path / "out"
    read = [f"{label}={whole / label}" for label in ("base", "sft")]
    assert main([*read, f"out={tmp_path / 'other'}"]) == 0
    assert "50 problems" in capsys.readouterr().out


@pytest.mark.parametrize("place", [(evaluating, "write_atomic"), (evaluating.results, "write")], ids=["last", "first"])
def test_killed_between_its_two_files_an_evaluation_is_made_anew(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Any
) -> None:
    """Results of other options are never taken for those that the folder told of before."""
    words = [word for word in words if not word.startswith(("noisy=", "dpo=", "controls="))]
    assert main(words) == 0
    before = pq.read_table(tmp_path / "out/base/results.parquet").drop_columns("seconds")

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*place, kill)
        main([*words, "samples=1"])
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out.count("asked before") == 1
    assert pq.read_table(tmp_path / "out/base/results.parquet").drop_columns("seconds") == before


def test_what_does_not_hold_is_one_line_and_exit_code_1(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given = [word for word in words if not word.startswith(("noisy=", "dpo=", "controls="))]
    assert main([*given, "assert=sft>base, base>=sft+0.1", "assert=greedy:base>sft"]) == 1
    captured = capsys.readouterr()
    one, other = captured.err.splitlines()
    assert re.fullmatch(
        r"failed: base>=sft\+0\.1 does not hold at T=1: base is 0\.\d{3}, the limit (0\.\d{3}) \(sft 0\.\d{3}\+0\.1\)",
        one,
    )
    assert other.startswith("failed: greedy:base>sft does not hold at greedy: base is 0.")
    assert "difference, T=1" in captured.out and "holds" not in captured.out


def test_conditions_at_the_limit() -> None:
    """0.1 + 0.2 is a little above 0.3: rounding decides nothing."""
    rows = [
        stages.Row(label, False, "greedy", 10, 10, share, 0, 1) for label, share in (("a", 0.1), ("b", 0.3), ("c", 0.3))
    ]
    held = ("b>=a+0.2", "a<=b-0.2", "b>=c", "b<=c", "a<b", "a>=0.1", "a<.2")
    assert failures(held, rows) == []
    broken = ("b>=a+0.21", "b>c", "c<b", "a>0.1", "a>=b", "b<=a+.1")
    assert [line.split()[0] for line in failures(broken, rows)] == list(broken)
    with pytest.raises(FactoryError, match="a has no 'T=1'; there is greedy"):
        failures(["T=1:a>b"], rows)


def test_wrong_words_are_one_line(
    words: list[str], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"base={folders['base']}"
    for given, message in (
        (["out=x"], "usage"),
        ([base, base], "there is another base"),
        ([base, "smaples=3"], "did you mean 'samples'?"),
        ([base, f"1x={folders['sft']}"], "write LABEL=FOLDER"),
        ([base, "sft"], "write LABEL=FOLDER"),
        ([base, "controls=noisy"], "controls: no 'noisy'"),
        ([base, "controls=base"], "'base' comes first"),
        ([base, "assert=base>>sft"], "write LABEL>=LABEL+0.1"),
        ([base, "assert=base>bse"], "did you mean 'base'?"),
        ([base, "batch_tokens=-1"], "must be a whole number above 0"),
        ([base, f"out={tmp_path}"], "give module:function"),
        ([base, "verifier=mathematics:correct", f"out={tmp_path}"], "give a dataset of the factory"),
        ([*words, "samples=many"], "verified.samples"),
    ):
        assert main(given) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert main([]) == 2 and main(["--help"]) == 0
    assert "LABEL>=LABEL+NUMBER" in capsys.readouterr().out


def test_other_problems_are_not_held_together(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [word for word in words if not word.startswith(("sft=", "noisy=", "dpo=", "controls="))]
    assert main(first) == 0
    fewer = [word for word in words if word.startswith(("dpo=", "data=", "verifier=", "columns=", "max_"))]
    assert main([f"base={tmp_path / 'out' / 'base'}", *fewer, "problems=30", f"out={tmp_path / 'fewer'}"]) == 2
    assert "dpo and base, greedy: 70 problems were asked of one model alone" in capsys.readouterr().err


def test_the_folder_has_the_labels_where_none_is_given(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_RUNS", "elsewhere")
    assert parse(words[:-1]).out == Path("elsewhere/evaluate/base-sft-noisy-dpo")
    assert comparing.parse(words).out == Path(words[-1].partition("=")[2])


def test_an_evaluation_that_has_not_ended_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match=r"no evaluation\.json"):
        stages.read("a", tmp_path)
    (tmp_path / "evaluation.json").write_text(json.dumps({"tasks": {"verified": {}}, "finished": []}))
    with pytest.raises(FactoryError, match=r"has not ended \(verified\): run it again"):
        stages.read("a", tmp_path)

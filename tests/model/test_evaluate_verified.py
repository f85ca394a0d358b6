"""Problems judged by a verifier: greedily and by sampling, as texts and as messages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from factory.engine.errors import FactoryError
from factory.verify.check import Check
from model.evaluate.__main__ import main
from model.evaluate.run import ask
from model.evaluate.task import build
from model.evaluate.verified import Verified
from model.generate import Generator
from model.sample import Sampling
from tests.model.adding import TEMPLATE, adder, problems, write_problems

CORRECT = "factory.verify.mathematics:correct"
COLUMNS = {"answer": "gold"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield adder(tmp_path_factory.mktemp("adder"), 80)
    torch.set_num_threads(threads)


def test_answers_are_those_of_the_model_and_scores_those_of_the_verifier(checkpoint: Path, tmp_path: Path) -> None:
    data = write_problems(tmp_path / "sums.parquet")
    task = Verified(data=str(data), verifier=CORRECT, columns=COLUMNS, max_new_tokens=4, samples=3, seed=7)
    generator = Generator.load(checkpoint)
    rows = list(ask(generator, task, "m"))
    asked = [question for question, _ in problems()]
    gold = {f"p{number}": answer for number, (_, answer) in enumerate(problems())}
    for subtask, sampling in (
        ("greedy", Sampling(tokens=4, temperature=0)),
        ("T=1", Sampling(tokens=4, samples=3, seed=7)),
    ):
        part = {(row["id"], row["sample"]): row for row in rows if row["subtask"] == subtask}
        assert len(part) == 100 * sampling.samples
        for number, completions in enumerate(generator.complete(asked, sampling)):
            for sample, completion in enumerate(completions):
                row = part[f"p{number}", sample]
                assert row["answer"] == completion.text and row["expected"] == [gold[row["id"]]]
                assert row["score"] == (completion.text == gold[row["id"]])
    scores = [row["score"] for row in rows]
    assert 0.1 < sum(scores) / len(scores) < 0.95, "some are right and some are wrong"
    few = dataclasses.replace(task, problems=2)
    assert [row["id"] for row in ask(generator, few, "m")].count("p1") == 4 and len(list(ask(generator, few, "m"))) == 8


def test_messages_go_through_the_chat_template(checkpoint: Path, tmp_path: Path) -> None:
    """A template that renders the very text of the prompts gives the very answers."""
    generator = Generator.load(checkpoint)
    plain = Verified(
        data=str(write_problems(tmp_path / "plain.parquet")), verifier=CORRECT, columns=COLUMNS, max_new_tokens=3
    )
    data = write_problems(tmp_path / "messages.parquet", messages=True)
    said = Verified(data=str(data), verifier=CORRECT, columns=COLUMNS, max_new_tokens=3)
    with pytest.raises(FactoryError, match="no chat template"):
        list(ask(generator, said, "m"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, "eos_token": "<|endoftext|>"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    generator = Generator.load(checkpoint)
    answers = [
        {key: row[key] for key in ("id", "sample", "subtask", "answer", "score")} for row in ask(generator, plain, "m")
    ]
    found = [
        {key: row[key] for key in ("id", "sample", "subtask", "answer", "score")} for row in ask(generator, said, "m")
    ]
    assert found == answers


def test_the_command_leaves_results_and_says_what_it_asked(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a dataset of the factory, here without ids: the rows' numbers are theirs."""
    folder = tmp_path / "sums@1"
    (folder / "rows").mkdir(parents=True)
    table = pq.read_table(write_problems(tmp_path / "sums.parquet")).drop_columns(["id"])
    shards = []
    for number, part in enumerate((table.slice(0, 60), table.slice(60))):
        pq.write_table(part, folder / f"rows/part-{number:07d}.parquet")
        shards.append({"path": f"rows/part-{number:07d}.parquet", "rows": part.num_rows})
    (folder / "manifest.json").write_text(json.dumps({"key": "k1", "rows": shards}))
    words = [str(checkpoint), "verified", f"data={folder}", f"verifier={CORRECT}", 'columns={answer = "gold"}']
    assert main([*words, "max_new_tokens=4", "temperature=0.5", f"out={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert "verified greedy" in printed and "verified T=0.5" in printed
    assert [line.split()[2] for line in printed.splitlines() if "verified " in line] == ["100", "100"]
    found = pq.read_table(tmp_path / "out" / "results.parquet")
    assert found.num_rows == 300 and set(found["id"].to_pylist()) == {str(number) for number in range(100)}
    first = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert first["finished"] == ["verified"] and first["tasks"]["verified"]["columns"] == COLUMNS


def test_problems_are_told_apart(checkpoint: Path, tmp_path: Path) -> None:
    """Without an id a row's number is its id; two rows with one id would count as one problem."""
    table = pq.read_table(write_problems(tmp_path / "sums.parquet"))
    ids = [None, "a", *table["id"].to_pylist()[2:]]
    given = {"verifier": CORRECT, "columns": COLUMNS, "max_new_tokens": 3, "samples": 0}
    for name, some in (("null", ids), ("twice", ["a", *ids[1:]])):
        pq.write_table(table.set_column(table.schema.get_field_index("id"), "id", [some]), tmp_path / f"{name}.parquet")
    rows = ask(Generator.load(checkpoint), Verified(data=str(tmp_path / "null.parquet"), **given), "m")
    assert [row["id"] for row in rows][:2] == ["0", "a"]
    with pytest.raises(FactoryError, match=r"twice\.parquet, row 1: another row has the id 'a' too: give each one"):
        list(ask(Generator.load(checkpoint), Verified(data=str(tmp_path / "twice.parquet"), **given), "m"))


def own(response: str, start: str = "1") -> Check:
    return Check(response.startswith(start))


def test_a_verifier_of_ones_own(checkpoint: Path, tmp_path: Path) -> None:
    data = write_problems(tmp_path / "sums.parquet")
    task = build("verified", {"data": str(data), "verifier": f"{__name__}:own", "max_new_tokens": 3, "samples": 0})
    rows = list(ask(Generator.load(checkpoint), task, "m"))
    assert {row["subtask"] for row in rows} == {"greedy"} and len(rows) == 100
    assert all(row["score"] == row["answer"].startswith("1") for row in rows)
    assert task.inputs()["libraries"] == {} and len(task.inputs()["code"]) == 32


def test_what_cannot_be_asked_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    data = write_problems(tmp_path / "sums.parquet")
    empty = pq.read_table(data).set_column(2, "gold", pa.array([""] * 100))
    pq.write_table(empty, tmp_path / "empty.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    generator = Generator.load(checkpoint)
    good = {"data": str(data), "verifier": CORRECT, "columns": COLUMNS, "max_new_tokens": 3}
    for change, message in (
        ({"data": ""}, "give a dataset of the factory"),
        ({"data": str(tmp_path / "nothing")}, "no such dataset"),
        ({"data": str(tmp_path)}, "is not a dataset, or its run has not finished"),
        ({"data": str(tmp_path / "text.parquet")}, "not a Parquet file"),
        ({"verifier": "mathematics"}, "give module:function"),
        ({"verifier": "mathematics:corect"}, "no function 'corect'"),
        ({"columns": {"anwser": "gold"}}, "did you mean 'answer'"),
        ({"columns": {"answer": "glod"}}, "did you mean 'gold'"),
        ({"samples": 0, "greedy": False}, "or be greedy"),
        ({"temperature": 0.0}, "a temperature above 0"),
        ({"problems": -1}, "problems = -1: must not be negative"),
        ({"data": str(tmp_path / "empty.parquet")}, "row p0: the reference answer is empty"),
        ({"max_new_tokens": 40}, "the model is made for 16"),
    ):
        with pytest.raises(FactoryError, match=message):
            list(ask(generator, build("verified", good | change), "m"))

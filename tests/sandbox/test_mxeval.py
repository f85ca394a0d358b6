"""Reference solutions of multilingual HumanEval and MBXP pass their tests in a box; broken variants of them do not."""

from __future__ import annotations

import pytest

from factory.engine.errors import FactoryError
from factory.sandbox.judge import Sandbox
from factory.sandbox.languages import language
from factory.sandbox.selftest import require_isolation
from tests.sandbox.mxeval import NAMES, exceptions, judge, problems, sample, variants

SAMPLE = dict.fromkeys(NAMES, 20) | {"kotlin": 3, "scala": 2, "java": 10, "cpp": 10}
"""So many of each: all in some minutes."""


@pytest.fixture(scope="module")
def sandbox():
    try:
        require_isolation(None)
    except FactoryError as error:
        pytest.skip(f"no box can be made here: {error}")
    with Sandbox(one_process=True) as opened:
        yield opened


def test_every_language_has_solutions(data):
    counts = {name: len(problems(data, name)) for name in NAMES}
    assert counts["python"] == 164 + 974
    assert min(counts.values()) >= 6
    assert sum(counts.values()) > 7000


def test_a_variant_differs_from_the_solution(data):
    for name in NAMES:
        for problem in sample(problems(data, name), 10):
            made = [text for _, text in variants(problem)]
            assert made and problem.solution not in made


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_solutions_pass_and_broken_ones_do_not(name, data, sandbox):
    if missing := language(name).missing():
        pytest.skip(missing)
    known = exceptions()
    sound = [problem for problem in sample(problems(data, name), SAMPLE[name]) if problem.id not in known]
    judged = [judge(sandbox, problem) for problem in sound]
    assert len(judged) > 1
    assert [one for one in judged if one.status != "passed"] == []
    assert [one for one in judged if not one.broken] == []


@pytest.mark.slow
def test_solutions_known_not_to_pass_do_not(data, sandbox):
    """The table of exceptions says what is: a sample of each language's."""
    known = exceptions()
    for name in ("javascript", "php", "python", "ruby", "typescript"):
        if not language(name).missing():
            wrong = [problem for problem in problems(data, name) if problem.id in known]
            assert wrong
            assert [p.id for p in sample(wrong, 5) if judge(sandbox, p, broken=False).status == "passed"] == []

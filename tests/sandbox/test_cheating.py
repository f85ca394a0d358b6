"""Programs that try to be judged right, and honest ones by unusual means."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from factory.sandbox.judge import Sandbox
from factory.sandbox.limits import Limits
from factory.sandbox.verdict import Call, Case, Task, Verdict

CHEATS = tomllib.loads(Path(__file__).with_name("cheats.toml").read_text())
TESTS = CHEATS.pop("tests")
HONEST = tomllib.loads(Path(__file__).with_name("honest.toml").read_text())
LIMITS = Limits(seconds=2, memory=256 << 20)
ADD = Task(language="python", program="def f(a, b): return a + b", tests=TESTS["add"], entry_point="f")


@pytest.fixture(scope="module")
def cheated(sandbox: Sandbox) -> dict[str, Verdict]:
    """All of them at once, beside each other."""
    tasks = []
    for row in CHEATS.values():
        tests = TESTS[row["tests"]]
        entry_point = "f" if "candidate" in tests else ""
        tasks.append(
            Task(language="python", program=row["program"], tests=tests, entry_point=entry_point, limits=LIMITS)
        )
    return dict(zip(CHEATS, sandbox.judge_all(tasks), strict=True))


@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_passes(cheated: dict[str, Verdict], name: str):
    verdict = cheated[name]
    assert verdict.status in ("failed", "timeout", "memory", "output_limit"), verdict
    assert verdict.tier == "A"


def test_the_sandbox_judges_on_after_them(sandbox: Sandbox, cheated: dict[str, Verdict]):
    assert sandbox.judge(ADD).passed


def test_what_takes_too_much_is_told_as_what_it_took(cheated: dict[str, Verdict]):
    assert cheated["loops"].status == cheated["sleeps"].status == cheated["never reads"].status == "timeout"
    assert cheated["memory without end"].status == "memory"
    assert cheated["output without end"].status == "output_limit"


@pytest.mark.parametrize("tests", sorted(TESTS.keys() - {"nothing", "helped"}))
def test_the_tests_of_the_cheats_pass_a_right_program(sandbox: Sandbox, tests: str):
    right = {
        "add": "def f(a, b): return a + b",
        "words": "def f(text): return text.split()",
        "close": "def f(x): return x ** 0.5",
        "count": "import collections\ndef f(text): return collections.Counter(text)",
        "each": "def f(a, b): return a + b",
        "raises": "def f(a, b):\n    if a < 0: raise ValueError('negative')\n    return a + b",
        "unit": "def f(a, b): return a + b",
    }
    entry_point = "f" if "candidate" in TESTS[tests] else ""
    task = Task(language="python", program=right[tests], tests=TESTS[tests], entry_point=entry_point)
    assert sandbox.judge(task).passed


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass(sandbox: Sandbox, name: str):
    verdict = sandbox.judge(Task(language="python", **HONEST[name]))
    assert verdict.passed and verdict.tier == "A", verdict


def test_numpy_passes_where_the_box_has_it(sandbox: Sandbox):
    there = Task(language="python", program="import numpy", cases=(Case("", ""),))
    if not sandbox.judge(there).passed:
        pytest.skip("the Python of the boxes has no numpy")
    program = "import numpy as np\ndef f(a): return np.mean(a), np.array(a) * 2, np.int64(3), np.bool_(True)"
    tests = "assert f([1.0, 2.0]) == (1.5, [2.0, 4.0], 3, True)"
    assert sandbox.judge(Task(language="python", program=program, tests=tests)).passed


def test_objects_that_are_compared_fail_and_say_so_or_fall_to_tier_b(sandbox: Sandbox):
    program = (
        "class P:\n    def __init__(s, x): s.x = x\n    def __eq__(s, o): return s.x == o.x\ndef f(x): return P(x)"
    )
    task = Task(language="python", program=program, tests="assert f(1) == P(1)\nassert f(1) != P(2)")
    verdict = sandbox.judge(task)
    assert verdict.status == "failed" and "objects of the program are compared" in verdict.detail
    with Sandbox(limits=LIMITS, one_process=True) as lenient:
        verdict = lenient.judge(task)
        assert verdict.passed and verdict.tier == "B"
        wrong = lenient.judge(Task(language="python", program=program, tests="assert f(1) == P(2)"))
        assert wrong.status == "failed" and "P(2)" in wrong.detail
        assert lenient.judge(ADD).tier == "A"


def test_a_helper_that_is_a_value_is_refused_before_it_is_believed(sandbox: Sandbox):
    tests = "assert f(2) % MOD == 0"
    verdict = sandbox.judge(Task(language="python", program="MOD = 1\ndef f(x): return 5", tests=tests))
    assert verdict.status == "failed" and "the tests use MOD of the program" in verdict.detail


def test_calls_do_not_believe_objects(sandbox: Sandbox):
    program = "class A:\n    __eq__ = lambda s, o: True\ndef f(x): return A()"
    verdict = sandbox.judge(Task(language="python", program=program, calls=(Call("f", (1,), 1), Call("f", (2,), [2]))))
    assert verdict.status == "failed" and verdict.cases == (False, False)

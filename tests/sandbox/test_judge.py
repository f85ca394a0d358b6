"""Judging: what is said of a program, in order, whatever it does."""

from __future__ import annotations

import collections
import itertools
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.sandbox.inside.literals import Broken, Refused, literal, parse
from factory.sandbox.inside.trial import close
from factory.sandbox.judge import Sandbox
from factory.sandbox.limits import Limits
from factory.sandbox.machine import Machine
from factory.sandbox.prepare import with_helpers
from factory.sandbox.selftest import why_not
from factory.sandbox.verdict import Call, Case, Task
from factory.sandbox.wrong import mutants, wrong_programs
from factory.sandbox.zygote import PythonZygote
from tests.conftest import REPOSITORY


def python(program: str, **fields) -> Task:
    return Task(language="python", program=program, **fields)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(1 << 300), max_value=1 << 300),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters(), max_size=20),
    st.binary(max_size=20),
)
KEYS = st.one_of(st.integers(), st.text(max_size=5), st.tuples(st.integers(), st.text(max_size=3)))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.sets(KEYS, max_size=4),
        st.frozensets(KEYS, max_size=4),
    ),
    max_leaves=20,
)


def same(one: object, other: object) -> bool:
    """Equal in value and type, all through; NaN is like NaN, and 0.0 is not like -0.0."""
    return repr(one) == repr(other) or (one == other and type(one) is type(other) and isinstance(one, (set, frozenset)))


@given(VALUES)
def test_a_literal_comes_back_as_it_was(value):
    assert same(parse(literal(value)), value) or parse(literal(value)) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_a_literal_or_broken(data):
    try:
        parse(data)
    except Broken:
        pass


@given(VALUES, st.data())
def test_a_damaged_code_is_a_literal_or_broken(value, data):
    code = bytearray(literal(value))
    code[data.draw(st.integers(0, len(code) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse(bytes(code))
    except Broken:
        pass


def test_a_literal_keeps_what_is_shared_and_refuses_what_holds_itself():
    row = [0]
    first, second = parse(literal([row, row]))
    assert first is second
    row.append(row)
    with pytest.raises(Refused, match="contains itself"):
        literal(row)
    with pytest.raises(Refused, match="only literals"):
        literal(object())


@settings(max_examples=20, deadline=None)
@given(st.lists(VALUES, max_size=3))
def test_values_pass_both_ways_between_the_boxes(sandbox: Sandbox, values):
    tests = f"from math import nan, inf\nv = {values!r}\nassert repr(f(*v)) == repr(v)"
    if "nanj" in repr(values) or "infj" in repr(values):
        return  # repr of such a complex number is no expression
    found = sandbox.judge(python("def f(*a): return list(a)", tests=tests))
    # A set may come in another order: then its text differs, and its value does not.
    assert found.passed or sandbox.judge(python("def f(*a): return list(a)", tests=tests.replace("repr", ""))).passed


@pytest.mark.parametrize(
    ("value", "expected", "tolerance", "good"),
    [
        (0.3, 0.1 + 0.2, 0.0, False),
        (0.3, 0.1 + 0.2, 1e-9, True),
        (1000.5, 1000.0, 1e-3, True),
        (math.nan, math.nan, 0.0, True),
        (math.nan, 1.0, 1.0, False),
        (math.inf, 1e308, 1.0, False),
        (math.inf, math.inf, 0.0, True),
        ([1, 2.0], [1.0, 2], 0.0, True),
        ([1, 2], (1, 2), 0.0, False),
        ([1], [1, 2], 0.0, False),
        ({"a": [0.3]}, {"a": [0.1 + 0.2]}, 1e-9, True),
        ({"a": 1}, {"a": 1, "b": 2}, 0.0, False),
        ({1, 2}, {2, 1}, 0.0, True),
        ("1", 1, 1.0, False),
        (None, 0, 1.0, False),
        (2.0000001, 2, 1e-6, True),
        (1.0, complex(math.inf, 0), 1.0, False),
        (complex(1, 1e-9), 1 + 0j, 1e-6, True),
        (collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1), 0.0, False),
        (collections.OrderedDict(a=1, b=2), {"b": 2, "a": 1}, 0.0, True),
        (collections.Counter(a=1, b=0), collections.Counter(a=1), 0.0, True),
    ],
)
def test_what_counts_as_equal(value, expected, tolerance, good):
    assert close(value, expected, tolerance) is good


def test_calls_say_which_of_them_passed(sandbox: Sandbox):
    calls = (Call("f", (1,), 1), Call("f", (-2,), 2), Call("f", ("x",), None), Call("g", (), 1), Call("f", (3,), 3))
    verdict = sandbox.judge(python("def f(x): return abs(x) if x > 0 else x", calls=calls))
    assert verdict.status == "failed" and verdict.cases == (True, False, False, False, True)
    assert verdict.detail == "f: -2 where 2 is expected"
    assert sandbox.judge(python("def f(x): return abs(x)", calls=calls[:2])).passed


def test_calls_with_a_tolerance(sandbox: Sandbox):
    program = "def f(x): return [x / 3, {'a': x}]"
    assert sandbox.judge(python(program, calls=(Call("f", (1.0,), [0.333333, {"a": 1.0}], 1e-5),))).passed
    assert not sandbox.judge(python(program, calls=(Call("f", (1.0,), [0.333333, {"a": 1.0}]),))).passed


def test_cases_are_compared_outside_the_box(sandbox: Sandbox):
    program = "a, b = map(int, input().split())\nprint(a // b, ' ')\n"
    cases = (Case("7 2\n", "3"), Case("9 3", "3\n"), Case("1 0", "0"), Case("4 2", "2"))
    verdict = sandbox.judge(python(program, cases=cases))
    assert verdict.status == "failed" and verdict.cases == (True, True, False)
    assert "case 3" in verdict.detail and "ZeroDivisionError" in verdict.detail and verdict.tier == "A"
    assert sandbox.judge(python(program, cases=cases[:2])).passed
    third = python("print(1 / 3)", cases=(Case("", "0.3333"),))
    assert not sandbox.judge(third).passed
    assert sandbox.judge(python("print(1 / 3)", cases=(Case("", "0.3333"),), tolerance=1e-3)).passed


def test_cases_and_tests_must_both_pass(sandbox: Sandbox):
    program = "def f(x): return x\nif __name__ == '__main__':\n    print(f(input()))"
    both = {"cases": (Case("a", "a"),), "calls": (Call("f", (1,), 1),)}
    assert sandbox.judge(python(program, **both)).cases == (True, True)
    assert sandbox.judge(python(program, **both, tests="assert f(1) == 2")).status == "failed"


@pytest.mark.parametrize("fields", [{"cases": (Case("", ""),)}, {"calls": (Call("f", (), 0),)}, {"tests": "f()"}])
def test_a_program_that_does_not_parse_is_a_static_error(sandbox: Sandbox, fields):
    for program in ("def f(:\n", "if True:\nprint()", "def f():\n\treturn 1\n        return 2"):
        assert sandbox.judge(python(program, **fields)).status == "static_error"


def test_tests_that_are_wrong_fail_and_say_so(sandbox: Sandbox):
    for tests, detail in [
        ("assert f(1) ==", "SyntaxError"),
        ("assert nothing(1)", "nothing"),
        ("import nowhere", "nowhere"),
        ("x = 1", "not called"),
        ("import os\nos._exit(0)", "without a verdict"),
        ("f(object())", "only literals and functions"),
        ("import sys\nf(1)\nsys.exit(0)", "SystemExit"),
        ("import unittest\nclass T(unittest.TestCase):\n    def test(self): self.skipTest('')", "not called"),
    ]:
        verdict = sandbox.judge(python("def f(x): return x", tests=tests))
        assert verdict.status == "failed" and detail in verdict.detail, (tests, verdict)


def test_tests_that_never_end_are_a_timeout(sandbox: Sandbox):
    task = python("def f(x): return x", tests="f(1)\nwhile True: pass", limits=Limits(seconds=1))
    assert sandbox.judge(task).status == "timeout"


def test_verdicts_come_in_order_and_tasks_are_taken_as_they_are_needed(sandbox: Sandbox):
    taken = itertools.count()
    seen = []

    def tasks():
        for k in range(200):
            seen.append(next(taken))
            wait = 0.3 if k % 7 == 0 else 0
            yield python(f"import time\ntime.sleep({wait})\ndef f(): return {k}", calls=(Call("f", (), k - k % 2),))

    verdicts = sandbox.judge_all(tasks())
    first = next(verdicts)
    assert first.passed and len(seen) <= 4 * sandbox.workers
    assert [v.passed for v in itertools.islice(verdicts, 20)] == [k % 2 == 0 for k in range(1, 21)]
    assert len(seen) <= 4 * sandbox.workers + 21
    verdicts.close()


def test_several_threads_may_ask(sandbox: Sandbox):
    found = {}

    def ask(k: int) -> None:
        found[k] = sandbox.judge(python(f"def f(): return {k}", calls=(Call("f", (), k),))).passed

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(8), True)


def end(zygote: PythonZygote) -> None:
    """As the kernel ends a box, when memory is short."""
    zygote._machine._kill()


def test_a_box_that_dies_is_replaced_and_its_program_not_blamed():
    with Sandbox(limits=Limits(seconds=5)) as sandbox:
        task = python("def f(): return 1", calls=(Call("f", (), 1),))
        assert sandbox.judge(task).passed
        for zygote in list(sandbox._zygotes.values()):
            end(zygote)
        assert sandbox.judge(task).passed
        slow = python("import time\ndef f():\n    time.sleep(1)\n    return 1", calls=(Call("f", (), 1),))
        timer = threading.Timer(0.3, lambda: [end(zygote) for zygote in sandbox._zygotes.values()])
        timer.start()
        assert sandbox.judge(slow).passed
        timer.join()


def test_a_box_that_always_dies_is_a_sandbox_error(monkeypatch: pytest.MonkeyPatch):
    with Sandbox(limits=Limits(seconds=5)) as sandbox:
        job = Machine.job

        def dies(self, *args, **kwargs):
            self._kill()
            return job(self, *args, **kwargs)

        monkeypatch.setattr(Machine, "job", dies)
        verdict = sandbox.judge(python("def f(): return 1", calls=(Call("f", (), 1),)))
        assert verdict.status == "sandbox_error" and not verdict.passed


def test_tests_that_do_harm_do_none_to_those_of_others(sandbox: Sandbox):
    right = python("import time\ntime.sleep(0.1)\ndef f(x): return x", tests="assert f(1) == 1")
    wrong = replace(right, tests="assert f(1) == 2")
    harm = [
        "import os\nf(1)\nos.kill(-1, 9)",
        "import os\nf(1)\nos.kill(os.getppid(), 9)",
        "f(1)\nx = [bytearray(1 << 20) for _ in range(1 << 12)]",
        "import os\nf(1)\nfor k in range(500): os.fork()",
        "import shutil\nf(1)\nshutil.rmtree('/work', True)\nassert False",
    ]
    tasks = [task for tests in harm for task in (right, wrong, replace(right, tests=tests), right, wrong)]
    verdicts = list(sandbox.judge_all(tasks))
    for k in range(0, len(tasks), 5):
        around = [verdicts[n] for n in (k, k + 1, k + 3, k + 4)]
        assert [verdict.status for verdict in around] == ["passed", "failed", "passed", "failed"], tasks[k + 2].tests
    # What was killed around it, and what could not be killed, is no failure of its own.
    assert [verdict.status for verdict in verdicts[2::5]] == ["passed", "passed", "memory", "failed", "failed"]
    assert sandbox.judge(right).passed


def test_a_court_is_replaced_when_it_has_heard_enough(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("factory.sandbox.court.TASKS", 3)
    tasks = [python(f"def f(): return {k}", calls=(Call("f", (), k - k % 3),)) for k in range(30)]
    with Sandbox(workers=3, limits=Limits(seconds=20)) as sandbox:
        assert [verdict.passed for verdict in sandbox.judge_all(tasks)] == [k % 3 == 0 for k in range(30)]
        assert len(sandbox._courts) == 2


def test_no_descriptor_stays_open(sandbox: Sandbox):
    task = python("def f(): return 1", calls=(Call("f", (), 1),))
    sandbox.judge(task)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        sandbox.judge(task)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lack_of_descriptors_is_told_and_is_no_failure_of_the_program(sandbox: Sandbox):
    source = """
import os, resource
from factory.engine.errors import FactoryError
from factory.sandbox.judge import Sandbox
from factory.sandbox.verdict import Call, Task

def few(more):
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + more, 4096))

few(4)
try:
    Sandbox()
except FactoryError as error:
    print(str(error).count(chr(10)), 'Too many open files' in str(error))
few(1000)
task = Task(language='python', program='def f(): return 1', calls=(Call('f', (), 1),))
with Sandbox(workers=1) as sandbox:
    print(sandbox.judge(task).status)
    for more in range(2, 8):
        few(more)
        seen = sandbox.judge(task).status
        assert seen in ('sandbox_error', 'passed'), seen
        before = len(os.listdir('/proc/self/fd'))
        assert sandbox.judge(task).status == seen and len(os.listdir('/proc/self/fd')) == before
        print(seen) if more == 2 else None
    few(1000)
    print(sandbox.judge(task).status)
"""
    done = subprocess.run([sys.executable, "-c", source], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["0 True", "passed", "sandbox_error", "passed"], done


def test_what_cannot_be_judged_is_told(sandbox: Sandbox):
    with pytest.raises(FactoryError, match="nothing to judge"):
        sandbox.judge(python("x = 1"))
    with pytest.raises(FactoryError, match="only literals"):
        sandbox.judge(python("def f(x): pass", calls=(Call("f", (object(),), 1),)))
    with pytest.raises(FactoryError, match="brainfog"):
        sandbox.judge(Task(language="brainfog", program="", cases=(Case("", ""),)))


RIGHT = "def f(a, b=0):\n    return sorted(a)[b:] if len(a) > 2 else []\n"


def test_weak_tests_are_flagged(sandbox: Sandbox):
    strong = "assert f([3, 1, 2], 1) == [2, 3]\nassert f([1, 2]) == []\nassert f([9, 8, 7]) == [7, 8, 9]"
    assert not sandbox.weak(python(RIGHT, tests=strong, entry_point="f"))
    for weak in (
        "assert f([1, 2]) == []",
        "assert f([1, 2, 3]) is not None",
        "f([3])",
        "assert f([1, 2, 3]) == [1, 2, 3]",
    ):
        assert sandbox.weak(python(RIGHT, tests=weak)), weak
    assert sandbox.weak(python(RIGHT, calls=(Call("f", ([1],), []),)))
    assert not sandbox.weak(python(RIGHT, calls=(Call("f", ([3, 1, 2],), [1, 2, 3]), Call("f", ([1],), []))))
    assert sandbox.weak(
        python(RIGHT, tests=strong, entry_point="f"), "def f(a, b=0): return sorted(a)[b:] if a[0] > 1 else []"
    )
    assert not sandbox.weak(python(RIGHT, tests=strong, entry_point="f"), "def f(a, b=0): return a")


def test_weak_cases_are_flagged(sandbox: Sandbox):
    program = "print(input().upper())"
    assert sandbox.weak(python(program, cases=(Case("A", "A"),)))
    assert not sandbox.weak(python(program, cases=(Case("a", "A"), Case("b", "B"))))
    with pytest.raises(FactoryError, match="one of your own"):
        sandbox.weak(Task(language="bash", program="cat", cases=(Case("A", "A"),)))


def test_wrong_programs_and_mutants_differ_from_the_right_one():
    task = python(RIGHT, tests="assert f([3, 1, 2]) == [1, 2, 3]")
    wrong = wrong_programs(task)
    assert "returns [1, 2, 3]" in wrong and "returns None" in wrong
    for program in (*wrong.values(), *mutants(RIGHT)):
        assert program != RIGHT
        compile(program, "wrong", "exec")
    assert len(list(mutants(RIGHT))) == 3


def test_helpers_of_the_prompt_go_before_the_tests(sandbox: Sandbox):
    prompt = (
        "import math\nBASE = 2\ndef grow(x):\n    return math.pow(BASE, x)\ndef f(x):\n    '''The inverse of grow.'''\n"
    )
    tests = "def check(candidate):\n    assert abs(grow(candidate(8.0)) - 8) < 1e-6"
    whole = with_helpers(prompt, tests, "f")
    assert whole.splitlines()[:2] == ["import math", "BASE = 2"] and whole.endswith(tests)
    right = python(prompt + "    return math.log2(x)", tests=whole, entry_point="f")
    assert sandbox.judge(right).passed
    cheat = python("def grow(x): return 8\ndef f(x): return 0", tests=whole, entry_point="f")
    assert sandbox.judge(cheat).status == "failed"
    assert with_helpers(prompt, "assert f(1) == 0", "f") == "assert f(1) == 0"


def test_tests_are_heard_together_without_a_box_too():
    """Not only by the slower way, in a room of their own, that stands in where the court says nothing."""
    task = Task(language="python", program="def f(x):\n    return x + 1\n", tests="assert f(1) == 2", entry_point="f")
    if why := why_not("degraded", zygote=True):
        pytest.skip(why)
    with Sandbox(isolation="degraded", workers=1) as opened:
        found = opened._in_court(task)
        assert found is not None and found.status == "passed"
        assert opened.judge(task).isolation == "degraded"

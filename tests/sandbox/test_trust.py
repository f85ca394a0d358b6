"""What tests believe of a program: pairs of a wrong program that would be believed, and a right one that must pass."""

from __future__ import annotations

import pytest

from factory.sandbox.judge import Sandbox
from factory.sandbox.verdict import Call, Case, Task

ONE = "def check(candidate):\n    "
BITS = ONE + "assert candidate(5).startswith('0b') and candidate(5) == '0b101'\n"
SETS = ONE + "assert candidate(5).issubset({5, 6}) and candidate(5).issuperset({5})\n"
# Name: tests, a wrong program, a right one.
PAIRS = {
    "a class for a module": (
        "import math\n" + ONE + "assert math.isclose(candidate(2.0), 1.414, rel_tol=1e-2)",
        "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef f(x): return 0",
        "def f(x): return x ** 0.5",
    ),
    "asked for the start": (
        BITS,
        "class A:\n    def startswith(s, x): return True\n    def __eq__(s, o): return True\ndef f(x): return A()",
        "def f(x): return bin(x)",
    ),
    "a class that is asked for the end": (
        ONE + "assert candidate(5).endswith('101')",
        "class f:\n    def __init__(s, *a): pass\n    def endswith(s, x): return True",
        "def f(x): return bin(x)",
    ),
    "asked for its part": (
        SETS,
        "class A:\n    issubset = issuperset = lambda s, x: True\ndef f(x): return A()",
        "def f(x): return {x}",
    ),
    "asked for the difference": (
        ONE + "assert candidate(5).difference({5, 6}) == set()",
        "class A:\n    def difference(s, x): return set()\ndef f(x): return A()",
        "def f(x): return {x}",
    ),
    "a class of tests": (
        "def test_a(): assert f(1) == 1\nclass TestMore:\n    def setup_method(self, method): self.x = 2\n"
        "    def test_b(self): assert f(self.x) == 4",
        "def f(x): return 1",
        "def f(x): return x * x",
    ),
    "a coroutine that tests": (
        "def test_a(): assert f(1) == 1\nasync def test_b(): assert f(2) == 4",
        "def f(x): return 1",
        "def f(x): return x * x",
    ),
    "a check that is a coroutine": (
        "async def check(candidate):\n    assert candidate(1) == 1\n    assert candidate(2) == 4",
        "def f(x): return 1",
        "def f(x): return x * x",
    ),
    "a test with a default": (
        "def test_a(): assert f(1) == 1\ndef test_b(n=2): assert f(n) == 4\ndef test_of(n): assert f(n) == 0",
        "def f(x): return 1",
        "def f(x): return x * x",
    ),
    "an exception that the tests raise": (
        "def check(candidate):\n    try:\n        candidate(-1)\n        assert False\n"
        "    except Negative as error:\n        assert str(error) in ('', '-1')",
        "Negative = AssertionError\ndef f(x): return 0",
        "class Negative(ValueError): pass\ndef f(x): raise Negative(x)",
    ),
    "an exception in a class": (
        "def check(candidate):\n    try:\n        candidate(-1)\n        assert False\n"
        "    except candidate.Negative:\n        pass",
        "class f:\n    Negative = Exception\n    def __init__(self, x): pass",
        "class f:\n    class Negative(Exception): pass\n    def __init__(self, x): raise self.Negative",
    ),
    "a helper that is passed": (
        ONE + "n = Node(4)\n    assert candidate(n) == 5\n    n.value = 7\n    assert candidate(n) == 8",
        "class Node:\n    def __init__(s, v): s.value = v\ndef f(n): return 5",
        "class Node:\n    def __init__(s, v): s.value = v\ndef f(n): return n.value + 1",
    ),
    "a helper's names and items": (
        ONE + "assert candidate(C.RED) == 'RED' and candidate(C['BLUE']) == 'BLUE'",
        "import enum\nclass C(enum.Enum):\n    RED, BLUE = 1, 2\ndef f(c): return 'RED'",
        "import enum\nclass C(enum.Enum):\n    RED, BLUE = 1, 2\ndef f(c): return c.name",
    ),
    "objects that ask each other": (
        "def check(candidate):\n    a, b = candidate([1]), candidate([1, 2])\n"
        "    assert a.issubset(b) and not b.issubset(a)",
        "class f:\n    def __init__(s, i): s.i = set(i)\n    def issubset(s, o): return True",
        "class f:\n    def __init__(s, i): s.i = set(i)\n    def issubset(s, o): return s.i <= o.i",
    ),
}
# Tests that the program decides: nothing passes, and it is said why.
UNFIT = {
    "a class": (
        ONE + "assert math.isclose(candidate(2.0), 1.414)",
        "class math:\n    isclose = staticmethod(lambda *a, **k: True)",
    ),
    "an object": (
        ONE + "assert math.isclose(candidate(2.0), 1.414)",
        "class M:\n    def isclose(s, *a): return True\nmath = M()",
    ),
    "an attribute": (ONE + "assert candidate(2) == K.X", "class K:\n    X = 0"),
    "an item": (ONE + "assert candidate(2) == K[1]", "K = type('K', (), {'__getitem__': lambda s, k: 0})()"),
    "a length": (ONE + "assert candidate(2) == len(K)", "K = type('K', (), {'__len__': lambda s: 0})()"),
    "names that are one": (
        ONE + "assert candidate(2) == C.RED",
        "class C:\n    RED = BLUE = object()\nf = lambda x: C.RED",
    ),
    "an object that is true": (ONE + "assert ok(candidate(2), 3)", "class ok:\n    def __init__(s, *a): pass"),
    "a call that is true": (ONE + "assert ok(candidate(2), 3)", "class A:\n    __call__ = lambda s, *a: s\nok = A()"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_wrong_program_fails_where_a_right_one_passes(sandbox: Sandbox, name: str):
    tests, wrong, right = PAIRS[name]
    entry_point = "f" if "candidate" in tests else ""
    task = Task(language="python", program=right, tests=tests, entry_point=entry_point)
    found = sandbox.judge(task)
    assert found.passed and found.tier == "A", found
    found = sandbox.judge(Task(language="python", program=wrong, tests=tests, entry_point=entry_point))
    assert found.status == "failed", found


@pytest.mark.parametrize("name", UNFIT)
def test_what_a_helper_says_is_not_believed(sandbox: Sandbox, name: str):
    tests, helper = UNFIT[name]
    program = "def f(x): return 0\n" + helper
    found = sandbox.judge(Task(language="python", program=program, tests=tests, entry_point="f"))
    assert found.status == "failed" and "of the program" in found.detail, found


def test_a_module_that_tests_do_not_import_is_not_the_programs(sandbox: Sandbox):
    program = "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef f(x): return 0"
    found = sandbox.judge(Task(language="python", program=program, tests="assert math.isclose(f(2), 1.4)"))
    assert found.status == "failed" and "math.isclose of the program" in found.detail


def test_what_is_expected_is_not_the_argument_that_a_program_changes(sandbox: Sandbox):
    shared = [3, 1, 2]
    for program, calls in (
        ("def f(a):\n    a.clear()\n    return a", (Call("f", (shared,), shared),)),
        ("def f(a):\n    a[:] = [9]\n    return [9]", (Call("f", (shared,), [9]), Call("f", ([1],), shared))),
    ):
        found = sandbox.judge(Task(language="python", program=program, calls=calls))
        assert found.status == "failed" and found.cases[-1] is False, found
    same = Task(language="python", program="def f(a): return a", calls=(Call("f", (shared,), shared),))
    assert sandbox.judge(same).passed


def test_calls_name_what_is_judged_beside_the_entry_point(sandbox: Sandbox):
    program = "def f(x): return x\ndef g(x): return -x"
    task = Task(language="python", program=program, entry_point="f", calls=(Call("g", (1,), -1), Call("f", (1,), 1)))
    assert sandbox.judge(task).cases == (True, True)


@pytest.mark.parametrize("text", ["print('\ud800')", "print(1)\0"])
def test_a_text_that_is_no_program_is_the_programs_fault(sandbox: Sandbox, text: str):
    found = sandbox.judge(Task(language="python", program=text, cases=(Case("\ud800", "1"),)))
    assert found.status in ("static_error", "failed"), found
    found = sandbox.judge(Task(language="python", program=text, calls=(Call("f", (), 1),)))
    assert found.status == "static_error", found


HOLD = {
    "an exception with a liar": (
        "try: candidate()\n    except ValueError as e: assert e.args[0] == 'yes'\n    else: assert False",
        "class A:\n    def __eq__(s, o): return True\ndef f(): raise ValueError(A())",
    ),
    "a liar for a callback": (
        "assert candidate(lambda v: [v, 1]) == [2, 1]",
        "class A:\n    def __eq__(s, o): return True\ndef f(g): return g(A())",
    ),
    "a context that swallows": (
        "with candidate():\n        assert 1 == 2\n    candidate()",
        "class f:\n    def __enter__(s): return s\n    def __exit__(s, *a): return True",
    ),
    "a number by its format": (
        "assert f'{candidate(1):.2f}' == '5.00'",
        "class A:\n    def __format__(s, x): return '5.00'\ndef f(a): return A()",
    ),
    "an index": ("assert [3, 4][candidate(1)] == 4", "class A:\n    def __index__(s): return 1\ndef f(a): return A()"),
    "a sum": ("assert sum(candidate(1)) == 5", "class A:\n    def __radd__(s, o): return 5\ndef f(a): return [A()]"),
    "a state": ("assert candidate(1) == candidate(1) == 1", "n = []\ndef f(x):\n    n.append(x)\n    return len(n)"),
    "one byte at a time": (
        "assert candidate(1) == 1",
        "import os, time\ndef f(x):\n    fd = max(int(d) for d in os.listdir('/proc/self/fd')\n"
        "        if os.path.lexists('/proc/self/fd/' + d) and 'socket' in os.readlink('/proc/self/fd/' + d))\n"
        "    for k in range(99):\n        os.write(fd, b'\\0' if k < 3 else b'T')\n        time.sleep(0.02)",
    ),
}


@pytest.mark.parametrize("name", HOLD)
def test_what_a_program_makes_of_its_objects_is_no_value(sandbox: Sandbox, name: str):
    tests, program = HOLD[name]
    found = sandbox.judge(Task(language="python", program=program, tests=ONE + tests, entry_point="f"))
    assert found.status == "failed", found

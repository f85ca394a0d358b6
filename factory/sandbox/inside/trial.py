"""Runs calls and tests in the tests' box, and says what failed.

Runs inside of the driver's box. Functions and classes of tests are found by their names, as pytest finds them.
"""

from __future__ import annotations

import sys
import types

from factory.sandbox.inside.literals import parse
from factory.sandbox.inside.peer import Gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def close(value: Any, expected: Any, tolerance: float) -> bool:
    """Python's equality; with a tolerance, floats in the same places may differ by it. NaN is like NaN."""
    if value == expected:
        return True
    if isinstance(expected, float) and type(value) in (int, float, bool):
        if value != value and expected != expected:
            return True
        if not tolerance or value in (_INF, -_INF) or expected in (_INF, -_INF):
            return False
        return abs(value - expected) <= tolerance * max(1.0, abs(expected))
    if isinstance(expected, complex) and type(value) in (int, float, complex):
        return tolerance > 0 and abs(expected) < _INF and abs(value - expected) <= tolerance * max(1.0, abs(expected))
    if isinstance(expected, (list, tuple)):
        if type(value) is not type(expected) or len(value) != len(expected):
            return False
        return all(close(value[k], other, tolerance) for k, other in enumerate(expected))
    if isinstance(expected, dict):
        if not isinstance(value, dict) or value.keys() != expected.keys():
            return False
        if type(value) is type(expected) and type(value).__name__ == "OrderedDict" and list(value) != list(expected):
            return False
        return all(close(value[key], other, tolerance) for key, other in expected.items())
    if type(expected) is int and tolerance and type(value) is float:
        return close(float(expected), value, tolerance)
    return False


_INF = float("inf")


def run_calls(judged: Callable[[str], Any], calls: tuple[Any, ...]) -> tuple[str, tuple[bool, ...]]:
    """What failed first, or nothing, and which calls returned what is expected. `judged` finds a function."""
    passed: list[bool] = []
    failure = ""
    for function, arguments, wanted, tolerance in calls:
        try:
            # Each of its own: what is one object in the caller's process, the program could change by the other name.
            args, expected = parse(arguments), parse(wanted)
            value = judged(function)(*args)
            good = close(value, expected, tolerance)
            why = "" if good else f"{function}: {_shown(value)} where {_shown(expected)} is expected"
        except Gone as error:
            return str(error), tuple(passed)
        except BaseException as error:  # SystemExit too may be what the function raised
            good, why = False, f"{function}: {type(error).__name__}: {str(error)[:300]}"
        passed.append(good)
        failure = failure or why
    return failure, tuple(passed)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else text[:200] + "…"


def run_tests(names: dict[str, Any], candidate: Any, source: str, entry_point: str) -> str:
    """Run tests: `check(candidate)`, asserts of the module, functions named test…, unittest's classes. What failed,
    or nothing."""
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    space = vars(module)
    space["__builtins__"] = names
    if entry_point:
        space[entry_point] = space["candidate"] = candidate
    try:
        exec(compile(source, "tests.py", "exec", dont_inherit=True), space)
        if entry_point and isinstance(space.get("check"), types.FunctionType):
            _finish(space["check"](candidate))
        for name, value in list(space.items()):
            if name.startswith("test") and isinstance(value, types.FunctionType) and not _required(value):
                _finish(value())
            elif name.startswith("Test") and type(value) is type and "__init__" not in vars(value):
                _methods(value)
        return _unittest(module) if "unittest" in sys.modules else ""
    except BaseException as error:
        return _told(error, source)


def _finish(returned: object) -> None:
    """The end of a test, which may be a coroutine."""
    if isinstance(returned, types.CoroutineType):
        import asyncio

        asyncio.run(returned)


def _required(function: Any) -> int:
    """How many arguments must be given: a test that has some is one that others call."""
    return function.__code__.co_argcount - len(function.__defaults__ or ())


def _methods(kind: type) -> None:
    """The tests of a class as pytest has them: each on an object of its own."""
    for name in dir(kind):
        if name.startswith("test") and callable(getattr(kind, name)):
            test = kind()
            for step in ("setup_method", name, "teardown_method"):
                if method := getattr(test, step, None):
                    # The steps around it may want to know which test it is.
                    wants = step != name and isinstance(method, types.MethodType) and _required(method.__func__) > 1
                    _finish(method(getattr(test, name)) if wants else method())


def _unittest(module: types.ModuleType) -> str:
    import unittest

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
    for test, trace in (*result.errors, *result.failures):
        return f"{test}: {trace.strip().splitlines()[-1]}"
    return "a test succeeded that was expected to fail" if result.unexpectedSuccesses else ""


def _told(error: BaseException, source: str) -> str:
    """What failed: the line of the tests, and the exception."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        text = str(error)[:500]
    except Exception as another:
        text = f"(no text: {type(another).__name__})"
    lines = source.splitlines()
    where = f"line {line} of the tests: {lines[line - 1].strip()[:200]}" if 0 < line <= len(lines) else ""
    what = "" if type(error) is AssertionError and not text else f"{type(error).__name__}: {text}".removesuffix(": ")
    return "; ".join(part for part in (where, what) if part)

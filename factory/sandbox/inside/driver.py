"""The tests' end of the two-box driver: runs tests whose calls of the program go to the box where the program is.

Runs inside of the driver's box. Of the program it only ever holds values of exact builtin types, rebuilt from their
code, and handles: names of objects that live in the other box. A handle forwards what a test may ask of an object
(attributes, methods, items, length, text, iteration), and refuses what would let the object say whether it is the
right one: comparison, membership, conversion to a number.
"""

from __future__ import annotations

import builtins
import os
import sys
import types

from factory.sandbox.inside.literals import Broken, Refused, literal, parse
from factory.sandbox.inside.peer import Gone, Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PULLED = 1_000_000
"""Values that are taken of one iterator."""
MODULES = ("program", "solution")
"""What tests may import the program as."""
CALLABLE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)


class Driver(Peer):
    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.calls = 0
        self.unfit = False
        """Whether it was the tests that ask for what cannot pass between two boxes."""
        self._functions: list[Any] = []
        self._handles: dict[int, Handle] = {}

    def export(self, value: object) -> bytes:
        if type(value) is Handle:
            return b"O" + _of(value)[1].to_bytes(4, "big")
        if isinstance(value, CALLABLE):
            self._functions.append(value)
            return b"H" + (len(self._functions) - 1).to_bytes(4, "big") + bytes(8)
        self.unfit = True
        raise Refused(f"the tests pass an object of type {type(value).__name__}: only literals and functions pass")

    def take(self, tag: bytes, key: int, kind: str, name: str) -> object:
        if tag == b"O":
            return self._functions[key]
        if kind == "iterator":
            return self._pull(key)
        if kind == "coroutine":
            return self._wait(key)
        if kind.startswith("exception "):
            return self.exception_class(name, kind.partition(" ")[2])
        if key not in self._handles:
            self._handles[key] = Handle(self, key, kind, name)
        return self._handles[key]

    def perform(self, message: tuple[Any, ...]) -> object:
        """The program may call the functions that a test has passed to it, and nothing else."""
        verb, key, args, kwargs = message
        if verb != "call" or type(args) is not tuple or type(kwargs) is not dict:
            raise Broken("no message of ours")
        return self._functions[key](*args, **kwargs)

    def _pull(self, key: int) -> Iterator[object]:
        size, taken, done = 1, 0, False
        while not done:
            values, done = self.asked(tuple, "next", key, size)
            yield from values
            taken += len(values)
            if taken > PULLED:
                raise self._break(f"an iterator of more than {PULLED:,} values")
            size = min(size * 2, 4096)

    async def _wait(self, key: int) -> object:
        return self.request("await", key)

    def unfitting(self, why: str) -> Gone:
        self.unfit = True
        return self._break(why)

    def asked(self, kind: type, *message: object) -> Any:
        """The answer, which must be of exactly this type."""
        value = self.request(*message)
        if type(value) is not kind:
            raise self._break(f"{message[0]}: the program answered with a {type(value).__name__}")
        return value


class Handle:
    """An object of the program, in the tests' box."""

    __slots__ = ("_handle",)

    def __init__(self, peer: Driver, key: int, kind: str, name: str) -> None:
        object.__setattr__(self, "_handle", (peer, key, kind, name))

    def __getattr__(self, name: str) -> object:
        peer, key, _, shown = _of(self)
        if name.startswith("__") and name not in ("__name__", "__doc__", "__qualname__"):
            raise AttributeError(f"{shown}.{name}: not of an object in another box")
        return peer.request("get", key, name)

    def __setattr__(self, name: str, value: object) -> None:
        _of(self)[0].request("set", _of(self)[1], name, value)

    def __delattr__(self, name: str) -> None:
        _of(self)[0].request("delete", _of(self)[1], name)

    def __call__(self, *args: object, **kwargs: object) -> object:
        peer, key, kind, name = _of(self)
        peer.calls += 1
        value = peer.request("call", key, args, kwargs)
        if kind == "class" and type(value) is not Handle:
            raise peer.unfitting(f"{name} of the program made a {type(value).__name__}: define it in the tests")
        return value

    def __eq__(self, other: object) -> bool:
        if self is not other and type(other) is Handle:
            raise _of(self)[0].unfitting("two objects of the program are compared: compare what their attributes hold")
        return self is other

    def __hash__(self) -> int:
        return hash(_of(self)[1])

    def __str__(self) -> str:
        return str(_of(self)[0].asked(str, "str", _of(self)[1]))

    def __repr__(self) -> str:
        return str(_of(self)[0].asked(str, "repr", _of(self)[1]))

    def __bool__(self) -> bool:
        return bool(_of(self)[0].asked(bool, "bool", _of(self)[1]))

    def __len__(self) -> int:
        return int(_of(self)[0].asked(int, "len", _of(self)[1]))

    def __iter__(self) -> Any:
        return _of(self)[0].asked(types.GeneratorType, "iter", _of(self)[1])

    def __getitem__(self, key: object) -> object:
        return _of(self)[0].request("item", _of(self)[1], key)

    def __setitem__(self, key: object, value: object) -> None:
        _of(self)[0].request("put", _of(self)[1], key, value)

    def __delitem__(self, key: object) -> None:
        _of(self)[0].request("drop", _of(self)[1], key)

    def __instancecheck__(self, value: object) -> bool:
        return bool(_of(self)[0].asked(bool, "isinstance", _of(self)[1], value))

    def __enter__(self) -> object:
        return _of(self)[0].request("enter", _of(self)[1])

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        _of(self)[0].request("exit", _of(self)[1])


def _of(handle: Handle) -> tuple[Driver, int, str, str]:
    return object.__getattribute__(handle, "_handle")


def _operator(name: str) -> Any:
    def apply(self: Handle, *others: object) -> object:
        peer, key, _, _ = _of(self)
        # An operand that is no handle would show the object what it is measured by, as in abs(f(x) - 0.33) < 1e-6.
        if any(type(other) is not Handle for other in others):
            return NotImplemented
        value = peer.request("operator", key, name, others)
        if type(value) is not Handle:
            raise peer.unfitting(f"an operator of the program's objects gave a {type(value).__name__}")
        return value

    return apply


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "neg"):
    setattr(Handle, f"__{_name.strip('_')}__", _operator(_name))


class Names(dict):
    """The builtins of the tests, and behind them what the program defines."""

    def __init__(self, peer: Driver, entry_point: str) -> None:
        super().__init__(vars(builtins))
        self._peer, self._entry_point = peer, entry_point

    def __missing__(self, name: str) -> object:
        if name.startswith("__"):
            raise KeyError(name)
        found = self[name] = self.of_program(name)
        return found

    def of_program(self, name: str) -> Any:
        """What the program calls so, also where it is the name of a builtin."""
        try:
            found = self._peer.request("name", name)
        except KeyError:
            raise NameError(f"name {name!r} is not defined, neither by the tests nor by the program") from None
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
        if self._entry_point in ("", name) and type(found) is Handle:
            return found
        if type(found) is Handle and _of(found)[2] in ("class", "object"):
            return Handle(self._peer, _of(found)[1], "class", name)  # it may make objects, not values
        raise self._peer.unfitting(f"the tests use {name} of the program, which may lie: define it in the tests")


class Program(types.ModuleType):
    """The program, as a module that tests import."""

    def __init__(self, name: str, names: Names) -> None:
        super().__init__(name)
        self.__dict__["_names"] = names

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__["_names"].of_program(name)


def close(value: Any, expected: Any, tolerance: float) -> bool:
    """Python's equality; with a tolerance, floats in the same places may differ by it. NaN is like NaN."""
    if isinstance(expected, float) and type(value) in (int, float, bool):
        if value == expected or (value != value and expected != expected):
            return True
        if not tolerance or value in (_INF, -_INF) or expected in (_INF, -_INF):
            return False
        return abs(value - expected) <= tolerance * max(1.0, abs(expected))
    if isinstance(expected, complex) and type(value) in (int, float, complex):
        return value == expected or (tolerance > 0 and abs(value - expected) <= tolerance * max(1.0, abs(expected)))
    if isinstance(expected, (list, tuple)):
        if type(value) is not type(expected) or len(value) != len(expected):
            return False
        return all(close(value[k], other, tolerance) for k, other in enumerate(expected))
    if isinstance(expected, dict):
        if not isinstance(value, dict) or value.keys() != expected.keys():
            return False
        return all(close(value[key], other, tolerance) for key, other in expected.items())
    if type(expected) is int and tolerance and type(value) is float:
        return close(float(expected), value, tolerance)
    return bool(value == expected)


_INF = float("inf")


def run_calls(names: Names, calls: tuple[Any, ...]) -> tuple[str, tuple[bool, ...]]:
    """What failed first, or nothing, and which calls returned what is expected."""
    passed: list[bool] = []
    failure = ""
    for function, args, expected, tolerance in calls:
        try:
            value = names.of_program(function)(*args)
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
            space["check"](candidate)
        for name, value in list(space.items()):
            if name.startswith("test") and isinstance(value, types.FunctionType) and not value.__code__.co_argcount:
                value()
        return _unittest(module) if "unittest" in sys.modules else ""
    except BaseException as error:
        return _told(error, source)


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


def judge(fd: int, task: dict[str, Any]) -> tuple[str, str, tuple[bool, ...], bool]:
    """Load the program into the other box, run calls and tests: status, detail, calls that passed, whether the tests
    do not fit into two boxes."""
    peer = Driver(fd)
    entry_point = task["entry_point"]
    names = Names(peer, entry_point)
    failure = ""
    cases: tuple[bool, ...] = ()
    try:
        wrong = peer.request("load", task["program"])
        if wrong is not None:
            return "static_error", str(wrong)[:500], (), False
        if task["calls"]:
            failure, cases = run_calls(names, task["calls"])
        if task["tests"] and not failure:
            candidate = names.of_program(entry_point) if entry_point else None
            for name in MODULES:
                sys.modules[name] = Program(name, names)
            failure = run_tests(names, candidate, task["tests"], entry_point)
            failure = failure or ("" if peer.calls else "the tests have not called the program")
    except BaseException as error:
        failure = f"as it was loaded: {type(error).__name__}: {str(error)[:500]}"
    failure = peer.broken or failure  # a test may have caught what broke
    return ("failed" if failure else "passed"), failure, cases, peer.unfit


def judge_in_one_process(task: dict[str, Any]) -> tuple[str, str, tuple[bool, ...], bool]:
    """The same with the program in this process, where it can do what it likes with the tests (tier B)."""
    program = types.ModuleType(MODULES[0])
    for name in MODULES:
        sys.modules[name] = program
    try:
        code = compile(task["program"], f"{MODULES[0]}.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return "static_error", f"{type(error).__name__}: {error}"[:500], (), False
    try:
        exec(code, vars(program))
        candidate = vars(program)[task["entry_point"]] if task["entry_point"] else None
        failure = run_tests({**vars(builtins), **vars(program)}, candidate, task["tests"], task["entry_point"])
    except BaseException as error:
        failure = f"as it was loaded: {type(error).__name__}: {str(error)[:500]}"
    return ("failed" if failure else "passed"), failure, (), False


def main() -> None:
    """The task is the argument, the program's box is behind file descriptor 0, and the verdict goes to 1.

    What tests print is lost: it may be text of the program's.
    """
    task = parse(sys.argv.pop().encode("latin-1"))
    nonce, out = task.pop("nonce"), os.dup(1)
    nothing = os.open("/dev/null", os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    verdict = judge_in_one_process(task) if task["one_process"] else judge(0, task)
    os.write(out, nonce + literal(verdict))
    os._exit(0)  # whatever threads the tests have left


if __name__ == "__main__":
    main()

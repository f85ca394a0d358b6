"""The tests' end of the two-box driver: runs tests whose calls of the program go to the box where the program is.

Runs inside of the driver's box. Of the program it only ever holds values of exact builtin types, rebuilt from their
code, and handles: names of objects that live in the other box. A handle forwards what a test may ask of an object
(attributes, methods, items, length, text, iteration), and refuses what would let the object say whether it is the
right one: comparison, membership, conversion to a number.
"""

from __future__ import annotations

import builtins
import functools
import os
import sys
import types

from factory.sandbox.inside.literals import Broken, Refused, literal, parse
from factory.sandbox.inside.peer import Gone, Peer
from factory.sandbox.inside.trial import run_calls, run_tests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PULLED = 1_000_000
"""Values that are taken of one iterator."""
MODULES = ("program", "solution")
"""What tests may import the program as."""
TELLING = ("startswith", "endswith", "removeprefix", "removesuffix", "issubset", "issuperset", "isdisjoint",
           "intersection", "difference", "symmetric_difference")  # fmt: skip
"""Methods of texts and sets that are told what is expected: an object of the program could answer them as it likes."""
LIBRARY = getattr(sys, "stdlib_module_names", ())  # Python 3.10
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

    def own_exception(self, kind: type[BaseException], name: str) -> type[BaseException]:
        """A class of the program that tests catch by its name. One of Python's, as AssertionError, could be raised by
        the tests themselves."""
        if kind.__module__ == "builtins":
            raise self.unfitting(f"the tests use {name} of the program, which is {kind.__name__}: name that")
        return kind

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
        if name in TELLING:
            return lambda *args: _asked_of_object(self, name, args)
        return _lent(self, peer.request("get", key, name), name)

    def __setattr__(self, name: str, value: object) -> None:
        _of(self)[0].request("set", _of(self)[1], name, value)

    def __delattr__(self, name: str) -> None:
        _of(self)[0].request("delete", _of(self)[1], name)

    def __call__(self, *args: object, **kwargs: object) -> object:
        peer, key, kind, name = _of(self)
        peer.calls += 1
        value = peer.request("call", key, args, kwargs)
        if kind in ("class", "helper") and type(value) is not Handle:
            raise peer.unfitting(f"{name} of the program made a {type(value).__name__}: define it in the tests")
        if kind == "helper" and type(value) is Handle:
            object.__setattr__(value, "_handle", (*_of(value)[:2], "made", name))
        return value

    def __eq__(self, other: object) -> bool:
        if self is not other and type(other) is Handle:
            raise _of(self)[0].unfitting("two objects of the program are compared: compare what their attributes hold")
        return self is other

    def __hash__(self) -> int:
        return hash(_of(self)[1])

    def __str__(self) -> str:
        return str(_asked(self, str, "str"))

    def __repr__(self) -> str:
        return str(_asked(self, str, "repr"))

    def __bool__(self) -> bool:
        if _of(self)[2] == "made":
            raise _of(self)[0].unfitting(f"the tests ask whether an object of {_of(self)[3]} of the program is true")
        return bool(_asked(self, bool, "bool"))

    def __len__(self) -> int:
        return int(_asked(self, int, "len"))

    def __iter__(self) -> Any:
        return _asked(self, types.GeneratorType, "iter")

    def __getitem__(self, key: object) -> object:
        return _lent(self, _of(self)[0].request("item", _of(self)[1], key), "an item")

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


def _asked(handle: Handle, kind: type, verb: str) -> Any:
    peer, key, of, name = _of(handle)
    if of == "helper":
        raise peer.unfitting(f"the tests ask {name} of the program for its {verb}: define it in the tests")
    return peer.asked(kind, verb, key)


def _lent(handle: Handle, value: object, part: str) -> object:
    """What is had of a handle: of a helper only what makes objects in its turn, as math.isclose could be anything."""
    peer, _, of, name = _of(handle)
    if isinstance(value, type) and issubclass(value, BaseException):
        return peer.own_exception(value, f"{name}.{part}")
    if of != "helper":
        return value
    if type(value) is not Handle:
        raise peer.unfitting(f"the tests use {name}.{part} of the program, which may lie: define it in the tests")
    return Handle(peer, _of(value)[1], "helper", f"{name}.{part}")


def _asked_of_object(handle: Handle, method: str, args: tuple[object, ...]) -> object:
    peer, key, _, name = _of(handle)
    if any(type(other) is not Handle for other in args):
        raise peer.unfitting(f"the tests ask an object of the program, {name}, for {method}(): compare values")
    return peer.request("get", key, method)(*args)


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

    def of_program(self, name: str, judged: bool = False) -> Any:
        """What the program calls so, also where it is the name of a builtin; `judged` where it is what is judged."""
        try:
            found = self._peer.request("name", name)
        except KeyError:
            raise NameError(f"name {name!r} is not defined, neither by the tests nor by the program") from None
        if isinstance(found, type) and issubclass(found, BaseException):
            return self._peer.own_exception(found, name)
        makes = type(found) is Handle and _of(found)[2] in ("class", "object")
        # Tests that use math and do not import it would ask the program's.
        judged = judged or self._entry_point == name or (not self._entry_point and not (makes and name in LIBRARY))
        if judged and type(found) is Handle:
            return found
        if makes:
            return Handle(self._peer, _of(found)[1], "helper", name)  # it may make objects, not values
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
            failure, cases = run_calls(functools.partial(names.of_program, judged=True), task["calls"])
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

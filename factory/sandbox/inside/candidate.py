"""The program's end of the two-box driver: loads the program, and does what the driver's box asks of it.

Runs inside of the candidate's box, in the process of the program: nothing here is hidden from the program, and nothing
that it does to this code can do more than answer with a wrong value. The tests, what they expect, and the verdict are
in the other box.
"""

from __future__ import annotations

import os
import sys
import types

from factory.sandbox.inside.literals import Broken, Refused
from factory.sandbox.inside.peer import Gone, Object, Peer, base_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MODULE = "program"


class Candidate(Peer):
    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._module = types.ModuleType(MODULE)
        self._objects: list[Any] = []
        self._keys: dict[int, int] = {}
        self._pending: dict[int, BaseException] = {}

    def export(self, value: object) -> bytes:
        if type(value) is Object:
            value = value.value
        if type(value) is Callback:
            return b"O" + value.key.to_bytes(4, "big")
        key = self._keys.get(id(value))
        if key is None:
            key = self._keys[id(value)] = len(self._objects)
            self._objects.append(value)
        kind, name = _described(value)
        texts = b"".join(len(raw).to_bytes(4, "big") + raw for raw in (kind.encode(), name.encode("utf-8", "replace")))
        return b"H" + key.to_bytes(4, "big") + texts

    def take(self, tag: bytes, key: int, kind: str, name: str) -> object:
        return Callback(self, key) if tag == b"H" else self._objects[key]

    def perform(self, message: tuple[Any, ...]) -> object:
        verb, on, *rest = message
        if verb == "load":
            return self._load(on)
        if verb == "name":
            value = vars(self._module)[on]
            constant = type(value).__module__ == "builtins" and not callable(value)
            return value if constant or _described(value)[0].startswith("exception") else Object(value)
        subject = self._objects[on]
        if verb == "call":
            args, kwargs = rest
            made = subject(*args, **kwargs)
            return Object(made) if isinstance(subject, type) else made
        if verb == "get":
            return getattr(subject, rest[0])
        if verb == "set":
            setattr(subject, *rest)
            return None
        if verb == "delete":
            delattr(subject, *rest)
            return None
        if verb == "next":
            return self._pull(on, subject, rest[0])
        if verb == "operator":
            import operator

            return getattr(operator, rest[0])(subject, *rest[1])
        return _ASKED[verb](subject, *rest)

    def _load(self, source: str) -> object:
        sys.modules[MODULE] = self._module
        try:
            code = compile(source, f"{MODULE}.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        exec(code, vars(self._module))
        return None

    def _pull(self, key: int, iterator: Any, size: int) -> tuple[tuple[object, ...], bool]:
        """At most `size` further values, and whether there are no more. An exception comes after those before it."""
        if key in self._pending:
            raise self._pending.pop(key)
        values = []
        for _ in range(size):
            try:
                values.append(next(iterator))
            except StopIteration:
                return tuple(values), True
            except BaseException as error:
                if not values:
                    raise
                self._pending[key] = error
                break
        return tuple(values), False


class Callback:
    """A function of the tests that is an argument: calling it asks the driver's box."""

    def __init__(self, peer: Peer, key: int) -> None:
        self._peer, self.key = peer, key

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._peer.request("call", self.key, args, kwargs)


def _described(value: object) -> tuple[str, str]:
    """What an object is, to the driver: its kind and a name."""
    kind = type(value)
    if isinstance(value, type):
        return (f"exception {base_of(value)}" if issubclass(value, BaseException) else "class"), value.__name__
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return "function", value.__name__
    if isinstance(value, types.CoroutineType):
        return "coroutine", kind.__name__
    if hasattr(kind, "__next__"):
        return "iterator", kind.__name__
    if isinstance(value, (types.ModuleType, types.FrameType, types.TracebackType)):
        raise Refused(f"an object of type {kind.__name__}")
    return "object", kind.__name__


def _await(subject: Any) -> object:
    import asyncio

    return asyncio.run(subject)


def _exit(subject: Any) -> object:
    return type(subject).__exit__(subject, None, None, None)


_ASKED: dict[str, Any] = {
    "len": len,
    "str": str,
    "repr": repr,
    "bool": bool,
    "iter": lambda subject: Object(iter(subject)),
    "item": lambda subject, key: subject[key],
    "put": lambda subject, key, value: subject.__setitem__(key, value),
    "drop": lambda subject, key: subject.__delitem__(key),
    "isinstance": lambda subject, value: isinstance(value, subject),
    "enter": lambda subject: type(subject).__enter__(subject),
    "exit": _exit,
    "await": _await,
}


def main() -> None:
    """Serve on file descriptor 0, which the program finds empty."""
    fd = os.dup(0)
    empty = os.open("/dev/null", os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    sys.setrecursionlimit(sys.getrecursionlimit() + 50)  # of our own frames
    try:
        Candidate(fd).serve()
    except (Gone, Broken):
        pass
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

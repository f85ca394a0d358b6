"""One end of the conversation of two boxes: requests and answers, calls back within calls, exceptions by name.

Runs inside of the boxes. Both ends are alike: what is asked of one while it waits for an answer, it does first.
"""

from __future__ import annotations

import _thread
import builtins
import os
import struct

from factory.sandbox.inside.literals import MESSAGE, Broken, Decoder, Encoder, Refused, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


_length = struct.Struct(">I")


def _raisable() -> dict[str, type[BaseException]]:
    found = {}
    for name, kind in vars(builtins).items():
        # Aliases (IOError) go by their true name; what needs arguments of a certain form is rebuilt as its base.
        if not isinstance(kind, type) or not issubclass(kind, BaseException) or kind.__name__ != name:
            continue
        if not name.endswith("ExceptionGroup") and (not issubclass(kind, UnicodeError) or kind is UnicodeError):
            found[name] = kind
    return found


EXCEPTIONS = _raisable()
ITERATION = ("StopIteration", "StopAsyncIteration", "GeneratorExit")
"""They steer loops: one that leaves a function could end a loop of the tests early (PEP 479): it becomes another."""


class Gone(BaseException):
    """The other end has ended, or breaks the rules. It is no Exception, so that tests let it pass."""


def base_of(kind: type) -> str:
    """The name of the nearest builtin exception class."""
    return next((base.__name__ for base in kind.__mro__ if EXCEPTIONS.get(base.__name__) is base), "Exception")


class Object:
    """Marks a value that goes as an object, whatever it is."""

    def __init__(self, value: object) -> None:
        self.value = value


class Peer:
    """Talks over the socket `fd`. Subclasses say what objects are on the wire, and what may be asked of this end."""

    def __init__(self, fd: int) -> None:
        self.broken = ""
        """Why the conversation cannot go on; empty while it can."""
        self._fd = fd
        self._lock = _thread.RLock()
        self._raised: dict[str, type[BaseException]] = {}

    def export(self, value: object) -> bytes:
        """The code of an object of this end. Raises Refused."""
        raise NotImplementedError

    def take(self, tag: bytes, key: int, kind: str, name: str) -> object:
        """What stands for an object that arrives."""
        raise NotImplementedError

    def perform(self, message: tuple[Any, ...]) -> object:
        """Do what the other end asks."""
        raise NotImplementedError

    def request(self, *message: object) -> Any:
        """Ask the other end; the value of its answer, or its exception."""
        with self._lock:
            if self.broken:
                raise Gone(self.broken)
            encoder = Encoder(self.export)
            try:
                encoder.value(message)
                send(self._fd, encoder.message())
            except Refused as error:
                raise self._break(f"{error}") from None
            except OSError:
                raise self._break("the program ended before it answered") from None
            while True:
                decoder, answer, frame = self._next(encoder.containers)
                verb = answer[0]
                if verb == "return" and len(answer) == 3:
                    return answer[2]
                if verb == "raise" and len(answer) == 5:
                    raise self.exception(*answer[1:])
                if verb == "refused" and len(answer) == 2:
                    raise self._break(str(answer[1])[:500])
                self._answer(decoder, answer, frame)

    def serve(self) -> None:
        """Do what is asked until the other end is gone."""
        while True:
            try:
                self._answer(*self._next(()))
            except Gone:
                return

    def _next(self, known: Any) -> tuple[Decoder, tuple[Any, ...], bytes]:
        try:
            frame = receive(self._fd)
            decoder = Decoder(frame, self.take, known)
            message = decode(decoder)
        except (EOFError, OSError):
            raise self._break("the program ended before it answered") from None
        except (Broken, struct.error) as error:
            raise self._break(f"{error}") from None
        if type(message) is not tuple or not message:
            raise self._break("no message of ours")
        return decoder, message, frame

    def _break(self, why: str) -> Gone:
        self.broken = self.broken or why
        return Gone(self.broken)

    def _answer(self, decoder: Decoder, message: tuple[Any, ...], frame: bytes) -> None:
        try:
            value = self.perform(message)
        except (Gone, Broken) as error:
            raise self._break(str(error)) from None
        except BaseException as error:
            reply = self._raise(error)
        else:
            reply = self._return(decoder, message, frame, value)
        try:
            send(self._fd, reply)
        except Refused as error:
            send(self._fd, self._plain("refused", f"{error}"))
        except OSError:
            raise self._break("the program ended before it answered") from None

    def _return(self, decoder: Decoder, message: tuple[Any, ...], frame: bytes, value: object) -> bytes:
        """The answer, with the arguments where the call has changed them."""
        known = {id(container): number for number, container in enumerate(decoder.containers)}
        try:
            changed = None
            if known:
                again = Encoder(self.export)
                again.value(message)
                changed = None if again.message() == frame else message[2:]
            encoder = Encoder(self.export, known, changed is not None)
            encoder.value(("return", changed, value))
            return encoder.message()
        except Refused as error:
            return self._plain("refused", f"the program's answer cannot pass: {error}")
        except BaseException as error:  # an object of the program that raises as it is looked at
            return self._raise(error)

    def _raise(self, error: BaseException) -> bytes:
        kind = type(error)
        try:
            text = str(error)[:10_000]
        except BaseException as another:
            text = f"(its text cannot be had: {type(another).__name__})"
        try:
            return self._plain("raise", kind.__name__, base_of(kind), error.args, text)
        except (Refused, Broken):
            return self._plain("raise", kind.__name__, base_of(kind), (text,), text)

    def _plain(self, *message: object) -> bytes:
        encoder = Encoder(_refuse)
        encoder.value(message)
        return encoder.message()

    def exception(self, name: object, base: object, args: object, text: object) -> BaseException:
        """An exception of the other end: the builtin one of that name, else a class of that name below `base`."""
        if type(name) is not str or type(base) is not str or type(args) is not tuple or type(text) is not str:
            raise self._break("no exception of ours")
        kind = self.exception_class(name, base)
        if name in ITERATION or base in ITERATION:
            return RuntimeError(f"the program raised {name}")
        try:
            made = kind(*args)
        except Exception:
            made = kind(text)
        return made

    def exception_class(self, name: str, base: str) -> type[BaseException]:
        found = self._raised.get(name) or EXCEPTIONS.get(name)
        if found is None:
            found = self._raised[name] = type(name, (EXCEPTIONS.get(base, Exception),), {"__module__": "program"})
        return found


def _refuse(value: object) -> bytes:
    raise Refused(f"an object of type {type(value).__name__}")


def framed(message: bytes) -> bytes:
    """A message as `receive` takes it. Refused where it is longer than allowed."""
    if len(message) > MESSAGE:
        raise Refused(f"a message of {len(message):,} bytes: at most {MESSAGE:,} pass")
    return _length.pack(len(message)) + message


def send(fd: int, message: bytes) -> None:
    """One frame. OSError where the other side is gone."""
    data = memoryview(framed(message))
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int) -> bytes:
    """One frame. EOFError where the other side is gone, Broken where it is longer than allowed."""
    size = _length.unpack(_exactly(fd, 4))[0]
    if size > MESSAGE:
        raise Broken(f"a message of {size:,} bytes: at most {MESSAGE:,} pass")
    return _exactly(fd, size)


def _exactly(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    if len(data) == size:
        return data
    parts = [data]
    left = size - len(data)
    while data and left:
        data = os.read(fd, min(left, 1 << 20))
        parts.append(data)
        left -= len(data)
    if left:
        raise EOFError
    return b"".join(parts)

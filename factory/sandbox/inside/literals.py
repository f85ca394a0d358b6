"""Values between two boxes: a strict binary code of literals.

Runs inside of the boxes too, and imports nothing that costs time. What arrives is bytes of an untrusted process: it is
parsed by rules that only make exact builtin types, so nothing in it runs, and nothing in it decides how it compares.

A mutable container that is met twice in one message is one object on the other side as well, and containers that came
as arguments keep their identity on the way back (`known`): what a function changes in place is changed in place.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

MESSAGE = 16 << 20
"""Bytes of the longest message: longer values are refused."""
DEPTH = 150
"""Containers in containers: deeper values are refused."""

_u32 = struct.Struct(">I")
_i64 = struct.Struct(">q")
_f64 = struct.Struct(">d")
_SMALL = 1 << 63

TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        object,
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        bytearray,
        tuple,
        list,
        dict,
        set,
        frozenset,
        type(None),
    )
}
"""The builtin types that may themselves be a value (`filter_by_type(values, int)`)."""
_TYPE_NAMES = {kind: name for name, kind in TYPES.items()}


class Refused(Exception):
    """A value that cannot pass between the boxes."""


class Broken(Exception):
    """Bytes that are no message of ours."""


def _parts(value: Any) -> tuple[str, tuple[object, ...]] | None:
    """The name in `_MAKE` and the literals of a value of the standard library's types; None for any other."""
    kind = type(value)
    module, name = kind.__module__, kind.__name__
    if kind is range:
        return "range", (value.start, value.stop, value.step)
    if module == "builtins" and name in ("dict_keys", "dict_values", "dict_items"):
        return name, tuple(value)
    if module == "collections":
        if name == "deque":
            return name, (tuple(value), value.maxlen)
        if name in ("OrderedDict", "Counter"):
            return name, tuple(dict.items(value))
    elif module == "decimal" and name == "Decimal":
        return name, (str(value),)
    elif module == "fractions" and name == "Fraction":
        return name, (value.numerator, value.denominator)
    elif module == "array" and name == "array":
        return name, (value.typecode, tuple(value))
    elif module == "datetime":
        if name == "date":
            return name, (value.year, value.month, value.day)
        if name == "timedelta":
            return name, (value.days, value.seconds, value.microseconds)
        if name == "datetime" and value.tzinfo is None:
            clock = (value.hour, value.minute, value.second, value.microsecond)
            return name, (value.year, value.month, value.day, *clock)
    return None


def _make(name: str, parts: tuple[Any, ...]) -> object:
    """The value of `_parts`."""
    if name == "range":
        return range(*parts)
    if name == "dict_keys":
        return dict.fromkeys(parts).keys()
    if name == "dict_values":
        return dict(enumerate(parts)).values()
    if name == "dict_items":
        return dict(parts).items()
    if name in ("deque", "OrderedDict", "Counter"):
        import collections

        if name == "deque":
            return collections.deque(*parts)
        return collections.OrderedDict(parts) if name == "OrderedDict" else collections.Counter(dict(parts))
    if name == "Decimal":
        import decimal

        return decimal.Decimal(*parts)
    if name == "Fraction":
        import fractions

        return fractions.Fraction(*parts)
    if name == "array":
        import array

        return array.array(*parts)
    if name in ("date", "timedelta", "datetime"):
        import datetime

        return getattr(datetime, name)(*parts)
    raise Broken(f"a value of unknown type {name!r}")


_PLAIN: tuple[tuple[type, Callable[[Any], object]], ...] = (
    (int, lambda value: int.__pos__(value)),
    (float, lambda value: float.__pos__(value)),
    (complex, lambda value: complex.__pos__(value)),
    (str, lambda value: str.__str__(value)),
    (bytes, lambda value: bytes.__getitem__(value, slice(None))),
    (bytearray, lambda value: bytearray.__getitem__(value, slice(None))),
    (tuple, lambda value: tuple.__getitem__(value, slice(None))),
    (list, lambda value: list.__getitem__(value, slice(None))),
    (dict, lambda value: dict(dict.items(value))),
    (set, lambda value: set(set.__iter__(value))),
    (frozenset, lambda value: frozenset(frozenset.__iter__(value))),
)
"""What a value of a subclass of a builtin type holds, as a value of that type, whatever the subclass overrides."""


class Encoder:
    """Encodes values of one message. `known`: containers of the other side by the id of ours; `export` names an object
    that is no literal: a tag and the bytes that follow it, or Refused."""

    def __init__(
        self, export: Callable[[object], bytes], known: dict[int, int] | None = None, changed: bool = True
    ) -> None:
        self.out: list[bytes] = []
        self.containers: list[object] = []
        self._export = export
        self._known = known or {}
        self._changed = changed
        self._numbers: dict[int, int] = {}
        self._open: set[int] = set()
        self._kept: list[object] = []
        self._depth = 0

    def message(self) -> bytes:
        return b"".join(self.out)

    def value(self, value: Any) -> None:
        kind = type(value)
        out = self.out
        if kind is int:
            if -_SMALL <= value < _SMALL:
                out.append(b"q" + _i64.pack(value))
            else:
                self._sized(b"I", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
        elif kind is str:
            self._sized(b"s", value.encode("utf-8", "surrogatepass"))
        elif kind is bool:
            out.append(b"T" if value else b"F")
        elif value is None:
            out.append(b"N")
        elif kind is float:
            out.append(b"f" + _f64.pack(value))
        elif kind is list or kind is dict or kind is set or kind is bytearray:
            self._container(kind, value)
        elif kind is tuple or kind is frozenset:
            self._enter()
            out.append((b"(" if kind is tuple else b">") + _u32.pack(len(value)))
            for item in value:
                self.value(item)
            self._depth -= 1
        elif kind is bytes:
            self._sized(b"b", value)
        elif kind is complex:
            out.append(b"c" + _f64.pack(value.real) + _f64.pack(value.imag))
        elif kind is type and value in _TYPE_NAMES:
            self._sized(b"Y", _TYPE_NAMES[value].encode())
        else:
            self._other(kind, value)

    def _sized(self, tag: bytes, raw: bytes) -> None:
        if len(raw) > MESSAGE:
            raise Refused(f"a value of {len(raw):,} bytes: at most {MESSAGE:,} pass")
        self.out.append(tag + _u32.pack(len(raw)) + raw)

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > DEPTH:
            raise Refused(f"a value nested deeper than {DEPTH} containers")

    def _container(self, kind: type, value: Any) -> None:
        known = self._known.get(id(value))
        if known is not None and not self._changed:
            self.out.append(b"K" + _u32.pack(known))
            return
        number = self._numbers.get(id(value))
        if number is not None:
            if number in self._open:
                raise Refused("a value that contains itself")
            self.out.append(b"R" + _u32.pack(number))
            return
        number = self._numbers[id(value)] = len(self._numbers)
        self.containers.append(value)
        if known is not None:
            self.out.append(b"M" + _u32.pack(known))
        self._enter()
        self._open.add(number)
        if kind is list:
            self.out.append(b"[" + _u32.pack(len(value)))
            for item in value:
                self.value(item)
        elif kind is dict:
            self.out.append(b"{" + _u32.pack(len(value)))
            for key, item in value.items():
                self.value(key)
                self.value(item)
        elif kind is set:
            self.out.append(b"<" + _u32.pack(len(value)))
            for item in value:
                self.value(item)
        else:
            self._sized(b"B", bytes(value))
        self._open.discard(number)
        self._depth -= 1

    def _other(self, kind: type, value: Any) -> None:
        """A value of the standard library, a subclass of a builtin by what the builtin holds, or an object."""
        parts = _parts(value)
        if parts is not None:
            self._enter()
            self._sized(b"X", parts[0].encode())
            self.value(parts[1])
            self._depth -= 1
            return
        if kind.__module__ == "numpy":
            value = value.tolist()  # arrays and scalars alike
            self._kept.append(value)  # an id is one object's as long as it lives
            return self.value(value)
        for base, plain in _PLAIN:
            if issubclass(kind, base):
                made = plain(value)
                self._kept.append(made)
                return self.value(made)
        self.out.append(self._export(value))


class Decoder:
    """Decodes the values of one message. `known`: our containers that `K` and `M` may name; `take` makes what stands
    for an object: (tag, key, kind, name)."""

    def __init__(
        self, data: bytes, take: Callable[[bytes, int, str, str], object], known: Sequence[object] = ()
    ) -> None:
        self.containers: list[Any] = []
        self._data = data
        self._at = 0
        self._take = take
        self._known = known
        self._depth = 0

    def value(self) -> Any:
        data, at = self._data, self._at
        tag = data[at : at + 1]
        self._at = at + 1
        if tag == b"q":
            self._at = at + 9
            return _i64.unpack_from(data, at + 1)[0]
        if tag == b"s":
            return self._sized().decode("utf-8", "surrogatepass")
        if tag == b"T":
            return True
        if tag == b"F":
            return False
        if tag == b"N":
            return None
        if tag == b"f":
            self._at = at + 9
            return _f64.unpack_from(data, at + 1)[0]
        if tag in (b"[", b"{", b"<", b"B"):
            return self._container(tag, None)
        if tag == b"(":
            return tuple(self._items())
        if tag == b">":
            return frozenset(self._items())
        if tag == b"b":
            return self._sized()
        if tag == b"I":
            return int.from_bytes(self._sized(), "big", signed=True)
        if tag == b"c":
            self._at = at + 17
            return complex(_f64.unpack_from(data, at + 1)[0], _f64.unpack_from(data, at + 9)[0])
        if tag == b"K":
            return self._known[self._number()]
        if tag == b"M":
            original = self._known[self._number()]
            tag = data[self._at : self._at + 1]
            self._at += 1
            return self._container(tag, original)
        if tag == b"R":
            found = self.containers[self._number()]
            if found is None:
                raise Broken("a value that contains itself")
            return found
        if tag == b"X":
            name = self._sized().decode()
            parts = self.value()
            if type(parts) is not tuple:
                raise Broken(f"no parts of a {name}")
            return _make(name, parts)
        if tag == b"Y":
            return TYPES[self._sized().decode()]
        if tag in (b"H", b"O"):
            key = self._number()
            kind, name = (self._sized().decode(), self._sized().decode()) if tag == b"H" else ("", "")
            return self._take(tag, key, kind, name)
        raise Broken(f"unknown tag {tag!r}")

    def ended(self) -> bool:
        return self._at == len(self._data)

    def _number(self) -> int:
        self._at += 4
        return int(_u32.unpack_from(self._data, self._at - 4)[0])

    def _sized(self) -> bytes:
        size = self._number()
        raw = self._data[self._at : self._at + size]
        if len(raw) != size:
            raise Broken("a message that ends early")
        self._at += size
        return raw

    def _items(self) -> list[Any]:
        self._depth += 1
        if self._depth > DEPTH:
            raise Broken("a value nested too deep")
        found = [self.value() for _ in range(self._number())]
        self._depth -= 1
        return found

    def _container(self, tag: bytes, original: Any) -> Any:
        number = len(self.containers)
        self.containers.append(None)
        made: Any
        if tag == b"[":
            made = self._items()
        elif tag == b"<":
            made = set(self._items())
        elif tag == b"B":
            made = bytearray(self._sized())
        elif tag == b"{":
            self._depth += 1
            if self._depth > DEPTH:
                raise Broken("a value nested too deep")
            made = {}
            for _ in range(self._number()):
                key = self.value()
                made[key] = self.value()
            self._depth -= 1
        else:
            raise Broken("no container")
        if original is not None:
            made = replace(original, made)
        self.containers[number] = made
        return made


def replace(original: Any, made: Any) -> Any:
    """`original` with the contents of `made`, which is of the same type."""
    if type(original) is not type(made):
        raise Broken("an argument that changed its type")
    if isinstance(original, (list, bytearray)):
        original[:] = made
    else:
        original.clear()
        original.update(made)
    return original


def no_object(value: object) -> NoReturn:
    raise Refused(f"a value of type {type(value).__name__}: only literals pass")


def literal(value: object) -> bytes:
    """The code of a literal; Refused for anything else."""
    encoder = Encoder(no_object)
    encoder.value(value)
    return encoder.message()


def no_take(tag: bytes, key: int, kind: str, name: str) -> NoReturn:
    raise Broken("an object among literals")


def parse(data: bytes) -> Any:
    """The value of `literal`; Broken for any other bytes."""
    return decode(Decoder(data, no_take))


def decode(decoder: Decoder) -> Any:
    try:
        value = decoder.value()
    except (ArithmeticError, LookupError, ValueError, TypeError, RecursionError, struct.error) as error:
        raise Broken(f"no message of ours: {error}") from None
    if not decoder.ended():
        raise Broken("bytes behind a message")
    return value

"""The records of a WARC file, by byte ranges, past whatever is broken in it.

A record begins at a line `WARC/1.x`; in a compressed file, at a gzip member that inflates to one. A range owns the
members (in a plain file, the records) that start in it. After something broken the next record is searched for: the
next such line in what the member inflates to, then the next such member.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from factory.corpus.ingest import http
from factory.corpus.ingest.files import LIMIT, SHOWN
from factory.engine.step import Seam

MAGIC = b"\x1f\x8b\x08"
_LINE = b"\nWARC/1."
_HEAD = 1 << 20
"""No record's header is larger."""
_HELD = 8 << 20
"""Records up to this size are held in memory until it is known that they are whole, even if they are not wanted."""
_PEEK = 1 << 16


@dataclass(frozen=True)
class Record:
    """A record's header. `place` is its offset in the file (and `+` its offset in the gzip member, if not zero)."""

    place: str
    fields: dict[str, str]
    length: int

    def header(self, name: str) -> str:
        """A field by its name in lower case; empty where it is missing."""
        return self.fields.get(name, "")

    @property
    def kind(self) -> str:
        return self.header("warc-type").lower()

    @property
    def id(self) -> str:
        return self.header("warc-record-id")

    @property
    def url(self) -> str:
        return self.header("warc-target-uri").removeprefix("<").removesuffix(">")


@dataclass(frozen=True)
class Bad:
    """Something that cannot be read, up to the next record."""

    place: str
    error: str
    data: bytes


Wanted = Callable[[Record, bytes], bool]
"""Whether a record is to be read, by its header and the first 64 KB of its block."""


def read_range(
    file: IO[bytes], start: int, end: int, exact: bool, wanted: Wanted
) -> Iterator[tuple[Record, bytes] | Bad | Seam]:
    """The wanted records that start in a range, each with its block; what is bad; and last the Seam.

    `exact`: a record, or what is to be told as bad, begins right at `start`; nothing is searched there.
    """
    raw = _Raw(file)
    exact = exact or start == 0
    if raw.at(0, 3) == MAGIC:
        first = start if exact else _find_member(raw, start, end)
        last = first
        while last < end and last < raw.size:
            stream = _Stream(raw, last, zipped=True)
            if raw.at(last, 3) == MAGIC:
                yield from _records(stream, wanted, None)
            elif raw.zeros(last):
                stream.end = raw.size  # padding
            else:
                yield Bad(str(last), "no gzip member begins here", raw.at(last, SHOWN))
                stream.error = "not a member"
            last = _find_member(raw, last + 1, raw.size) if stream.error else stream.end
    else:
        stream = _Stream(raw, start if exact else start - 1, zipped=False)
        first = start
        if not exact:
            first = stream.offset + stream.at if _search(stream, end) else end
        last = first
        if first < end:
            yield from _records(stream, wanted, end)
            last = stream.offset + stream.at
    yield Seam(first, last)


class _Raw:
    """The file's bytes by offset, read in large pieces."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = file.seek(0, 2)
        self._begin, self._data = 0, b""

    def at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""
        inside = offset - self._begin
        if inside < 0 or inside + size > len(self._data):
            self._file.seek(offset)
            self._begin, self._data, inside = offset, self._file.read(max(size, 1 << 19)), 0
        return self._data[inside : inside + size]

    def zeros(self, offset: int) -> bool:
        """Whether nothing but zero bytes stands from `offset` to the end."""
        while data := self.at(offset, 1 << 18):
            if data.strip(b"\0"):
                return False
            offset += len(data)
        return True


class _Stream:
    """Bytes onwards from a place, inflated where `zipped`: what is ahead stands in `buffer`, which begins at `at`.

    At the end of a member `end` is the place in the file after it, or `error` says what is broken.
    """

    def __init__(self, raw: _Raw, offset: int, zipped: bool) -> None:
        self.offset, self.at, self.end = offset, 0, offset
        self.buffer = bytearray()
        self.error = ""
        self._raw, self._next = raw, offset
        self._inflater = zlib.decompressobj(31) if zipped else None
        self._over = False

    def pull(self) -> bool:
        """Read on; False at the end."""
        inflater = self._inflater
        while not self._over:
            data = inflater.unconsumed_tail if inflater else b""
            if not data:
                data = self._raw.at(self._next, 1 << 15 if inflater else 1 << 18)
                self._next += len(data)
            if inflater and data:
                try:
                    out = inflater.decompress(data, 1 << 20)
                except zlib.error as error:
                    self._stop(f"the gzip member is damaged ({error})")
                    return False
                if inflater.eof:
                    self._over, self.end = True, self._next - len(inflater.unused_data)
                data = out
            elif not data:
                self._stop("the file ends inside a gzip member" if inflater else "")
            self.buffer += data
            if data:
                return True
        return False

    def have(self, size: int) -> bool:
        """Read on until so many bytes are ahead; False where there are fewer."""
        while len(self.buffer) < size:
            if not self.pull():
                return False
        return True

    def drop(self, size: int) -> None:
        """Go on by so many bytes that are ahead."""
        del self.buffer[:size]
        self.at += size

    def skip(self, size: int) -> bool:
        """Go on by so many bytes, holding few; False where there are fewer."""
        while size > len(self.buffer):
            size -= len(self.buffer)
            self.drop(len(self.buffer))
            if not self.pull():
                return False
        self.drop(size)
        return True

    def place(self) -> str:
        if self._inflater is None:
            return str(self.offset + self.at)
        return f"{self.offset}+{self.at}" if self.at else str(self.offset)

    def _stop(self, error: str) -> None:
        self._over, self.error, self.end = True, error, self._next


def _records(stream: _Stream, wanted: Wanted, end: int | None) -> Iterator[tuple[Record, bytes] | Bad]:
    """The records of a stream, of a plain file those that start before `end`."""
    while True:
        while stream.have(1) and stream.buffer[0] in b"\r\n":
            stream.drop(1)
        if end is not None and stream.offset + stream.at >= end:
            return
        here = stream.place()
        if not stream.have(1):
            if stream.error:
                yield Bad(here, stream.error, b"")
            return
        at = stream.at
        head = _head(stream)
        data = bytes(stream.buffer[:SHOWN])
        if isinstance(head, str):
            problem = head
        else:
            record, size = head
            problem = ""
            stream.have(size + min(record.length, _PEEK))
            takes = wanted(record, bytes(stream.buffer[size : size + _PEEK]))
            if takes and record.length > LIMIT:
                problem = f"the record says it has {record.length} bytes, more than {LIMIT}"
            elif takes or record.length <= _HELD:
                total = size + record.length
                problem = _whole(stream, total, record.length)
                if not problem:
                    if takes:
                        yield record, bytes(stream.buffer[size:total])
                    stream.drop(total)
                data = bytes(stream.buffer[:SHOWN]) if problem else data
            else:
                stream.drop(size)
                early = f"the record ends early, it should have {record.length} bytes"
                problem = _whole(stream, 0, 0) if stream.skip(record.length) else early
        if problem:
            yield Bad(here, problem, data)
            if stream.at == at:
                stream.drop(1)
            if not _search(stream, None):
                return


def _whole(stream: _Stream, total: int, length: int) -> str:
    """What is wrong with a record that should end after `total` bytes; empty where it does."""
    if not stream.have(total):
        return stream.error or f"the record ends early, it should have {length} bytes"
    stream.have(total + 16)
    after = bytes(stream.buffer[total : total + 16])
    rest = after.lstrip(b"\r\n")
    if not rest:
        return stream.error
    if after.startswith(b"\r\n\r\n") or (rest != after and rest.startswith(b"WARC/")):
        return ""
    return f"no record follows after the {length} bytes that it should have"


def _head(stream: _Stream) -> tuple[Record, int] | str:
    """The header that begins here and its size, or what is wrong with it."""
    stream.have(5)
    if stream.buffer[:5] != b"WARC/":
        return stream.error if len(stream.buffer) < 5 and stream.error else "no WARC record begins here"
    while True:
        ends = [at + len(mark) for mark in (b"\r\n\r\n", b"\n\n") if (at := stream.buffer.find(mark, 0, _HEAD)) >= 0]
        if ends:
            break
        if len(stream.buffer) > _HEAD or not stream.pull():
            return stream.error or "the WARC header does not end"
    size = min(ends)
    if stream.buffer.find(_LINE, 0, size) >= 0:
        return "the WARC header does not end"  # another record's begins inside it
    try:
        fields = http.fields(stream.buffer[:size].decode())
    except UnicodeDecodeError as error:
        return f"the WARC header is not UTF-8 at its byte {error.start}"
    length = fields.get("content-length", "")
    if not (length.isascii() and length.isdigit()) or "warc-type" not in fields:
        return "the WARC header has no Content-Length or no WARC-Type"
    return Record(stream.place(), fields, int(length)), size


def _search(stream: _Stream, end: int | None) -> bool:
    """Go on to the next line that begins a record with a readable header; False where none starts before `end`."""
    while True:
        found = stream.buffer.find(_LINE)
        if found >= 0:
            stream.drop(found + 1)
            if end is not None and stream.offset + stream.at >= end:
                return False
            if not isinstance(_head(stream), str):
                return True
            continue
        if len(stream.buffer) >= len(_LINE):
            stream.drop(len(stream.buffer) - len(_LINE) + 1)
        if end is not None and stream.offset + stream.at >= end:
            return False
        if not stream.pull():
            stream.drop(len(stream.buffer))
            return False


def _find_member(raw: _Raw, start: int, end: int) -> int:
    """The first place from `start` where a gzip member begins that holds a record; `end` where there is none."""
    at = start
    while at < end:
        window = raw.at(at, 1 << 18)
        inside = window.find(MAGIC)
        while 0 <= inside < end - at:
            head = window[inside : inside + 4096]
            if len(head) < 4096:
                head = raw.at(at + inside, 4096)
            try:
                if zlib.decompressobj(31).decompress(head, 16).startswith(b"WARC/"):
                    return at + inside
            except zlib.error:
                pass  # the three bytes stand in the middle of something else
            inside = window.find(MAGIC, inside + 1)
        if len(window) < 1 << 18:
            break
        at += len(window) - len(MAGIC) + 1
    return end

"""The files behind a glob, through fsspec: listed, sorted, named below the glob's root, opened, decompressed."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, cast

import pyarrow as pa

from factory.engine.errors import FactoryError
from factory.engine.files import file_identity, locate
from factory.engine.step import Split

CODECS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
STREAM = -1
"""`Split.end` of one stream that is larger than the target and cannot be entered in the middle."""
INFLATED = 4
"""Bytes of text that are expected in a byte of a compressed file: for planning only."""
LIMIT = 1 << 31
"""No record may be larger: Arrow's strings, and most readers of Parquet, end at 2 GB."""
SHOWN = 1 << 16
"""So many bytes of a bad record are kept in its Failure."""

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class File:
    """`path` is the full path or URL, `name` the part below the glob's root, `size` in bytes."""

    path: str
    name: str
    size: int


def root(glob: str) -> str:
    """The fixed part of a glob, with its last slash: `data/cc/` of `data/cc/**/*.gz`; a plain path's folder.

    As fsspec spells it (a local path is absolute), without protocol.
    """
    fs, path = locate(glob)
    magic = _MAGIC.search(path)
    if magic and fs.exists(path):
        magic = None
    fixed = path[: magic.start()] if magic else path
    return fixed[: fixed.rfind("/") + 1]


def below(glob: str, path: str) -> str:
    """The name of a file below the glob's root: what stands in ids, the same wherever the data lies."""
    _, plain = locate(path)
    return str(plain).removeprefix(root(glob))


def find(glob: str) -> list[File]:
    """The files that a path or glob (`**` allowed) names, in the order of their names.

    Raises `FactoryError` where there is none.
    """
    fs, path = locate(glob)
    if not _MAGIC.search(path) or fs.exists(path):
        try:
            info = fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            raise FactoryError(f"no such file: {glob!r}; {_cure()}") from None
        except PermissionError:
            raise FactoryError(f"may not read {glob!r}; change its permissions, or run as its owner") from None
        if info["type"] == "directory":
            raise FactoryError(f"{glob!r} is a folder; name the files in it, for example '{glob.rstrip('/')}/**/*'")
        found = {path: info}
    else:
        found = {p: i for p, i in fs.glob(path, detail=True).items() if i["type"] != "directory"}
    if not found:
        raise FactoryError(f"no file matches {glob!r}; {_cure()}")
    local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
    prefix = root(glob)
    files = [
        File(p if local else fs.unstrip_protocol(p), p.removeprefix(prefix), int(i.get("size") or 0))
        for p, i in found.items()
    ]
    return sorted(files, key=lambda file: file.name)


def identities(glob: str) -> list[dict[str, Any]]:
    """What the files are, apart from where they lie: names below the glob's root (they stand in ids), sizes, edges."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda file: file_identity(file.path, file.name), find(glob)))


def open_file(path: str) -> IO[bytes]:
    """Open for reading, seekable, buffered for reading onwards."""
    try:
        fs, plain = locate(path)
        return cast(IO[bytes], fs.open(plain, "rb", block_size=1 << 22, cache_type="readahead"))
    except FileNotFoundError:
        raise FactoryError(f"no such file: {path!r}; it was there when the run was planned") from None
    except PermissionError:
        raise FactoryError(f"may not read {path!r}; change its permissions, or run as its owner") from None


def codec(path: str) -> str | None:
    """`gzip`, `zstd` or None, by the end of the name."""
    return next((name for end, name in CODECS.items() if path.lower().endswith(end)), None)


class CutError(Exception):
    """A compressed file ends early or is damaged; what came before was given."""


def blocks(path: str, size: int, start: int = 0) -> Iterator[bytes]:
    """The file's bytes from `start`, decompressed where its name says so, in pieces of about `size`.

    Raises `CutError` where a compressed file breaks, after every byte before that place.
    """
    kind = codec(path)
    if kind is None:
        with open_file(path) as file:
            file.seek(start)
            while block := file.read(size):
                yield block
        return
    done = 0
    with open_file(path) as file:
        if file.read(1) == b"":
            return
        file.seek(0)
        if kind == "gzip":
            yield from _gunzip(file, size)
            return
        stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), kind)
        try:
            while block := stream.read(size):
                done += len(block)
                yield block
            return
        except OSError as error:
            reason = str(error)
    # A read that fails gives nothing of what it had inflated: go there again, a byte at a time.
    with open_file(path) as file:
        stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), kind)
        for step in _steps(done):
            stream.read(step)
        rest = bytearray()
        try:
            while byte := stream.read(1):
                rest += byte
        except OSError:
            pass  # the same error as before: it is raised below, after the bytes
    if rest:
        yield bytes(rest)
    raise CutError(f"the file is cut or damaged ({reason})")


def _gunzip(file: IO[bytes], size: int) -> Iterator[bytes]:
    """The bytes of gzip members one after the other, in pieces of `size`; zero bytes at the file's end are padding."""
    out, problem = bytearray(), ""
    stream = zlib.decompressobj(31)
    while data := stream.unconsumed_tail or stream.unused_data or file.read(1 << 18):
        if stream.eof:
            if not data.strip(b"\0") and not any(more.strip(b"\0") for more in iter(lambda: file.read(1 << 18), b"")):
                break
            stream = zlib.decompressobj(31)
        before = stream.copy()
        try:
            out += stream.decompress(data, size - len(out))
        except zlib.error as error:
            problem = str(error)
            # A call that fails gives nothing of what it had inflated: do it again, a byte at a time.
            with contextlib.suppress(zlib.error):
                for at in range(len(data)):
                    out += before.decompress(data[at : at + 1])
            break
        if len(out) == size:
            yield bytes(out)
            out.clear()
    if not stream.eof and not problem:
        problem = "it ends inside a gzip member"
        out += stream.flush()
    if out:
        yield bytes(out)
    if problem:
        raise CutError(f"the file is cut or damaged ({problem})")


def ranges(file: File, target: int, ratio: int = 1) -> list[Split]:
    """Byte ranges of a file, each about `target` bytes of text; `ratio` is text per byte of file."""
    pieces = max(1, min(file.size, round(file.size * ratio / max(target, 1))))
    bounds = [file.size * i // pieces for i in range(pieces + 1)]
    return [Split(file.path, first, last, (last - first) * ratio) for first, last in itertools.pairwise(bounds)]


def groups(files: list[File], path: str, target: int) -> list[Split]:
    """Ranges of a list of small files, each about `target` bytes: `start` and `end` are places in the list."""
    splits, first, size = [], 0, 0
    for at, file in enumerate(files):
        if size and size + file.size > target:
            splits.append(Split(path, first, at, size))
            first, size = at, 0
        size += file.size
    splits.append(Split(path, first, len(files), size))
    return splits


def _steps(total: int) -> Iterator[int]:
    while total > 0:
        yield min(total, 1 << 20)
        total -= 1 << 20


def _cure() -> str:
    return f"check `glob` (relative paths begin at {os.getcwd()!r})"


def read_whole(file: IO[Any], limit: int = LIMIT) -> bytes | None:
    """All of an open file, or None where it is larger than `limit`."""
    data = bytes(file.read(limit))
    return None if len(data) >= limit else data

"""Files on any file system that fsspec knows: written aside and renamed, so that a reader sees a whole file or none.

A location is a local path or a URL (`s3://…`). On a local file system a file is written beside its place and renamed;
on an object store it is written here and put in one request, which is atomic there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import xxhash
from fsspec.implementations.local import LocalFileSystem

from factory.engine.errors import FactoryError

TEMPORARY = ".tmp"


def locate(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a location and the path in it."""
    try:
        return fsspec.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise FactoryError(f"{url}: cannot open this kind of location: {error}") from error


def is_local(url: str) -> bool:
    return isinstance(locate(url)[0], LocalFileSystem)


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *parts])


def exists(url: str) -> bool:
    fs, path = locate(url)
    return bool(fs.exists(path))


def make_folder(url: str) -> None:
    """Create a folder and its parents; FactoryError names the folder where that is not allowed."""
    fs, path = locate(url)
    try:
        fs.makedirs(path, exist_ok=True)
    except OSError as error:
        raise FactoryError(
            f"{url}: cannot write to this folder ({error.strerror or error}): choose another with --out or FACTORY_RUNS"
        ) from error


def read_bytes(url: str) -> bytes:
    fs, path = locate(url)
    with fs.open(path, "rb") as file:
        return bytes(file.read())


def read_json(url: str) -> Any:
    return json.loads(read_bytes(url))


@contextlib.contextmanager
def aside(url: str, first_wins: bool = False) -> Iterator[str]:
    """A local path to write to, which becomes `url` when the block ends well, and is removed when it does not.

    With `first_wins` a file that is already there stays: of two workers that did the same task, one commits.
    """
    fs, path = locate(url)
    local = isinstance(fs, LocalFileSystem)
    folder, name = os.path.split(path) if local else (tempfile.gettempdir(), os.path.basename(path))
    if local:
        os.makedirs(folder, exist_ok=True)
    scratch = os.path.join(folder, f".{name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        yield scratch
        if not local:
            if not (first_wins and fs.exists(path)):
                fs.put_file(scratch, path)
        elif first_wins:
            _link_or_replace(scratch, path)
        else:
            os.replace(scratch, path)
    except OSError as error:
        raise told(error, url) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(scratch)


def _link_or_replace(scratch: str, path: str) -> None:
    try:
        os.link(scratch, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not os.path.exists(path):
            os.replace(scratch, path)


def told(error: Exception, url: str) -> Exception:
    """A full disk as a line for the user; any other error as it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FactoryError(f"{url}: the disk is full: free some space or choose another with --out, then run again")
    return error


def write_atomic(url: str, data: bytes | str, first_wins: bool = False) -> None:
    """Write a whole small file."""
    with aside(url, first_wins) as scratch, open(scratch, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(url: str, value: Any, first_wins: bool = False) -> None:
    write_atomic(url, json.dumps(value, indent=1, ensure_ascii=False) + "\n", first_wins)


def share(source: str, target: str) -> None:
    """Give a finished file a second name: a hard link where the file system has them, a copy elsewhere."""
    fs, path = locate(source)
    if isinstance(fs, LocalFileSystem):
        target_path = locate(target)[1]
        os.makedirs(os.path.dirname(target_path), exist_ok=True)
        if os.path.exists(target_path) and os.path.samefile(path, target_path):
            return
        with aside(target) as scratch:
            try:
                os.link(path, scratch)
            except OSError:
                shutil.copyfile(path, scratch)
    else:
        fs.copy(path, locate(target)[1])


def matching(pattern: str) -> list[str]:
    """The locations that match a glob, sorted."""
    fs, path = locate(pattern)
    return sorted(str(fs.unstrip_protocol(found)) for found in fs.glob(path))


def size(url: str) -> int:
    fs, path = locate(url)
    return int(fs.size(path))


def move(source: str, target: str) -> None:
    """Rename a file, in place of any that is there."""
    fs, path = locate(source)
    if isinstance(fs, LocalFileSystem):
        os.replace(path, locate(target)[1])
    else:
        fs.mv(path, locate(target)[1])


def remove(url: str) -> None:
    """Remove a file, where it is there."""
    fs, path = locate(url)
    if fs.exists(path):
        fs.rm(path)


def remove_tree(url: str) -> None:
    fs, path = locate(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def remove_leftovers(url: str) -> None:
    """Remove what killed writers left aside below a folder. Only the run that owns the folder may call it."""
    fs, path = locate(url)
    if isinstance(fs, LocalFileSystem):
        for folder, folders, names in os.walk(path):
            for name in [n for n in folders if n.endswith(TEMPORARY)]:
                shutil.rmtree(os.path.join(folder, name))
                folders.remove(name)
            for name in [n for n in names if n.endswith(TEMPORARY)]:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(folder, name))


@contextlib.contextmanager
def locked(path: str, waiting: str = "") -> Iterator[None]:
    """Hold a lock file of the local file system, after the line `waiting` where another process holds it. Released
    however the process ends."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if waiting:
                print(waiting, file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest(value: Any) -> str:
    """xxh3-128 of a value's canonical JSON: equal values, equal digests, on any machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return xxhash.xxh3_128_hexdigest(text.encode())


def hash_file(path: Path) -> str:
    """xxh3-128 of all of a local file, in hexadecimal."""
    found = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                found.update(block)
    except OSError as error:
        raise FactoryError(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from error
    return found.hexdigest()


def file_identity(url: str, name: str) -> dict[str, Any]:
    """Who an input file is: its name below the glob's root, its size, xxh3 of its first and last 64 KiB.

    Neither time nor folder: a copy on another machine is the same input.
    """
    fs, path = locate(url)
    size = int(fs.size(path))
    edge = 1 << 16
    with fs.open(path, "rb") as file:
        head = file.read(edge)
        file.seek(max(0, size - edge))
        tail = file.read(edge)
    return {"path": name, "bytes": size, "edges": xxhash.xxh3_128_hexdigest(head + tail)}

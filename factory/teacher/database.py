"""What is kept on a disk of this machine, so that it is not asked or worked out again: a SQLite file in a folder.

In WAL mode several processes of one machine read and write it at once, a kill at any moment loses nothing that was
committed and tears nothing, and memory stays bounded whatever it holds. The folder must lie on a disk of the machine
(WAL needs shared memory, which network file systems lack).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator
from typing import ClassVar

from factory.engine import files
from factory.engine.errors import FactoryError
from factory.engine.step import Context

WAIT = 120.0
"""Seconds to wait for another process's write, which takes milliseconds."""


def folder_of(option: str, context: Context) -> str:
    """The folder that a step's option `cache` names, else FACTORY_CACHE, else `.answers` in the folder of the runs."""
    folder = option or os.environ.get("FACTORY_CACHE") or files.join(context.root, ".answers")
    if not files.is_local(folder):
        raise FactoryError(f"{folder}: answers are kept on a disk of this machine: name a folder in FACTORY_CACHE")
    return folder


class Database:
    """Tables in a folder; with None they are in memory. Safe in threads and in processes."""

    file: ClassVar[str]
    tables: ClassVar[str]
    """SQL that makes what is not there yet."""
    holds: ClassVar[str]
    """What is in it, for errors."""
    format: ClassVar[int] = 1

    def __init__(self, folder: str | None) -> None:
        self.folder = folder
        # A long look-up holds up no writer, in this process or another.
        self._writing, self._reading = threading.Lock(), threading.Lock()
        if folder is None:
            self.path = ":memory:"
            self._db = self._reader = self._open()
            return
        if not files.is_local(folder):
            raise FactoryError(f"{folder}: a cache of {self.holds} lies in a folder of this machine, not at a URL")
        files.make_folder(folder)
        self.path = os.path.join(files.locate(folder)[1], self.file)
        # Two that create it at the same moment would see each other's half-made tables.
        with self.told(), files.locked(self.path + ".lock"):
            self._db, self._reader = self._open(), self._open()

    def _open(self) -> sqlite3.Connection:
        with self.told():
            db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, self.format):
                raise FactoryError(f"{self.path}: written by another version of factory: name another folder")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last rows, a kill loses none
            db.execute("PRAGMA cache_size = -32768")  # KiB
            db.executescript(self.tables)
            db.execute(f"PRAGMA user_version = {self.format}")
            return db

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """What is wrong with the files is an error for the user."""
        try:
            yield
        except (sqlite3.Error, zlib.error, OSError) as error:
            full = any(words in str(error) for words in ("is full", "No space", "quota"))
            cure = "free some space" if full else "move it away, or name another folder"
            raise FactoryError(f"{self.path}: the cache of {self.holds} cannot be used: {error}: {cure}") from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it or nothing."""
        with self._writing, self.told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """What is committed."""
        with self._reading, self.told():
            yield self._reader

    def close(self) -> None:
        with self._writing, self._reading:
            self._reader.close()
            self._db.close()

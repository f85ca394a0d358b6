"""Every sample that a model gave, on disk, by the identity of what was asked: what was answered is never asked again.

One SQLite database in a folder, in WAL mode: several processes of one machine read and write it at once, a kill at any
moment loses no committed answer and tears none, and memory stays bounded whatever it holds. The folder must lie on a
disk of the machine (WAL needs shared memory, which network file systems lack).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from factory.engine import files
from factory.engine.errors import FactoryError
from factory.teacher.request import Choice, Logprob, Request

FORMAT = 1
WAIT = 120.0
"""Seconds to wait for another process's write, which takes milliseconds."""
TABLES = """
CREATE TABLE IF NOT EXISTS answers (key BLOB NOT NULL, sample INTEGER NOT NULL, value BLOB NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS answers_by_key ON answers (key, sample);
CREATE TABLE IF NOT EXISTS spent (
    name TEXT PRIMARY KEY, requests INTEGER NOT NULL DEFAULT 0, samples INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER NOT NULL DEFAULT 0, completion_tokens INTEGER NOT NULL DEFAULT 0,
    requests_at REAL NOT NULL DEFAULT 0, tokens_at REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS in_flight (
    worker TEXT NOT NULL, name TEXT NOT NULL, requests INTEGER NOT NULL, samples INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, PRIMARY KEY (worker, name));
"""


class Sample(NamedTuple):
    """One sample of a request, as the cache keeps it."""

    choice: Choice
    prompt_tokens: int
    model: str
    fingerprint: str


def key_of(identity: str, request: Request) -> bytes:
    """What names the samples of a request: the model, the text, and all sampling values but n, which only says how
    many of them are wanted. 16 bytes of BLAKE2b."""
    sampling = request.sampling
    asked = [
        identity,
        [[m.role, m.content] for m in request.messages],
        request.prompt,
        float(sampling.temperature) + 0.0,  # never -0.0
        float(sampling.top_p),
        sampling.max_tokens,
        sampling.seed,
        sampling.stop,
        sampling.logprobs,
        sampling.json_schema,
    ]
    # Escapes keep what UTF-8 cannot hold: a lone surrogate has a key too.
    return hashlib.blake2b(json.dumps(asked).encode(), digest_size=16).digest()


CHOICE = tuple(field.name for field in dataclasses.fields(Choice))


def pack(sample: Sample) -> bytes:
    choice, *rest = sample
    return zlib.compress(json.dumps([[getattr(choice, name) for name in CHOICE], *rest]).encode(), 1)


def unpack(value: bytes) -> Sample:
    fields, *rest = json.loads(zlib.decompress(value))
    found = dict(zip(CHOICE, fields, strict=True))
    if found["logprobs"] is not None:
        found["logprobs"] = tuple(Logprob(t, p, tuple((a, b) for a, b in top)) for t, p, top in found["logprobs"])
    return Sample(Choice(**found), *rest)


class Cache:
    """The answers in a folder. With None nothing is kept. Safe in threads and in processes."""

    def __init__(self, folder: str | None) -> None:
        self.folder = folder
        # A long look-up holds up no writer, in this process or another.
        self._writing, self._reading = threading.Lock(), threading.Lock()
        if folder is None:
            self.path = ":memory:"
            self._db = self._reader = self._open()
            return
        if not files.is_local(folder):
            raise FactoryError(f"{folder}: a cache of answers lies in a folder of this machine, not at a URL")
        files.make_folder(folder)
        self.path = os.path.join(files.locate(folder)[1], "answers.sqlite")
        # Two that create it at the same moment would see each other's half-made tables.
        with self.told(), files.locked(self.path + ".lock"):
            self._db, self._reader = self._open(), self._open()

    def _open(self) -> sqlite3.Connection:
        with self.told():
            db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, FORMAT):
                raise FactoryError(f"{self.path}: written by another version of factory: name another folder")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last answers, a kill loses none
            db.execute("PRAGMA cache_size = -32768")  # KiB
            db.executescript(TABLES)
            db.execute(f"PRAGMA user_version = {FORMAT}")
            return db

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """What is wrong with the files is an error for the user."""
        try:
            yield
        except (sqlite3.Error, zlib.error, OSError) as error:
            full = any(words in str(error) for words in ("is full", "No space", "quota"))
            cure = "free some space" if full else "move it away, or name another folder"
            raise FactoryError(f"{self.path}: the cache of answers cannot be used: {error}: {cure}") from error

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

    def get(self, wanted: Sequence[tuple[bytes, int]]) -> list[list[Sample]]:
        """Of each (key, n) the samples 0, 1, … below n that are known, up to the first that is not."""
        if self.folder is None:
            return [[] for _ in wanted]
        with self._reading, self.told():
            return [_known(self._reader, key, n) for key, n in wanted]

    def put(
        self, found: Sequence[tuple[bytes, int, list[Sample]]], also: Callable[[sqlite3.Connection], None]
    ) -> list[list[Sample]]:
        """Keep samples first, first + 1, … of each key, and do `also` in the same transaction.

        Where another process was first, its samples stand: they are returned, so that all see the same.
        """
        rows = [
            (key, first + place, pack(sample))
            for key, first, samples in (found if self.folder is not None else [])
            for place, sample in enumerate(samples)
        ]
        with self.writing() as db:
            kept = db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", rows).rowcount if rows else 0
            also(db)
            if kept == len(rows):
                return [samples for _, _, samples in found]
            return [_known(db, key, first + len(samples))[first:] for key, first, samples in found]

    def close(self) -> None:
        with self._writing, self._reading:
            self._reader.close()
            self._db.close()


def _known(db: sqlite3.Connection, key: bytes, n: int) -> list[Sample]:
    query = "SELECT sample, value FROM answers WHERE key = ? AND sample < ? ORDER BY sample"
    found = db.execute(query, (key, n)).fetchall()
    return [unpack(value) for place, (sample, value) in enumerate(found) if sample == place]

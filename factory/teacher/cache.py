"""Every sample that a model gave, on disk, by the identity of what was asked: nothing is asked twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from factory.teacher.database import Database
from factory.teacher.request import Choice, Logprob, Request

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


class Cache(Database):
    """The answers in a folder. With None nothing is kept. Safe in threads and in processes."""

    file = "answers.sqlite"
    tables = TABLES
    holds = "answers"

    def get(self, wanted: Sequence[tuple[bytes, int]]) -> list[list[Sample]]:
        """Of each (key, n) the samples 0, 1, … below n that are known, up to the first that is not."""
        if self.folder is None:
            return [[] for _ in wanted]
        with self.reading() as db:
            return [_known(db, key, n) for key, n in wanted]

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


def _known(db: sqlite3.Connection, key: bytes, n: int) -> list[Sample]:
    query = "SELECT sample, value FROM answers WHERE key = ? AND sample < ? ORDER BY sample"
    found = db.execute(query, (key, n)).fetchall()
    return [unpack(value) for place, (sample, value) in enumerate(found) if sample == place]

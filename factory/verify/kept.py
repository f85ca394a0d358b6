"""Verdicts that may come out otherwise the next time, such as a program's that ends by a limit of time: kept on disk.

The law of datasets with such verdicts is: the same bytes given the same response and verdict cache.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from factory.teacher.database import Database
from factory.verify.check import Check

TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (
    key BLOB PRIMARY KEY, passed INTEGER NOT NULL, reason TEXT NOT NULL, score REAL NOT NULL) WITHOUT ROWID;
"""


def key_of(identity: Sequence[Any], response: str, arguments: Mapping[str, Any]) -> bytes:
    """What names a verdict: the verifier, the response, and what it is checked against. 16 bytes of BLAKE2b."""
    asked = json.dumps([identity, response, arguments], sort_keys=True, default=repr)
    return hashlib.blake2b(asked.encode(), digest_size=16).digest()


class Verdicts(Database):
    """The verdicts in a folder."""

    file = "verdicts.sqlite"
    tables = TABLES
    holds = "verdicts"

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Check]:
        """The verdicts that are known, by key."""
        with self.reading() as db:
            return _known(db, keys)

    def put(self, found: Mapping[bytes, Check]) -> dict[bytes, Check]:
        """Keep verdicts. Where another process was first, its verdict stands, and is returned."""
        if not found:
            return {}
        rows = [(key, check.passed, check.reason, check.score) for key, check in found.items()]
        with self.writing() as db:
            kept = db.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)", rows).rowcount
            if kept == len(rows):
                return dict(found)
            return {**found, **_known(db, list(found))}


def _known(db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Check]:
    query = "SELECT passed, reason, score FROM verdicts WHERE key = ?"
    rows = ((key, db.execute(query, (key,)).fetchone()) for key in keys)
    return {key: Check(bool(row[0]), row[1], row[2]) for key, row in rows if row}

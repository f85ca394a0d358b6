"""What may be spent on asking, and how fast: counted over all workers that share a cache folder, and over resumes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from factory.engine.errors import FactoryError
from factory.teacher.cache import Cache
from factory.teacher.engine import Ask

BYTES_A_TOKEN = 4
"""Of a prompt, before the server has counted its tokens."""
POLL = 0.02
"""Seconds after which a worker looks again whether a budget that others use has room."""
BURST = 1.0
"""Seconds' worth of a rate that may come at once."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of what is asked under a name with a cache folder, ever. What the cache answers costs nothing."""

    name: str = "default"
    """A new name begins at nothing spent."""
    requests: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    money: float | None = None
    """In the currency of the prices."""
    prompt_price: float = 0.0
    completion_price: float = 0.0
    """Of a million tokens."""
    requests_a_minute: float | None = None
    tokens_a_minute: float | None = None
    """Prompt and completion."""

    def __post_init__(self) -> None:
        if self.money is not None and self.prompt_price <= 0 and self.completion_price <= 0:
            raise FactoryError("a budget of money needs prompt_price or completion_price, of a million tokens")
        for name in ("requests_a_minute", "tokens_a_minute"):
            if (rate := getattr(self, name)) is not None and rate <= 0:
                raise FactoryError(f"{name} = {rate:g}: give more than 0, or leave it out")

    def cost(self, use: Use) -> float:
        return (use.prompt_tokens * self.prompt_price + use.completion_tokens * self.completion_price) / 1e6


class Spent(FactoryError):
    """A budget allows no further request."""


class Use(NamedTuple):
    """What requests took."""

    requests: int = 0
    samples: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, other: Use) -> Use:
        return Use(*(a + b for a, b in zip(self, other, strict=True)))


COLUMNS = ", ".join(Use._fields)


class Ledger:
    """Holds a worker to a budget.

    Tokens are known only when an answer comes: until then a request is held to take what a sample took on average so
    far (at first, all that it may take). So the tokens and the money may pass a limit by as much as the requests in
    flight differ from that average; the number of requests never does.
    """

    def __init__(self, cache: Cache, budget: Budget) -> None:
        self.cache, self.budget = cache, budget
        limits = (budget.requests, budget.prompt_tokens, budget.completion_tokens, budget.money)
        self.limited = any(x is not None for x in (*limits, budget.requests_a_minute, budget.tokens_a_minute))
        self.worker = uuid.uuid4().hex
        self._alive = None
        if self.limited and cache.folder is not None:
            # Locked while this process lives, however it ends: so others can tell.
            with cache.told():
                os.makedirs(os.path.dirname(self._mark(self.worker)), exist_ok=True)
                self._alive = open(self._mark(self.worker), "w")  # noqa: SIM115
                fcntl.flock(self._alive, fcntl.LOCK_EX)
        with cache.writing() as db:
            db.execute("INSERT OR IGNORE INTO spent (name) VALUES (?)", (budget.name,))
            if self.limited:
                db.execute("INSERT INTO in_flight VALUES (?, ?, 0, 0, 0, 0)", (self.worker, budget.name))

    def _mark(self, worker: str) -> str:
        return os.path.join(os.path.dirname(self.cache.path), "workers", worker)

    def spent(self) -> Use:
        """By all workers, ever, under this name."""
        with self.cache.writing() as db:
            return self._spent(db)

    def _spent(self, db: sqlite3.Connection) -> Use:
        return Use(*db.execute(f"SELECT {COLUMNS} FROM spent WHERE name = ?", (self.budget.name,)).fetchone())

    def reserve(self, asks: Sequence[Ask]) -> tuple[list[Use], float]:
        """What each of the first asks is held to take, for as many as may be sent now; and the seconds after which to
        try again for others. Spent where the budget allows none, and nothing in flight could change that."""
        if not self.limited:
            return [Use()] * len(asks), 0.0
        with self.cache.writing() as db:
            spent, held = self._spent(db), self._held(db)
            granted: list[Use] = []
            wait = 0.0
            pace = Pace(self.budget, db)
            for ask in asks:
                use = expected(ask, spent)
                held = held.plus(use)
                if self.exceeded(spent.plus(held)) or (wait := pace.wait()):
                    break
                pace.take(use)
                granted.append(use)
            pace.save()
            _add(db, "in_flight", "worker", self.worker, sum_of(granted))
            over = ""
            if not granted and not wait:
                self._bury(db)
                spent = self._spent(db)
                if not self._held(db).requests:
                    over = self.exceeded(spent.plus(expected(asks[0], spent)))
        if over:
            raise Spent(self._told(over, spent))
        return granted, max(wait, POLL)

    def exceeded(self, use: Use) -> str:
        """The first limit that so much would pass; empty where it passes none."""
        for name in ("requests", "prompt_tokens", "completion_tokens"):
            limit = getattr(self.budget, name)
            if limit is not None and getattr(use, name) > limit:
                return name
        return "money" if self.budget.money is not None and self.budget.cost(use) > self.budget.money else ""

    def _told(self, limit: str, spent: Use) -> str:
        priced = self.budget.prompt_price + self.budget.completion_price > 0
        money = f", {self.budget.cost(spent):,.2f} of money" if priced else ""
        return (
            f"the budget {self.budget.name!r} is spent: {limit} = {getattr(self.budget, limit):,} allows no further "
            f"request after {spent.requests:,} with {spent.prompt_tokens:,} prompt and {spent.completion_tokens:,} "
            f"completion tokens{money}"
        )

    def settle(self, db: sqlite3.Connection, taken: Use, held: Use) -> None:
        """Requests ended: `taken` is what they took, `held` what `reserve` said that they would."""
        _add(db, "spent", "name", self.budget.name, taken)
        if self.limited:
            _add(db, "in_flight", "worker", self.worker, Use(*(-x for x in held)))

    def _held(self, db: sqlite3.Connection) -> Use:
        columns = ", ".join(f"coalesce(sum({name}), 0)" for name in Use._fields)
        return Use(*db.execute(f"SELECT {columns} FROM in_flight WHERE name = ?", (self.budget.name,)).fetchone())

    def _bury(self, db: sqlite3.Connection, mine: bool = False) -> None:
        """Count what was in flight at killed workers (or mine) as spent: the server may have done it."""
        for worker, name, *use in db.execute(f"SELECT worker, name, {COLUMNS} FROM in_flight").fetchall():
            if mine if worker == self.worker else self._dead(worker):
                _add(db, "spent", "name", name, Use(*use))
                db.execute("DELETE FROM in_flight WHERE worker = ?", (worker,))

    def _dead(self, worker: str) -> bool:
        try:
            with open(self._mark(worker)) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.remove(file.name)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        return True

    def close(self, unsent: Use = Use()) -> None:  # noqa: B008
        """What this worker holds counts as spent, but for what was not sent."""
        with self.cache.writing() as db:
            self.settle(db, Use(), unsent)
            self._bury(db, mine=True)
        if self._alive is not None:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._alive.name)
            self._alive.close()


def _add(db: sqlite3.Connection, table: str, column: str, name: str, use: Use) -> None:
    assign = ", ".join(f"{field} = {field} + ?" for field in Use._fields)
    db.execute(f"UPDATE {table} SET {assign} WHERE {column} = ?", (*use, name))


def sum_of(uses: Sequence[Use]) -> Use:
    return Use(*(sum(column) for column in zip(*uses, strict=True))) if uses else Use()


def expected(ask: Ask, spent: Use) -> Use:
    request = ask.request
    size = sum(len(message.content.encode(errors="replace")) for message in request.messages)
    size += len(request.prompt.encode(errors="replace"))
    mean = spent.completion_tokens / spent.samples if spent.samples else request.sampling.max_tokens
    completion = round(ask.count * min(mean, request.sampling.max_tokens))
    return Use(1, ask.count, -(-size // BYTES_A_TOKEN), completion)


class Pace:
    """The rates, by the generic cell rate algorithm (ITU-T I.371): each rate keeps the time up to which it is used."""

    def __init__(self, budget: Budget, db: sqlite3.Connection) -> None:
        self.rates = (budget.requests_a_minute, budget.tokens_a_minute)
        self.db, self.name, self.now = db, budget.name, time.time()
        self.on = any(rate is not None for rate in self.rates)
        query = "SELECT requests_at, tokens_at FROM spent WHERE name = ?"
        # A clock that was set back holds nobody up for longer than a minute.
        self.at = [min(max(at, self.now - BURST), self.now + 60) for at in db.execute(query, (budget.name,)).fetchone()]

    def wait(self) -> float:
        """Seconds until the next request may go."""
        over = [at - self.now for at, rate in zip(self.at, self.rates, strict=True) if rate is not None]
        return max(0.0, *over) if over else 0.0

    def take(self, use: Use) -> None:
        for place, amount in enumerate((use.requests, use.prompt_tokens + use.completion_tokens)):
            if rate := self.rates[place]:
                self.at[place] += amount * 60 / rate

    def save(self) -> None:
        if self.on:
            self.db.execute("UPDATE spent SET requests_at = ?, tokens_at = ? WHERE name = ?", (*self.at, self.name))

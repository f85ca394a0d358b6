"""What an engine is: it takes asks as it has room for them, and says what came of each, in any order.

A batch engine is a loop:

    def answer(self, asks, done):
        while batch := asks.take(self.batch):
            done([(ask, self.generate(ask.request, ask.first)) for ask in batch])

One that keeps many in flight takes new ones as old ones end, and has itself woken with `asks.wake`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from factory.engine import files
from factory.teacher.request import Failed, Request, Response


@dataclass(frozen=True, eq=False)
class Ask:
    """The samples `first` to `request.sampling.n - 1` of a request: those before are known from the cache."""

    request: Request
    first: int = 0
    slot: Any = None
    """The teacher's own mark."""

    @property
    def count(self) -> int:
        """How many samples to make."""
        return self.request.sampling.n - self.first

    @property
    def seed(self) -> int | None:
        """The seed of the first sample to make; sample i of a request has `sampling.seed + i`, however it is asked."""
        seed = self.request.sampling.seed
        return None if seed is None else seed + self.first


Done = Callable[[Sequence[tuple[Ask, Response | Failed]]], None]
"""Called with what has come of some asks: a Response with `ask.count` choices, or why there is none."""


class Engine(Protocol):
    """A way to ask a model."""

    identity: str
    """Which model it is, wherever it runs: part of the identity of everything that it says."""

    def answer(self, asks: Asks, done: Done) -> None:
        """Answer asks until `asks.take` gives none; a thread of the teacher's calls it, once, and `done` only there.

        A request that cannot be answered is `Failed`. FactoryError where none can be: it ends the run. Once
        `asks.closed`, no answer is waited for any more: what is in flight may be given up.
        """

    def close(self) -> None:
        """Let go of models and connections. Called after `answer` has returned."""


class Asks:
    """The asks that wait for an engine: put by the threads that ask, taken by the engine's."""

    def __init__(self) -> None:
        self.closed = False
        self.wake: Callable[[], None] = lambda: None
        """Called, by another thread, after asks were put or the end has come."""
        self._waiting: deque[Ask] = deque()
        self._changed = threading.Condition()

    def take(self, most: int, wait: bool = True) -> list[Ask]:
        """Up to `most` asks, in the order to send them; with `wait`, at least one, and [] only at the end."""
        with self._changed:
            while wait and not self._waiting and not self.closed:
                self._changed.wait()
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def put(self, asks: Iterable[Ask]) -> None:
        with self._changed:
            self._waiting.extend(asks)
            self._changed.notify()
        self.wake()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def close(self) -> list[Ask]:
        """Nothing comes any more, and what was not taken is not wanted: it is returned."""
        with self._changed:
            left = list(self._waiting)
            self._waiting.clear()
            self.closed = True
            self._changed.notify_all()
        self.wake()
        return left


OF_A_MODEL = (".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".txt")
"""Ends of the files of a checkpoint that decide what it says: weights, configuration, tokenizer, chat template."""


def identify(model: str, revision: str = "") -> str:
    """Who a model is: its name, with the revision; of a checkpoint's folder a hash of its files, wherever it lies."""
    folder = Path(model)
    if not (folder / "config.json").is_file():
        return f"{model}@{revision}" if revision else model
    parts = []
    for path in sorted(folder.iterdir()):
        if path.suffix in OF_A_MODEL and not path.name.startswith("."):
            parts.append([path.name, files.hash_file(path)])
    return f"checkpoint {files.digest(parts)}"

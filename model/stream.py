"""The order of the training sequences: it depends on the seed alone, and any place in it can be read at once.

So a training that goes on at step n reads exactly what it would have read, and any number of ranks, each taking its
part of every batch, read together what one process reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from factory.engine.errors import FactoryError
from model.data import IGNORE, Span, read

PATTERN = 10_000  # sequences after which the sets' order in a mixture repeats: the smallest share is a part of it
CUTS = (2, 4, 8)  # sequences that are not of the full length are cut into so many pieces


@dataclass(frozen=True)
class Window:
    """Sequences that are shuffled together: the first one's place in the stream, their order, their tokens."""

    start: int
    order: np.ndarray
    tokens: np.ndarray


class Stream:
    """The endless stream of one dataset's sequences, shuffled anew in each epoch.

    Blocks (the sequences that begin in one row group) are taken in a random order, as many at a time as hold
    `shuffle_tokens`, and the sequences of these are shuffled together: a small dataset is shuffled as a whole, and a
    large one needs no more memory. While one window is used the next is read.
    """

    def __init__(self, spans: Sequence[Span], length: int, seed: Sequence[int], shuffle_tokens: int = 1 << 26) -> None:
        self.length, self.seed, self.shuffle_tokens = length, list(seed), shuffle_tokens
        self.blocks = [block for span in spans for block in blocks(span, length)]
        self.counts = [-(-block.tokens // length) for block in self.blocks]
        self.rows = sum(self.counts)
        self._windows: dict[tuple[int, int], Future[Window]] = {}
        self._plans: dict[int, tuple[list[list[int]], np.ndarray]] = {}
        self._reader = ThreadPoolExecutor(1, "data")

    def ahead(self, position: int) -> None:
        """Begin to read the window of this position."""
        number, start = self._number(position)
        now = (position // self.rows, number)
        if now not in self._windows:
            self._windows[now] = self._submit(now, start)

    def batch(self, position: int, count: int) -> np.ndarray:
        """Sequences position .. position + count of the stream: int32 [count, length], IGNORE after a short one."""
        parts = [np.empty((0, self.length), np.int32)]
        while count:
            window = self._load(position)
            rows = window.order[position - window.start : position - window.start + count]
            parts.append(window.tokens[rows])
            position, count = position + len(rows), count - len(rows)
        return np.concatenate(parts)

    def place(self, position: int) -> str:
        """Shard, row group and row in it where a sequence begins, for messages."""
        window = self._load(position)
        row = int(window.order[position - window.start])
        for number in self._plan(position // self.rows)[0][self._number(position)[0]]:
            if row < self.counts[number]:
                block = self.blocks[number]
                return block.shard.row_of(block.begin + row * self.length)
            row -= self.counts[number]
        raise AssertionError("a window holds fewer sequences than its order")

    def _plan(self, epoch: int) -> tuple[list[list[int]], np.ndarray]:
        """The blocks of each window of an epoch, and the place in the epoch of each window's first sequence."""
        if epoch not in self._plans:
            windows: list[list[int]] = []
            starts: list[int] = []
            size = rows = 0
            for number in np.random.default_rng([*self.seed, 2, epoch]).permutation(len(self.blocks)).tolist():
                tokens = self.counts[number] * self.length
                if not windows or size + tokens > self.shuffle_tokens:
                    windows.append([])
                    starts.append(rows)
                    size = 0
                windows[-1].append(number)
                size, rows = size + tokens, rows + self.counts[number]
            near = {old: plan for old, plan in self._plans.items() if abs(old - epoch) <= 1}
            self._plans = near | {epoch: ([sorted(window) for window in windows], np.array(starts))}
        return self._plans[epoch]

    def _number(self, position: int) -> tuple[int, int]:
        """The window of its epoch in which a position lies, and the window's first position."""
        epoch, inside = divmod(position, self.rows)
        starts = self._plan(epoch)[1]
        number = int(np.searchsorted(starts, inside, "right")) - 1
        return number, epoch * self.rows + int(starts[number])

    def _load(self, position: int) -> Window:
        epoch, (number, start) = position // self.rows, self._number(position)
        now = (epoch, number)
        count = len(self._plan(epoch)[0])
        then = (epoch, number + 1) if number + 1 < count else (epoch + 1, 0)
        if now not in self._windows:
            self._windows = {now: self._submit(now, start)}
        window = self._windows[now].result()
        if then not in self._windows:
            # An epoch of one window has the tokens of the next in memory.
            tokens = window.tokens if count == 1 else None
            self._windows = {now: self._windows[now], then: self._submit(then, start + len(window.order), tokens)}
        return window

    def _submit(self, window: tuple[int, int], start: int, tokens: np.ndarray | None = None) -> Future[Window]:
        blocks = [self.blocks[block] for block in self._plan(window[0])[0][window[1]]]

        def work() -> Window:
            found = read(blocks, self.length) if tokens is None else tokens
            return Window(start, np.random.default_rng([*self.seed, 3, *window]).permutation(len(found)), found)

        return self._reader.submit(work)


class Mixture:
    """The sequences of several streams, each with its share of them, evenly interleaved; with `maximum_share` below 1
    the other sequences of each stream are cut into shorter ones.

    Shares are kept to 1 / PATTERN, and in any stretch of the stream to a few sequences.
    """

    def __init__(
        self, streams: Mapping[str, Stream], weights: Mapping[str, float] | None = None, maximum_share: float = 1.0
    ) -> None:
        chosen = [name for name, weight in weights.items() if weight] if weights else [*streams]
        for name in chosen:
            if name not in streams:
                raise FactoryError(f"the set {name} has too few tokens to give any to this stage: leave it out")
        self.names, self.streams, self.maximum_share = chosen, [streams[name] for name in chosen], maximum_share
        asked = np.array([weights[name] if weights else streams[name].rows for name in chosen], float)
        self.quota = _quotas(asked / asked.sum())
        for name, quota, share in zip(chosen, self.quota, asked / asked.sum(), strict=True):
            if not quota:
                raise FactoryError(
                    f"the set {name} has a share of {share:.2g} of the data, less than one of {PATTERN:,} sequences: "
                    "raise its weight, or leave it out"
                )
        # The j-th of a set's q sequences stands at about (j + 1/2) / q of the pattern.
        at = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in self.quota])
        source = np.repeat(np.arange(len(chosen)), self.quota)
        order = np.argsort(at, kind="stable")
        self.source = source[order]
        self.rank = np.concatenate([np.arange(quota) for quota in self.quota])[order]

    def ahead(self, position: int) -> None:
        """Begin to read what the sequences from this position on need."""
        block, inside = divmod(position, len(self.source))
        for number, stream in enumerate(self.streams):
            stream.ahead(block * int(self.quota[number]) + int((self.source[:inside] == number).sum()))

    def batch(self, position: int, count: int) -> list[np.ndarray]:
        """Sequences position .. position + count: int32 arrays [sequences, length], one for each length there is,
        the longest first. A sequence that is cut counts as one."""
        lengths: dict[int, list[np.ndarray]] = {}
        found = self._places(position, count)
        for number, stream in enumerate(self.streams):
            places = found[1][found[0] == number]
            if not len(places):
                continue
            rows = stream.batch(int(places[0]), len(places))
            pieces = _pieces(places, self.maximum_share)
            for cut in np.unique(pieces).tolist():
                parts = rows[pieces == cut].reshape(-1, stream.length // cut)
                lengths.setdefault(parts.shape[1], []).append(parts)
        groups = [np.concatenate(lengths[length]) for length in sorted(lengths, reverse=True)]
        # What is left of a short sequence can be pieces of less than two tokens, with nothing to learn.
        return [kept for group in groups if len(kept := group[group[:, 1] != IGNORE])]

    def places(self, position: int, count: int) -> list[str]:
        """Set, shard and row of these sequences, for messages."""
        sources, places = self._places(position, count)
        return [
            f"{self.names[source]}: {self.streams[source].place(int(place))}"
            for source, place in zip(sources.tolist(), places.tolist(), strict=True)
        ]

    def _places(self, position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The stream of each of these sequences and its position in that stream."""
        block, inside = np.divmod(np.arange(position, position + count), len(self.source))
        source = self.source[inside]
        return source, block * self.quota[source] + self.rank[inside]


def _quotas(shares: np.ndarray) -> np.ndarray:
    """Sequences of each set in a pattern: shares rounded so that they sum up (largest remainders)."""
    if len(shares) == 1:
        return np.ones(1, np.int64)
    quotas = np.floor(shares * PATTERN).astype(np.int64)
    rest = PATTERN - int(quotas.sum())
    quotas[np.argsort(quotas - shares * PATTERN, kind="stable")[:rest]] += 1
    return quotas


def _pieces(positions: np.ndarray, share: float) -> np.ndarray:
    """Into how many pieces the sequences at these positions of a stream are cut."""
    whole = np.floor(positions * share)
    cut = np.array(CUTS)[(positions - whole).astype(np.int64) % len(CUTS)]
    return np.where(np.floor((positions + 1) * share) > whole, 1, cut)


def blocks(span: Span, length: int) -> list[Span]:
    """A span in parts that begin with the first sequence that begins in each row group."""
    edges = span.shard.edges[(span.shard.edges > span.begin) & (span.shard.edges < span.end)]
    starts = np.unique(np.concatenate([[0], -(-(edges - span.begin) // length) * length]))
    starts = starts[starts < span.tokens] + span.begin
    return [Span(span.shard, int(a), int(b)) for a, b in zip(starts, [*starts[1:], span.end], strict=True)]

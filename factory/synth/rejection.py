"""Rejection sampling: of a prompt's responses those that were verified, and of these a few that differ."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Ge

from factory.engine.errors import FactoryError
from factory.engine.gather import with_payload
from factory.engine.step import Gather, Memo
from factory.teacher.samples import check_whole, keys, normalised
from factory.verify.check import check_verdict

if TYPE_CHECKING:
    from factory.engine.gather import Exchange, Part, Records

SAMPLE = np.dtype(
    [
        ("key", np.uint64),
        ("high", np.uint64),
        ("doc", np.uint64),
        ("right", np.bool_),
        ("rank", np.float64),
        ("low", np.float64),
    ]
)
DROP = np.dtype(
    [("key", np.uint64), ("kept", np.uint64), ("pair", np.uint64), ("similarity", np.float32), ("reason", np.uint8)]
)
WRONG, DUPLICATE, SURPLUS = range(3)
ALONE = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
    r"\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    r"\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Kana
)
"""Scripts without spaces between words: each character is a token."""
TOKEN = re.compile(rf"[{ALONE}]|(?:(?![{ALONE}])\w)+|[^\w\s]")
Grams = frozenset[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class RejectionSample(Gather):
    """Keep of each prompt at most `keep` responses that are right and differ from each other.

    A response is right where all `verdicts` that are not null are true, and one is; the others are dropped as `wrong`,
    with their verdicts. Of right ones that are equal but for white space and case the preferred stays, the others are
    `duplicate`. Of the rest the preferred is taken, then again and again the one that is least like those taken, by
    the largest Jaccard likeness of its token n-grams with one of theirs; what is left is `surplus`. Preferred is what
    is higher in `rank`, and of such what comes first. kept_id is the response kept that is most like the one dropped,
    and pair_id the one that it is a duplicate of.

    The samples of a prompt may lie anywhere in the dataset.
    """

    version: ClassVar[int] = 2
    reasons: ClassVar[tuple[str, ...]] = ("wrong", "duplicate", "surplus")

    keep: Annotated[int, Ge(1)] = 4
    """Responses of a prompt, at most."""
    verdicts: tuple[str, ...] = ("verdict",)
    """Columns that say whether a response is right; none: all are taken as right."""
    rank: str = ""
    """A column with numbers by which responses are preferred, the higher the better. Null comes last."""
    ngram: Annotated[int, Ge(1)] = 3
    """Tokens in an n-gram; a token is a word or a sign, of scripts without spaces (Han, Kana, Thai) a character."""
    prompt: str = "prompt"
    """The column with the prompt, a text or messages."""
    response: str = "response"

    def needs(self) -> tuple[str, ...]:
        return (self.prompt, self.response, *self.verdicts, *((self.rank,) if self.rank else ()))

    def schema(self, schema: pa.Schema) -> pa.Schema:
        for name in self.verdicts:
            check_verdict(schema, name)
        rank = schema.field(self.rank).type if self.rank in schema.names else pa.float64()
        if not (pa.types.is_floating(rank) or pa.types.is_integer(rank)):
            raise FactoryError(f"column {self.rank!r} holds {rank}: responses are ranked by numbers")
        return schema

    def emit(self, batch: pa.RecordBatch, memo: Memo, docs: np.ndarray) -> dict[str, Any]:
        living = batch.filter(pa.array(memo.alive))
        check_whole(living, self.prompt, self.response)
        found = np.zeros(living.num_rows, SAMPLE)
        found["key"], found["high"] = keys(living.column(self.prompt)).T
        found["doc"], found["right"] = docs[memo.alive], _right(living, self.verdicts)
        if self.rank:
            found["rank"], found["low"] = _ranks(living.column(self.rank))
        # What is wrong is compared with nothing: its text stays where it is.
        texts = pc.if_else(pa.array(found["right"]), living.column(self.response), "")
        return {"samples": with_payload(found, texts)}

    def decide(self, exchange: Exchange) -> Records:
        return exchange.run("drops", [exchange.emitted("samples")], "drops", route="shard")

    def drops(self, part: Part) -> np.ndarray:
        """The rows that go, of whole prompts."""
        samples, texts = part.records[0], part.payloads[0]
        assert texts is not None
        out = np.zeros(len(samples), DROP)
        out["key"] = out["kept"] = out["pair"] = samples["doc"]  # a wrong one goes for no other's sake
        gone = ~samples["right"]
        edges = np.flatnonzero((np.diff(samples["key"]) != 0) | (np.diff(samples["high"]) != 0)) + 1
        right = np.flatnonzero(samples["right"])
        for rows in np.split(right, np.searchsorted(right, edges)):
            order = rows[np.lexsort((-samples["low"][rows], -samples["rank"][rows]))]
            for left in choose(texts.take(pa.array(order)).to_pylist(), self.keep, self.ngram):
                row = order[left.text]
                gone[row] = True
                kept, pair = samples["doc"][order[[left.kept, left.pair]]]
                out[row] = (samples["doc"][row], kept, pair, left.similarity, left.reason)
        return out[gone]


def _right(batch: pa.RecordBatch, verdicts: Sequence[str]) -> np.ndarray:
    """bool a row: all verdicts that are not null are true, and one is; without verdicts every row is right."""
    if not verdicts:
        return np.ones(batch.num_rows, np.bool_)
    said = [batch.column(name).to_numpy(zero_copy_only=False) for name in verdicts]
    return np.array([True in one and False not in one for one in zip(*said, strict=True)], np.bool_)


def _ranks(column: pa.Array) -> np.ndarray:
    """float64[2, n]: what is higher in the first, then in the second, is preferred; of an integer the upper and the
    lower 32 bits, which no rounding makes equal. What has no number comes last."""
    out = np.zeros((2, len(column)))
    if pa.types.is_integer(column.type):
        wide = pa.uint64() if pa.types.is_unsigned_integer(column.type) else pa.int64()
        numbers = column.cast(wide).fill_null(0).to_numpy(zero_copy_only=False)
        out[0], out[1] = numbers >> 32, numbers & 0xFFFFFFFF
    else:
        out[0] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    out[:, column.is_null().to_numpy(zero_copy_only=False) | np.isnan(out[0])] = -np.inf
    return out


class Left(NamedTuple):
    """A text that is not taken, by its place: why, the text taken for it, and the one that it is most like."""

    text: int
    reason: int
    kept: int
    pair: int
    similarity: float


def choose(texts: Sequence[str], keep: int, ngram: int) -> Iterator[Left]:
    """Of texts in the order of preference at most `keep` that differ; those that are left are returned."""
    first: dict[str, int] = {}
    same = [first.setdefault(normalised(text), place) for place, text in enumerate(texts)]
    alone = list(first.values())
    taken = alone[:keep]
    nearest = {place: (1.0, place) for place in taken}
    """Of each text the likeness to the text taken that it is most like, and that text."""
    if len(alone) > keep:
        grams = {place: _grams(texts[place], ngram) for place in alone}
        taken, nearest = [], dict.fromkeys(alone, (-1.0, alone[0]))
        while len(taken) < keep:
            taken.append(min((place for place in alone if place not in taken), key=lambda p: (nearest[p][0], p)))
            for place in alone:
                likeness = _jaccard(grams[place], grams[taken[-1]])
                if likeness > nearest[place][0]:
                    nearest[place] = (likeness, taken[-1])
    for place, one in enumerate(same):
        if one != place:
            yield Left(place, DUPLICATE, one if one in taken else nearest[one][1], one, 1.0)
        elif one not in taken:
            likeness, kept = nearest[one]
            yield Left(place, SURPLUS, kept, kept, likeness)


def _grams(text: str, size: int) -> Grams:
    """The n-grams of tokens; all tokens are one where there are fewer."""
    tokens = TOKEN.findall(text.casefold())
    return frozenset(zip(*(tokens[start:] for start in range(min(size, max(len(tokens), 1)))), strict=False))


def _jaccard(one: Grams, other: Grams) -> float:
    both = len(one & other)
    return both / (len(one) + len(other) - both) if one or other else 1.0

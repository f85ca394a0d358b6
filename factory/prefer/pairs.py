"""Pairs of a better and a worse response to a prompt, by the opinions of several critics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Le

from factory.engine.errors import FactoryError
from factory.engine.step import Memo, Regroup, Tally
from factory.teacher.samples import batched, check_whole, groups, id_of_prompt, is_messages, normalised, of_prompt
from factory.teacher.scoring import DIGITS

MESSAGES = pa.list_(pa.struct([("role", pa.large_string()), ("content", pa.large_string())]))
TRAINERS = ("messages", "completion", "completions")
"""What TRL reads beside a prompt, if it is there: by these it might take texts for messages."""
Rows = Sequence[dict[str, Any]]
LONGER = {1: "longer", 0: "as long", -1: "shorter"}
SHOWN = {True: "1", False: "0", None: "-"}


@dataclass(frozen=True, kw_only=True)
class Pairs(Regroup):
    """Pairs of a chosen and a rejected response to a prompt, as TRL reads them: prompt, chosen, rejected.

    The samples of a prompt stand together, in one shard: those in another are another prompt's, with pairs of their own
    under the same ids, so where shards may part them put order.Together before this. Each of `critics` is the name of a
    critic's columns (NAME, NAME_score, …), and has no opinion where NAME is null. A response is chosen only if every
    critic that has an opinion lets it pass, and one has; it is rejected only if one does not let it pass. Its score is
    settled by `vote`:

    - `weighted`: the mean of the critics' scores, weighted by `weights` and by how sure each is (NAME_confidence),
    - `majority`: the share of opinions that let it pass,
    - `minimum`: the least of the scores,

    and the chosen one's is at least `margin` above the rejected one's, and never below it. With `balance` the sum of
    the differences in length, chosen minus rejected, is kept near 0 over the shard, so that length tells nothing of
    which one is better: pairs go first that do not take it farther from 0; of these, those of responses that are in no
    pair yet; of these, the one that brings it nearest to 0, and of such the one of nearest lengths. Without `balance`
    the widest margin goes first. No pair of the same two texts (but for white space and case) comes twice.

    The chosen and the rejected are texts, or lists of one message where the prompt is messages. The rows keep the
    prompt's columns, but `messages` and `completion(s)`, which trainers would read, and get `chosen_id`, `rejected_id`,
    `chosen_score`, `rejected_score` and `margin`, which TRL's RewardTrainer takes into its loss. How many prompts have
    no pair is told, and why; so are the critics' votes.
    """

    version: ClassVar[int] = 2

    critics: tuple[str, ...] = ("verdict",)
    weights: tuple[float, ...] = ()
    """Of the critics, in their order; none: all weigh the same."""
    vote: Literal["weighted", "majority", "minimum"] = "weighted"
    """How a response's score is made of those of the critics."""
    margin: Annotated[float, Ge(0.0), Le(1.0)] = 0.0
    """The least difference of the scores."""
    most: Annotated[int, Ge(1)] = 3
    """Pairs of a prompt, at most."""
    balance: bool = True
    """Choose pairs so that the chosen response is not the longer one more often than not."""
    prompt: str = "prompt"
    """The column with the prompt, a text or messages; it is called `prompt` in the rows."""
    response: str = "response"

    def __post_init__(self) -> None:
        if not self.critics or len(set(self.critics)) < len(self.critics):
            raise ValueError(f"critics = {list(self.critics)}: name at least one, and each once")
        if self.weights and (len(self.weights) != len(self.critics) or not all(0 < w < math.inf for w in self.weights)):
            raise ValueError(f"weights = {list(self.weights)}: give a number above 0 for each of {list(self.critics)}")

    def needs(self) -> tuple[str, ...]:
        columns = [name + end for name in self.critics for end in ("", "_score", "_confidence")]
        return ("id", self.prompt, self.response, *columns)

    def schema(self, schema: pa.Schema) -> pa.Schema:
        type_ = schema.field(self.prompt).type
        texts = pa.types.is_string(type_) or pa.types.is_large_string(type_)
        if not texts and not is_messages(type_):
            raise FactoryError(f"column {self.prompt!r} holds {type_}: a prompt is a text or a list of messages")
        said = pa.large_string() if texts else MESSAGES
        gone = (self.prompt, "prompt", *TRAINERS)
        kept = [name for name in of_prompt(schema.names, self.response) if name not in gone]
        first = [("id", pa.large_string()), ("prompt", type_), ("chosen", said), ("rejected", said)]
        scores = [(name, pa.float32()) for name in ("chosen_score", "rejected_score", "margin")]
        last = [("chosen_id", pa.large_string()), ("rejected_id", pa.large_string()), *scores]
        made = {name for name, _ in (*first, *last)}
        return pa.schema([*first, *(schema.field(name) for name in kept if name not in made), *last])

    def prepare(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        check_whole(batch.filter(pa.array(memo.alive)), self.prompt, self.response)
        return batch

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch | Tally]:
        if (first := next(batches, None)) is not None:
            counts: Counter[str] = Counter()
            schema = self.schema(first.schema)
            used = [name for name in first.schema.names if name in {*self.needs(), "sample", *schema.names}]
            samples = (batch.select(used) for batch in chain([first], batches))  # without logprobs and the like
            yield from batched(self._rows(samples, schema, counts), schema)
            yield Tally(counts)

    def _rows(
        self, batches: Iterator[pa.RecordBatch], schema: pa.Schema, counts: Counter[str]
    ) -> Iterator[dict[str, Any]]:
        longer = 0  # by how many characters chosen responses are longer than rejected ones, in all so far
        for samples in groups(batches, self.prompt):
            rows = samples.to_pylist()
            votes = [[row[name] for name in self.critics] for row in rows]
            for vote in votes:
                counts["votes " + " ".join(f"{n}={SHOWN[v]}" for n, v in zip(self.critics, vote, strict=True))] += 1
            good = [row for row, vote in zip(rows, votes, strict=True) if True in vote and False not in vote]
            bad = [row for row, vote in zip(rows, votes, strict=True) if False in vote]
            pairs = list(self._choose(good, bad, longer)) if good and bad else []
            counts["prompts with pairs" if pairs else f"prompts without pairs: {self._why(good, bad)}"] += 1
            for place, (chosen, rejected) in enumerate(pairs):
                more = len(chosen[self.response]) - len(rejected[self.response])
                longer += more
                counts[f"pairs whose chosen response is {LONGER[(more > 0) - (more < 0)]}"] += 1
                yield self._pair(chosen, rejected, schema) | {"id": f"{id_of_prompt(chosen)}-pair{place}"}

    def _why(self, good: Rows, bad: Rows) -> str:
        if not good or not bad:
            return "nothing passes" if not good else "nothing fails"
        texts = {normalised(row[self.response]) for row in (*good, *bad)}
        return "the same text" if len(texts) == 1 else "margin too small"

    def _pair(self, chosen: dict[str, Any], rejected: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
        found = {**chosen, "prompt": chosen[self.prompt]}
        for name, row in (("chosen", chosen), ("rejected", rejected)):
            text = row[self.response]
            messages = schema.field(name).type == MESSAGES
            found[name] = [{"role": "assistant", "content": text}] if messages else text
            found[f"{name}_id"], found[f"{name}_score"] = row["id"], self._score(row)
        return found | {"margin": round(found["chosen_score"] - found["rejected_score"], DIGITS)}

    def _choose(self, good: Rows, bad: Rows, longer: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The pairs of a prompt, in the order in which they go."""
        rows = [*good, *bad]
        numbers: dict[str, int] = {}
        text = np.array([numbers.setdefault(normalised(row[self.response]), len(numbers)) for row in rows])
        (g, b), used = np.split(text, [len(good)]), np.zeros(len(numbers), np.int64)
        margins = _differences([self._score(row) for row in rows], len(good)).round(DIGITS)
        lengths = _differences([len(row[self.response]) for row in rows], len(good))
        free = (margins >= self.margin) & (g[:, None] != b)
        for _ in range(self.most):
            if not free.any():
                return
            again = used[g][:, None] + used[b]
            sums = np.abs(longer + lengths)
            keys = [sums > abs(longer), again, sums, np.abs(lengths)] if self.balance else [again, -margins]
            place = np.lexsort([key.ravel() for key in reversed([~free, *keys])])[0]
            better, worse = divmod(int(place), len(bad))
            yield good[better], bad[worse]
            longer += int(lengths[better, worse])
            used[[g[better], b[worse]]] += 1
            free &= ~((g == g[better])[:, None] & (b == b[worse]))

    def _score(self, row: dict[str, Any]) -> float:
        """Of a response, by the vote. What is no number is no score."""
        scores = [_number(row[f"{name}_score"]) for name in self.critics]
        if self.vote == "majority":
            opinions = [row[name] for name in self.critics if row[name] is not None]
            return sum(opinions) / len(opinions)
        if self.vote == "minimum":
            return float(min((score for score in scores if score is not None), default=0.0))
        sure = [_number(row[f"{name}_confidence"]) or 0.0 for name in self.critics]
        weights = [w * c for w, c in zip(self.weights or [1.0] * len(sure), sure, strict=True)]
        told = [(w, score) for w, score in zip(weights, scores, strict=True) if score is not None and w]
        return sum(w * score for w, score in told) / sum(w for w, _ in told) if told else 0.0


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _differences(values: list[Any], split: int) -> np.ndarray:
    """Each of the first values minus each of the others."""
    first, others = np.split(np.array(values), [split])
    return first[:, None] - others

"""Prompts by how much the rewards of their samples differ: what GRPO learns most from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from factory.engine.errors import FactoryError
from factory.engine.step import Memo, Regroup, Tally
from factory.teacher.samples import batched, check_whole, groups, id_of_prompt, of_prompt


@dataclass(frozen=True, kw_only=True)
class Variance(Regroup):
    """One row a prompt, with the mean and the variance of its samples' rewards.

    The samples of a prompt stand together, in one shard: those in another are another prompt's, with a row of its own
    under the same id, so where shards may part them put order.Together before this. The row has the prompt's id and
    columns, and gets `samples` (how many have a reward), `reward_mean` and `reward_variance` (of the population: p (1 -
    p) where rewards are 0 or 1). Prompts whose samples all have the same reward teach nothing in GRPO, where advantages
    are relative to the group's mean; how many there are is told, also where they stay.
    """

    version: ClassVar[int] = 2

    reward: str = "verdict_score"
    """The column with the rewards; null is none, and so is what is no number, which is told."""
    prompt: str = "prompt"
    """The column with the prompt, a text or messages."""
    keep: Literal["varied", "all"] = "varied"
    """`varied`: only prompts whose rewards differ."""

    def needs(self) -> tuple[str, ...]:
        return ("id", self.prompt, self.reward)

    def schema(self, schema: pa.Schema) -> pa.Schema:
        if self.reward in schema.names and not _is_number(schema.field(self.reward).type):
            raise FactoryError(f"column {self.reward!r} holds {schema.field(self.reward).type}: rewards are numbers")
        kept = [schema.field(name) for name in of_prompt(schema.names) if name != self.reward]
        return super().schema(pa.schema(kept))

    def adds(self) -> dict[str, pa.DataType]:
        return {"samples": pa.int32(), "reward_mean": pa.float32(), "reward_variance": pa.float32()}

    def prepare(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        check_whole(batch.filter(pa.array(memo.alive)), self.prompt)
        return batch

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch | Tally]:
        if (first := next(batches, None)) is not None:
            counts: Counter[str] = Counter()
            yield from batched(self._rows(chain([first], batches), counts), self.schema(first.schema))
            yield Tally(counts)

    def _rows(self, batches: Iterator[pa.RecordBatch], counts: Counter[str]) -> Iterator[dict[str, Any]]:
        for samples in groups(batches, self.prompt):
            rewards = np.array(samples.column(self.reward).drop_null().to_pylist(), np.float64)
            if odd := int((~np.isfinite(rewards)).sum()):
                counts["samples whose reward is not a number"] += odd
                rewards = rewards[np.isfinite(rewards)]
            varied = len(rewards) and rewards.min() < rewards.max()
            counts[f"prompts {'with' if varied else 'without'} variance"] += 1
            if varied or self.keep == "all":
                (row,) = samples.slice(0, 1).to_pylist()
                mean, variance = (rewards.mean(), rewards.var()) if len(rewards) else (None, None)
                yield {
                    **row,
                    "id": id_of_prompt(row),
                    "samples": len(rewards),
                    "reward_mean": mean,
                    "reward_variance": variance,
                }


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_floating(type_) or pa.types.is_integer(type_))

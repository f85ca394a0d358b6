"""Samples of a prompt, as respond.Respond leaves them: what their columns are, and which belong together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from factory.engine.errors import FactoryError

COLUMNS = ("response", "finish_reason", "prompt_tokens", "completion_tokens", "sample", "model", "logprobs")
"""What a sample has and its prompt has not."""
ROWS_OUT = 512
CRITIC = ("", "_score", "_reason", "_confidence")
"""Ends of the names of a critic's columns."""


def keys(prompts: pa.Array) -> np.ndarray:
    """uint64[n, 2]: a hash of each prompt, a text or a list of messages; equal prompts have equal ones."""
    texts = (one if isinstance(one, str) else json.dumps(one, sort_keys=True) for one in prompts.to_pylist())
    numbers = b"".join(xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass")) for text in texts)
    return np.frombuffer(numbers, np.uint64).reshape(-1, 2)


def check_whole(batch: pa.RecordBatch, *names: str) -> None:
    """ValueError where a row lacks one of these: its own fault, so it fails alone."""
    for name in names:
        if batch.column(name).null_count:
            raise ValueError(f"a sample without a {name}")


def normalised(text: str) -> str:
    """A text without differences of white space and of case."""
    return " ".join(text.split()).casefold()


def of_prompt(names: Sequence[str], response: str = "response") -> list[str]:
    """Of the columns of samples those that are the prompt's: neither the sample's own nor a critic's."""
    there = set(names)
    critics = [name for name in names if all(name + end in there for end in CRITIC)]
    gone = {*COLUMNS, response, *(name + end for name in critics for end in CRITIC)}
    return [name for name in names if name not in gone]


def id_of_prompt(row: dict[str, Any]) -> str:
    """The id of the prompt of a sample, whose own is `{id}-{sample}`."""
    return str(row["id"]).removesuffix(f"-{row.get('sample')}")


def is_messages(type_: pa.DataType) -> bool:
    """Whether values are lists of messages, with a role and a content and perhaps more."""
    if not (pa.types.is_list(type_) or pa.types.is_large_list(type_)) or not pa.types.is_struct(type_.value_type):
        return False
    return {"role", "content"} <= {field.name for field in type_.value_type}


def groups(batches: Iterator[pa.RecordBatch], prompt: str) -> Iterator[pa.RecordBatch]:
    """The samples of each prompt, which stand together in a shard, a batch of them all.

    FactoryError where a prompt comes again after another.
    """
    seen: set[bytes] = set()
    held: list[pa.RecordBatch] = []
    last = b""
    for batch in batches:
        found = keys(batch.column(prompt))
        edges = np.flatnonzero((found[1:] != found[:-1]).any(axis=1)) + 1
        for start, end in zip([0, *edges], [*edges, batch.num_rows], strict=True):
            if start == end:
                continue
            key = found[start].tobytes()
            if key != last:
                if held:
                    yield pa.concat_batches(held)
                if key in seen:
                    shown = str(batch.column(prompt)[int(start)].as_py())[:80]
                    raise FactoryError(
                        f"the samples of a prompt do not stand together ({shown!r}): put a step order.Together with "
                        f'by = "{prompt}" before this one'
                    )
                seen.add(key)
                held, last = [], key
            held.append(batch.slice(int(start), int(end - start)))
    if held:
        yield pa.concat_batches(held)


def batched(rows: Iterator[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows as batches of a schema; what it has no column for is left out."""
    held: list[dict[str, Any]] = []
    for row in rows:
        held.append({name: row[name] for name in schema.names})
        if len(held) == ROWS_OUT:
            yield pa.RecordBatch.from_pylist(held, schema)
            held = []
    if held:
        yield pa.RecordBatch.from_pylist(held, schema)

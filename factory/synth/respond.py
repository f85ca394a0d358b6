"""Ask a language model: n samples of each row's prompt."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import pyarrow as pa
from annotated_types import Ge, Le

from factory.engine.errors import FactoryError
from factory.engine.step import Failure
from factory.teacher import checkpoint
from factory.teacher.asking import ASKED, Asking, content_of
from factory.teacher.request import Failed, Response, Sampling
from factory.teacher.samples import is_messages

ROWS_OUT = 512
SECONDS_OUT = 1.0
"""Rows are handed on so many at a time, or after so many seconds: what was answered shows."""
LOGPROBS = pa.list_(
    pa.struct(
        [
            ("token", pa.large_string()),
            ("logprob", pa.float32()),
            ("top", pa.list_(pa.struct([("token", pa.large_string()), ("logprob", pa.float32())]))),
        ]
    )
)


@dataclass(frozen=True, kw_only=True)
class Respond(Asking):
    """Ask a language model: `n` samples of each row's prompt, a row each, with the id `{id}-{sample}`.

    What is asked is the template `prompt` with the row's columns in it, or without one what stands in `column`: a list
    of messages (role, content), or a text, which the model continues. The rows keep their columns and get `response`,
    `finish_reason`, `prompt_tokens`, `completion_tokens`, `sample` and `model`; a request without an answer is `n` rows
    in failed/. Every answer is kept in the cache and never asked for twice, also when a run is killed.

    `urls`, `api_key`, `in_flight`, `timeout` and `patience` are for the engine `openai`, which is any server that
    speaks as OpenAI's does; `gpus`, `memory` and `max_length` for `vllm` in this process: start one worker a GPU with
    `--workers`. `transformers` is embedded, for small models. Each worker keeps `in_flight` requests under way, and
    workers are as many as shards at most. The limits hold for all workers, and over resumes, under the name `budget`.
    """

    column: str = "messages"
    """What is asked where there is no template."""
    logprobs: Annotated[int, Ge(0), Le(20)] = 0
    """So many of the likeliest tokens at each place, with their log-probabilities, in the column `logprobs`."""

    def needs(self) -> tuple[str, ...]:
        return ("id", *(self.template.variables if self.template else (self.column,)))

    def adds(self) -> dict[str, pa.DataType]:
        return {
            "id": pa.large_string(),
            "response": pa.large_string(),
            "finish_reason": pa.string(),
            "prompt_tokens": pa.int32(),
            "completion_tokens": pa.int32(),
            "sample": pa.int32(),
            "model": pa.string(),
            **({"logprobs": LOGPROBS} if self.logprobs else {}),
        }

    def schema(self, schema: pa.Schema) -> pa.Schema:
        if not self.template and self.column in schema.names:
            type_ = schema.field(self.column).type
            if not (_is_text(type_) or is_messages(type_)):
                raise FactoryError(
                    f"column {self.column!r} holds {type_}: messages or a text can be asked; messages are a list of "
                    "structs with role and content, and a template (prompt) makes them of any column"
                )
        return super().schema(schema)

    def made_for(self) -> dict[str, str]:
        return checkpoint.made_for(self.model) if self._in_process else {}

    @cached_property
    def sampling(self) -> Sampling:
        return dataclasses.replace(super().sampling, logprobs=self.logprobs)

    def asks(self, row: dict[str, Any]) -> str | Sequence[tuple[str, str]]:
        if self.template:
            return super().asks(row)
        value = row[self.column]
        if not isinstance(value, str):
            value = [(one["role"], one["content"]) for one in value or ()]
            if not all(isinstance(part, str) for message in value for part in message):
                raise ValueError(f"a message in {self.column!r} without role or content")
        if not value:
            raise ValueError(f"nothing is asked: {self.column!r} is empty")
        return value

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch | Failure]:
        """Answers come in the order of the rows."""
        made = _Made(self)
        for batch, row, answer in self.answers(batches):
            if isinstance(answer, Failed):
                yield from made.flush(batch)
                for sample in range(self.n):
                    of = str(batch.column("id")[row])
                    yield Failure(f"{of}-{sample}", answer.error, "", content_of(answer.request), of)
            else:
                made.add(row, answer)
            if row == batch.num_rows - 1 or made.due():
                yield from made.flush(batch)


class _Made:
    """Rows in the making, all of one batch."""

    def __init__(self, step: Respond) -> None:
        self.step = step
        self.rows: list[int] = []
        self.answers: list[Response] = []
        self.since = time.monotonic()

    def add(self, row: int, answer: Response) -> None:
        self.rows.append(row)
        self.answers.append(answer)

    def due(self) -> bool:
        return len(self.rows) * self.step.n >= ROWS_OUT or time.monotonic() - self.since >= SECONDS_OUT

    def flush(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """The rows of `batch` that were answered, a row a sample."""
        self.since = time.monotonic()
        if not self.rows:
            return
        n = self.step.n
        source = batch.drop_columns([ASKED]).take(pa.array([row for row in self.rows for _ in range(n)]))
        choices = [(sample, choice) for answer in self.answers for sample, choice in enumerate(answer.choices)]
        of = [answer for answer in self.answers for _ in range(n)]
        values: dict[str, list[Any]] = {
            "id": [
                f"{id_}-{sample}" for id_, (sample, _) in zip(source.column("id").to_pylist(), choices, strict=True)
            ],
            "response": [choice.text for _, choice in choices],
            "finish_reason": [choice.finish_reason for _, choice in choices],
            "prompt_tokens": [answer.prompt_tokens for answer in of],
            "completion_tokens": [choice.tokens for _, choice in choices],
            "sample": [sample for sample, _ in choices],
            "model": [answer.model for answer in of],
        }
        if self.step.logprobs:
            values["logprobs"] = [_places(choice.logprobs or ()) for _, choice in choices]
        out = dict(zip(source.schema.names, source.columns, strict=True))
        out |= {name: pa.array(values[name], type_) for name, type_ in self.step.adds().items()}
        self.rows, self.answers = [], []
        yield pa.record_batch(out)


def _places(logprobs: Any) -> list[dict[str, Any]]:
    """Log-probabilities as rows of LOGPROBS."""
    return [
        {"token": token, "logprob": value, "top": [{"token": t, "logprob": v} for t, v in top]}
        for token, value, top in logprobs
    ]


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))

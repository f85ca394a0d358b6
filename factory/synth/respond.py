"""Ask a language model: n samples of each row's prompt."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from annotated_types import Ge, Gt, Le

from factory.engine import files
from factory.engine.errors import FactoryError
from factory.engine.step import Context, Failure, Memo, Regroup
from factory.teacher import checkpoint
from factory.teacher.budget import Budget
from factory.teacher.engine import Engine
from factory.teacher.prompts import Prompt
from factory.teacher.request import Failed, Message, Request, Response, Sampling
from factory.teacher.teacher import WINDOW, Teacher

REQUEST = "respond.request"
"""The column that carries what a row asks, as JSON, from `prepare` to the call."""
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
class Respond(Regroup):
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

    resources: ClassVar[str] = "server"
    rows_a_call: ClassVar[int | None] = 256
    located: ClassVar[tuple[str, ...]] = (
        *("urls", "api_key", "in_flight", "timeout", "patience", "cache", "gpus", "memory"),
        *("budget", "budget_requests", "budget_tokens", "budget_money", "prompt_price", "completion_price"),
        *("requests_a_minute", "tokens_a_minute"),
    )

    model: str
    """The model's name at the server; for the other engines a checkpoint folder in Hugging Face's form, or a name at
    the hub."""
    revision: str = ""
    """Which weights, where the name does not say it: part of what the answers are known by."""
    engine: Literal["openai", "vllm", "transformers"] = "openai"
    prompt: str = ""
    """A template file; its variables are columns."""
    column: str = "messages"
    """What is asked where there is no template."""
    chat: bool = True
    """The template gives messages; false: a raw prompt, which the model continues."""
    n: Annotated[int, Ge(1)] = 1
    temperature: Annotated[float, Ge(0)] = 1.0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    max_tokens: Annotated[int, Ge(1)] = 1024
    """New tokens in a response at most."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """A response ends before any of these."""
    logprobs: Annotated[int, Ge(0), Le(20)] = 0
    """So many of the likeliest tokens at each place, with their log-probabilities, in the column `logprobs`."""
    json_schema: str = ""
    """A file with the JSON schema that responses keep to."""
    extra: str = ""
    """JSON whose fields are sent with every request to a server, such as {"top_k": 20}."""
    max_length: Annotated[int, Ge(0)] = 0
    """Tokens of the longest prompt with its response; 0: what the model is made for."""
    urls: tuple[str, ...] = ("http://127.0.0.1:8000/v1",)
    """Servers of the same model; the least busy one is asked."""
    api_key: str = ""
    """The environment variable that holds the key."""
    in_flight: Annotated[int, Ge(1)] = 256
    """Requests under way at once, of each worker."""
    timeout: Annotated[float, Gt(0)] = 600.0
    """Seconds for an answer."""
    patience: Annotated[float, Ge(0)] = 300.0
    """Seconds to wait for a server that is away before the run stops."""
    gpus: Annotated[int, Ge(1)] = 1
    memory: Annotated[float, Gt(0), Le(1)] = 0.9
    """The share of a GPU's memory that is taken."""
    cache: str = ""
    """A local folder for the answers; by default FACTORY_CACHE, else `.answers` in the folder of the runs."""
    budget: str = "default"
    """The name under which what is spent is counted, with this cache: a new one begins at nothing."""
    budget_requests: Annotated[int, Ge(0)] = 0
    """The run stops before more requests than this are sent; 0: no limit."""
    budget_tokens: Annotated[int, Ge(0)] = 0
    """New tokens in all."""
    budget_money: Annotated[float, Ge(0)] = 0.0
    """In the currency of the prices, which are of a million tokens."""
    prompt_price: Annotated[float, Ge(0)] = 0.0
    completion_price: Annotated[float, Ge(0)] = 0.0
    requests_a_minute: Annotated[float, Ge(0)] = 0.0
    tokens_a_minute: Annotated[float, Ge(0)] = 0.0

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is empty: give a name, or a checkpoint folder")
        if self._in_process and Path(self.model).is_dir():
            self.__dict__["located"] = (*type(self).located, "model")  # its files are the identity

    @property
    def _in_process(self) -> bool:
        return self.engine != "openai"

    # What the engine has to know before any work.

    def needs(self) -> tuple[str, ...]:
        return ("id", *(self._template.variables if self._template else (self.column,)))

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
        if not self._template and self.column in schema.names:
            type_ = schema.field(self.column).type
            if not (_is_text(type_) or pa.types.is_list(type_) or pa.types.is_large_list(type_)):
                raise FactoryError(f"column {self.column!r} holds {type_}: messages or a text can be asked")
        return super().schema(schema)

    def made_for(self) -> dict[str, str]:
        return checkpoint.made_for(self.model) if self._in_process else {}

    def files(self) -> tuple[str, ...]:
        inside = checkpoint.content(self.model) if self._in_process else ()
        return (*(path for path in (self.prompt, self.json_schema) if path), *inside)

    def libraries(self) -> tuple[str, ...]:
        return {"openai": (), "vllm": ("vllm",), "transformers": ("torch", "transformers", "llguidance")}[self.engine]

    @cached_property
    def _template(self) -> Prompt | None:
        return Prompt(self.prompt) if self.prompt else None

    @cached_property
    def _sampling(self) -> Sampling:
        return Sampling(
            n=self.n,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            seed=self.seed,
            stop=self.stop,
            logprobs=self.logprobs,
            json_schema=self._schema_text(),
        )

    def _schema_text(self) -> str:
        if not self.json_schema:
            return ""
        try:
            return json.dumps(json.loads(files.read_bytes(self.json_schema)), ensure_ascii=False)
        except (OSError, ValueError) as error:
            raise FactoryError(f"{self.json_schema}: not a JSON file that can be read: {error}") from error

    # A worker's teacher.

    def open(self, context: Context) -> None:
        cache = self.cache or os.environ.get("FACTORY_CACHE") or files.join(context.root, ".answers")
        if not files.is_local(cache):
            raise FactoryError(f"{cache}: answers are kept on a disk of this machine: name a folder in FACTORY_CACHE")
        window = max(WINDOW, 2 * self.in_flight + 1024)
        self.__dict__["_teacher"] = Teacher(self._engine(), cache=cache, budget=self._budget(), window=window)

    def close(self) -> None:
        if (teacher := self.__dict__.pop("_teacher", None)) is not None:
            teacher.close()

    @cached_property
    def _teacher(self) -> Teacher:
        raise RuntimeError("respond.Respond is used before open()")

    def _engine(self) -> Engine:
        if self.engine == "transformers":
            from factory.teacher.transformers import Transformers

            return Transformers(self.model, self.revision)
        if self.engine == "vllm":
            from factory.teacher.vllm import VLLM

            options: Any = {"gpus": self.gpus, "max_length": self.max_length, "memory": self.memory}
            return VLLM(self.model, self.revision, **options)
        from factory.teacher.openai import OpenAI

        return OpenAI(
            self.model,
            self.urls,
            revision=self.revision,
            api_key=self.api_key,
            in_flight=self.in_flight,
            timeout=self.timeout,
            patience=self.patience,
            extra=self.extra,
        )

    def _budget(self) -> Budget:
        return Budget(
            name=self.budget,
            requests=self.budget_requests or None,
            completion_tokens=self.budget_tokens or None,
            money=self.budget_money or None,
            prompt_price=self.prompt_price,
            completion_price=self.completion_price,
            requests_a_minute=self.requests_a_minute or None,
            tokens_a_minute=self.tokens_a_minute or None,
        )

    # The work.

    def prepare(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        """What each row asks, so that a row whose prompt cannot be made fails alone."""
        rows = batch.select(self.needs()).to_pylist()
        asked = [self._asked(row) if alive else "" for row, alive in zip(rows, memo.alive.tolist(), strict=True)]
        return batch.append_column(REQUEST, pa.array(asked, pa.large_string()))

    def _asked(self, row: dict[str, Any]) -> str:
        """A JSON list of messages, or a JSON text."""
        if self._template:
            return json.dumps(self._template.messages(row) if self.chat else self._template.text(row))
        value = row[self.column]
        if not isinstance(value, str):
            value = [(one["role"], one["content"]) for one in value or ()]
            if not all(isinstance(part, str) for message in value for part in message):
                raise ValueError(f"a message in {self.column!r} without role or content")
        if not value:
            raise ValueError(f"nothing is asked: {self.column!r} is empty")
        return json.dumps(value)

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch | Failure]:
        """Answers come in the order of the rows; the teacher takes requests ahead of them, across batches."""
        waiting: deque[pa.RecordBatch] = deque()

        def requests() -> Iterator[Request]:
            for batch in batches:
                if batch.num_rows:
                    waiting.append(batch)
                    yield from map(self._request, batch.column(REQUEST).to_pylist())

        made = _Made(self)
        row = 0
        for answer in self._teacher.ask(requests()):
            batch = waiting[0]
            if isinstance(answer, Failed):
                yield from made.flush(batch)
                yield from self._failures(str(batch.column("id")[row]), answer)
            else:
                made.add(row, answer)
            row += 1
            if row == batch.num_rows:
                waiting.popleft()
                row = 0
            if row == 0 or made.due():
                yield from made.flush(batch)

    def _request(self, asked: str) -> Request:
        value = json.loads(asked)
        if isinstance(value, str):
            return Request(prompt=value, sampling=self._sampling)
        return Request(messages=tuple(Message(*one) for one in value), sampling=self._sampling)

    def _failures(self, id_: str, answer: Failed) -> Iterator[Failure]:
        asked = answer.request.prompt or json.dumps([m._asdict() for m in answer.request.messages], ensure_ascii=False)
        for sample in range(self.n):
            yield Failure(f"{id_}-{sample}", answer.error, "", asked.encode(errors="replace"))


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
        source = batch.drop_columns([REQUEST]).take(pa.array([row for row in self.rows for _ in range(n)]))
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

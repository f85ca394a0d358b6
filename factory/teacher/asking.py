"""A step that asks a language model: the options of the teacher and of its engines, and what becomes of them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from annotated_types import Ge, Gt, Le

from factory.engine import files
from factory.engine.errors import FactoryError
from factory.engine.step import Context, Memo, Regroup
from factory.teacher import checkpoint
from factory.teacher.budget import Budget
from factory.teacher.database import folder_of
from factory.teacher.engine import Engine
from factory.teacher.prompts import Prompt
from factory.teacher.request import Failed, Message, Request, Response, Sampling
from factory.teacher.teacher import WINDOW, Teacher

ASKED = "asking.request"
"""The column that carries what a row asks, as JSON, from `prepare` to the call."""


@dataclass(frozen=True, kw_only=True)
class Asking(Regroup):
    """A Regroup that asks a teacher `n` samples of each row: what respond.Respond and critics.Rubric are.

    `prepare` puts what a row asks into the column ASKED, and `request` makes a request of it for `teacher`.
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
    chat: bool = True
    """The template gives messages; false: a raw prompt, which the model continues."""
    n: Annotated[int, Ge(1)] = 1
    temperature: Annotated[float, Ge(0)] = 1.0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    max_tokens: Annotated[int, Ge(1)] = 1024
    """New tokens in a response at most."""
    seed: int = 0
    """Sample `i` is drawn with `seed + i`."""
    stop: tuple[str, ...] = ()
    """A response ends before any of these."""
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
        if self._in_process and self.extra:
            raise ValueError(f"extra is sent to servers: engine = {self.engine!r} has none")
        if self._in_process and Path(self.model).is_dir():
            self.__dict__["located"] = (*type(self).located, "model")  # its files are the identity

    @property
    def _in_process(self) -> bool:
        return self.engine != "openai"

    def files(self) -> tuple[str, ...]:
        inside = checkpoint.content(self.model) if self._in_process else ()
        return (*(path for path in (self.prompt, self.json_schema) if path), *inside)

    def libraries(self) -> tuple[str, ...]:
        return {"openai": (), "vllm": ("vllm",), "transformers": ("torch", "transformers", "llguidance")}[self.engine]

    @cached_property
    def template(self) -> Prompt | None:
        """The file `prompt`; None where there is none."""
        return Prompt(self.prompt) if self.prompt else None

    @cached_property
    def sampling(self) -> Sampling:
        """How each row's samples are drawn."""
        return Sampling(
            n=self.n,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            seed=self.seed,
            stop=self.stop,
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
        window = max(WINDOW, 2 * self.in_flight + 1024)
        cache = folder_of(self.cache, context)
        self.__dict__["teacher"] = Teacher(self._engine(), cache=cache, budget=self._budget(), window=window)

    def close(self) -> None:
        if (teacher := self.__dict__.pop("teacher", None)) is not None:
            teacher.close()

    @cached_property
    def teacher(self) -> Teacher:
        """Who is asked, between `open` and `close`."""
        raise RuntimeError(f"{type(self).__name__} is used before open()")

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

    # What is asked, and what comes back.

    def prepare(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        """What each row asks, so that a row whose prompt cannot be made fails alone."""
        rows = batch.select(self.needs()).to_pylist()
        asked = [json.dumps(self.asks(row)) if alive else "" for row, alive in zip(rows, memo.alive, strict=True)]
        return batch.append_column(ASKED, pa.array(asked, pa.large_string()))

    def asks(self, row: dict[str, Any]) -> str | Sequence[tuple[str, str]]:
        """A text to go on with, or messages (role, content): those of the template. ValueError: the row's fault."""
        if self.template is None:
            raise ValueError("there is no prompt to ask with")
        return self.template.messages(row) if self.chat else self.template.text(row)

    def answers(self, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, int, Response | Failed]]:
        """Of each row, in order, its batch, its place there, and what it was answered. The teacher takes requests
        ahead of them, across batches."""
        waiting: deque[pa.RecordBatch] = deque()

        def requests() -> Iterator[Request]:
            for batch in batches:
                if batch.num_rows:
                    waiting.append(batch)
                    yield from map(self._request, batch.column(ASKED).to_pylist())

        row = 0
        for answer in self.teacher.ask(requests()):
            yield waiting[0], row, answer
            row += 1
            if row == waiting[0].num_rows:
                waiting.popleft()
                row = 0

    def _request(self, asked: str) -> Request:
        value = json.loads(asked)
        if isinstance(value, str):
            return Request(prompt=value, sampling=self.sampling)
        return Request(messages=tuple(Message(*one) for one in value), sampling=self.sampling)


def content_of(request: Request) -> bytes:
    """What was asked, for the record of a failure."""
    asked = request.prompt or json.dumps([m._asdict() for m in request.messages], ensure_ascii=False)
    return asked.encode(errors="replace")

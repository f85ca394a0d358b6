"""Critics that are models: each adds what it says of a response as four columns.

NAME: it passes (null: no opinion); NAME_score, from 0 to 1; NAME_reason; NAME_confidence, from 0 to 1. Verifiers are
critics too, by `verify.Verify`. `pairs.Pairs` puts their opinions together.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Le

from factory.engine.shard import with_column
from factory.engine.step import Context, Failure, Map, Memo, Tally
from factory.teacher import checkpoint
from factory.teacher.asking import ASKED, Asking, content_of
from factory.teacher.request import Failed
from factory.teacher.scoring import DIGITS, Likelihoods, Prompt, Rewards, Steps
from factory.verify.check import columns
from factory.verify.steps import split

UNREAD = "longer than the model reads, or nothing to read"
UNTOLD = "not a number"
JSON_READ = 1 << 15
"""Characters at the end of an answer in which JSON is searched: it is tried at every brace."""


class Opinion(NamedTuple):
    """What a critic says of a response; all null but the reason where it says nothing."""

    passes: bool | None = None
    score: float | None = None
    reason: str | None = None
    confidence: float | None = None


def with_opinions(batch: pa.RecordBatch, name: str, opinions: Sequence[Opinion]) -> pa.RecordBatch:
    """The batch with a critic's four columns."""
    for (column, type_), field in zip(columns(name).items(), Opinion._fields, strict=True):
        batch = with_column(batch, column, pa.array([getattr(opinion, field) for opinion in opinions], type_))
    return batch


@dataclass(frozen=True, kw_only=True)
class _Model(Map):
    """A critic that reads each response with a model in this process, on a GPU where there is one."""

    resources: ClassVar[str] = "gpu"
    rows_a_call: ClassVar[int | None] = 64
    version: ClassVar[int] = 2

    model: str
    """A checkpoint folder in Hugging Face's form, or a name at the hub."""
    revision: str = ""
    """Which weights, where the name does not say it."""
    prompt: str = "prompt"
    """The column with the prompt: a text that the response continues, or messages."""
    response: str = "response"
    threshold: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    """The score at which a response passes; 0: it is never said whether one does, the score only ranks."""
    name: str = "critic"
    """Begins the names of the columns added."""

    def __post_init__(self) -> None:
        if Path(self.model).is_dir():
            self.__dict__["located"] = (*type(self).located, "model")  # its files are the identity

    def needs(self) -> tuple[str, ...]:
        return (self.prompt, self.response)

    def adds(self) -> dict[str, pa.DataType]:
        return columns(self.name)

    def files(self) -> tuple[str, ...]:
        return checkpoint.content(self.model)

    def libraries(self) -> tuple[str, ...]:
        return ("torch", "transformers")

    def open(self, context: Context) -> None:
        self._scorer.network  # noqa: B018 - a broken model ends the run, and is no row's fault

    def close(self) -> None:
        self.__dict__.pop("_scorer", None)

    @cached_property
    def _scorer(self) -> Any:
        raise NotImplementedError

    def _opinions(self, prompts: list[Prompt], responses: list[str]) -> list[Opinion]:
        raise NotImplementedError

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        alive = np.flatnonzero(memo.alive)
        prompts = batch.column(self.prompt).take(pa.array(alive)).to_pylist()
        responses = batch.column(self.response).take(pa.array(alive)).to_pylist()
        opinions = [Opinion()] * batch.num_rows
        for row, opinion in zip(alive.tolist(), self._opinions(prompts, responses), strict=True):
            opinions[row] = opinion
        return with_opinions(batch, self.name, opinions)

    def _opinion(self, told: Any) -> Opinion:
        """The opinion of what the model told of a response, a number or several; none where there is no such."""
        if told is None:
            return Opinion(reason=UNREAD)
        return self._of(told) if np.isfinite(told).all() else Opinion(reason=UNTOLD)

    def _of(self, told: Any) -> Opinion:
        raise NotImplementedError

    def _said(self, score: float, reason: str, confidence: float) -> Opinion:
        """An opinion of a score, rounded so that batches do not show."""
        score = round(score, DIGITS)
        passes = score >= self.threshold if self.threshold else None
        return Opinion(passes, score, reason, round(confidence, DIGITS))


@dataclass(frozen=True, kw_only=True)
class Reward(_Model):
    """What a reward model says: the score is the sigmoid of its number.

    Between two responses to a prompt it is the probability, as Bradley and Terry's model has it, that one is preferred
    to a response of reward 0; where 0 lies is the model's own affair, unless it was trained with `center`. The
    confidence is the probability of the verdict at a threshold of 0.5.
    """

    name: str = "reward"

    @cached_property
    def _scorer(self) -> Rewards:
        return Rewards(self.model, self.revision)

    def _opinions(self, prompts: list[Prompt], responses: list[str]) -> list[Opinion]:
        return [self._opinion(number) for number in self._scorer(prompts, responses)]

    def _of(self, number: float) -> Opinion:
        score = 1 / (1 + math.exp(-max(number, -700.0)))
        return self._said(score, f"reward {number:.3f}", max(score, 1 - score))


@dataclass(frozen=True, kw_only=True)
class Likelihood(_Model):
    """How likely a language model is to give the response: the geometric mean of its tokens' probabilities.

    A likely response is not a right one, so without a `threshold` it has no opinion and only ranks.
    """

    name: str = "likelihood"
    threshold: Annotated[float, Ge(0.0), Le(1.0)] = 0.0

    @cached_property
    def _scorer(self) -> Likelihoods:
        return Likelihoods(self.model, self.revision)

    def _opinions(self, prompts: list[Prompt], responses: list[str]) -> list[Opinion]:
        return [self._opinion(number) for number in self._scorer(prompts, responses)]

    def _of(self, number: float) -> Opinion:
        return self._said(math.exp(number), f"{number:.3f} nats", 1.0)


@dataclass(frozen=True, kw_only=True)
class Process(_Model):
    """What a process reward model says: the score is the least probability of a step to be right.

    How a response is cut in steps stands in the model's configuration. The reason names the step that is worst.
    """

    name: str = "process"

    version: ClassVar[int] = 2
    """Of the rule by which steps are cut too (factory/verify/steps.py)."""

    @cached_property
    def _scorer(self) -> Steps:
        return Steps(self.model, self.revision)

    def _opinions(self, prompts: list[Prompt], responses: list[str]) -> list[Opinion]:
        chains = [split(response, self._scorer.rule) for response in responses]
        return [self._opinion(steps) for steps in self._scorer(prompts, chains)]

    def _of(self, steps: list[float]) -> Opinion:
        worst = int(np.argmin(np.round(steps, DIGITS)))  # the first of such
        return self._said(min(steps), f"step {worst + 1}: {steps[worst]:.3f}", max(min(steps), 1 - min(steps)))


@dataclass(frozen=True, kw_only=True)
class Rubric(Asking):
    """What a teacher says when it is asked by a rubric, the template `prompt`, `n` times: as many votes.

    A vote's score is read from its answer: the mean of the JSON object's numbers named in `fields`, or without these
    the number behind the last "Score:", on the scale from `lowest` to `highest`. The response's score is the mean of
    the votes'; it passes where more than half of them reach `threshold`; the confidence is the share of all n that
    agree with that, and the reason the answer of the first that does. An answer without a score is no vote: without
    any, there is no opinion. What is not answered goes to failed/.
    """

    fields: tuple[str, ...] = ()
    """Numbers of a JSON object, such as ["correctness", "clarity"]."""
    lowest: float = 1.0
    highest: float = 10.0
    threshold: Annotated[float, Ge(0.0), Le(1.0)] = 0.75
    """The score, from 0 to 1, at which a vote is for the response."""
    name: str = "rubric"
    """Begins the names of the columns added."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt:
            raise ValueError("needs the option 'prompt': a file such as recipes/prompts/judge.jinja")
        if not self.lowest < self.highest:
            raise ValueError(f"lowest = {self.lowest}, highest = {self.highest}: not a scale")

    def needs(self) -> tuple[str, ...]:
        return ("id", *(self.template.variables if self.template else ()))

    def adds(self) -> dict[str, pa.DataType]:
        return columns(self.name)

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch | Failure | Tally]:
        """The rows with what was said of them, in their order."""
        kept: list[int] = []
        opinions: list[Opinion] = []
        for batch, row, answer in self.answers(batches):
            if isinstance(answer, Failed):
                yield from self._made(batch, kept, opinions)
                yield Failure(str(batch.column("id")[row]), answer.error, "", content_of(answer.request))
                kept, opinions = [], []
            else:
                texts = [choice.text for choice in answer.choices]
                votes = [self._vote(text) for text in texts]
                yield Tally({"votes": len(votes), "answers without a score": votes.count(None)})
                kept.append(row)
                opinions.append(self._opinion(texts, votes))
            if row == batch.num_rows - 1:
                yield from self._made(batch, kept, opinions)
                kept, opinions = [], []

    def _made(self, batch: pa.RecordBatch, rows: list[int], opinions: list[Opinion]) -> Iterator[pa.RecordBatch]:
        if rows:
            yield with_opinions(batch.drop_columns([ASKED]).take(pa.array(rows)), self.name, opinions)

    def _vote(self, text: str) -> float | None:
        """The score of an answer, from 0 to 1; None where there is none on the scale."""
        found = json_numbers(text, self.fields) if self.fields else last_score(text)
        if not found or not all(self.lowest <= number <= self.highest for number in found):
            return None
        return (sum(found) / len(found) - self.lowest) / (self.highest - self.lowest)

    def _opinion(self, texts: list[str], votes: list[float | None]) -> Opinion:
        scores = [vote for vote in votes if vote is not None]
        if not scores:
            return Opinion(reason=f"no score in: {texts[0]}")
        passes = 2 * sum(score >= self.threshold for score in scores) > len(scores)
        agree = [vote is not None and (vote >= self.threshold) == passes for vote in votes]
        score = round(sum(scores) / len(scores), DIGITS)
        return Opinion(passes, score, texts[agree.index(True)], sum(agree) / len(votes))


_SCORE = re.compile(
    r"\bscore\b[^\w\n(:=]{0,6}"
    r"(?:\([^()\n]{0,40}\)[^\w\n:=]{0,6})?"  # its scale, as in `Score (1-10): 8`
    r"[:=]\W{0,6}?(-?\d+(?:\.\d+)?)",
    re.IGNORECASE,
)


def last_score(text: str) -> list[float]:
    """The number behind the last "Score:"; none where there is none."""
    return [float(number) for number in _SCORE.findall(text)[-1:]]


def json_numbers(text: str, fields: Sequence[str]) -> list[float]:
    """The numbers of these names in the last JSON object that has them all; none where there is no such object in the
    last 32,768 characters."""
    found: list[Any] = []
    decoder = json.JSONDecoder()
    text = text[-JSON_READ:]
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            numbers = [value.get(name) for name in fields]
            if all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
                found = numbers
        at = text.find("{", end)
    return found

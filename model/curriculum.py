"""The course of a training: its stages, each with its steps, lengths, positions, data and learning rate.

Length curricula of the reports: Qwen2.5 §3.3 (4,096, then 32,768 tokens with base 1e6; Turbo: four stages up to 262,144
with 40% of the tokens at the full length), Qwen2.5-1M §3, UltraLong (arXiv 2504.06214) §3.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from factory.engine.errors import FactoryError
from model.config import Documents, ModelConfig, Schedule, StageConfig, TrainRecipe
from model.stream import CUTS


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage with everything said: `first` is the number of steps before it, and `model` the configuration with its
    positions. Steps of a schedule are counted from `schedule_first`, and there are `schedule_steps` of it. With
    `until`, `steps` are those at most, or once it has ended those that it took."""

    name: str
    first: int
    steps: int
    batch_size: int
    sequence_length: int
    model: ModelConfig
    documents: Documents
    maximum_share: float
    weights: Mapping[str, float]
    schedule: Schedule
    schedule_first: int
    schedule_steps: int
    until: float = 0.0

    @property
    def last(self) -> int:
        return self.first + self.steps

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_size * self.sequence_length

    def learning_rate(self, step: int) -> float:
        """The rate of a step of the whole training, counted from 1."""
        return self.schedule.rate(step - self.schedule_first, self.schedule_steps)


def stages(recipe: TrainRecipe, row_length: int, ends: Mapping[str, int] | None = None) -> list[Stage]:
    """The stages of a recipe; `row_length` is the length of the data's rows, for a recipe that says none. `ends` are
    the steps, by the stage's name, after which stages with `until` have ended: those behind them begin there.

    A recipe without stages is one. Raises FactoryError where the numbers do not fit together.
    """
    found: list[Stage] = []
    before = Stage(
        name="",
        first=0,
        steps=0,
        batch_size=recipe.train.batch_size,
        sequence_length=row_length,
        model=recipe.model,
        documents=recipe.data.documents,
        maximum_share=1.0,
        weights=recipe.data.weights,
        schedule=recipe.optimizer,
        schedule_first=0,
        schedule_steps=0,
    )
    if not recipe.stages:
        found = [dataclasses.replace(before, name="1", steps=recipe.train.steps)]
    for one in recipe.stages:
        before = _next(before, one, first=not found)
        if ends and one.name in ends:
            before = dataclasses.replace(before, steps=ends[one.name] - before.first)
        found.append(before)
    _check(found)
    return _scheduled(found, recipe)


def _next(before: Stage, one: StageConfig, first: bool) -> Stage:
    length = one.sequence_length or before.sequence_length
    size = one.batch_size
    if not size:
        size = before.batch_size if first else max(1, round(before.batch_size * before.sequence_length / length))
    model = dataclasses.replace(
        before.model,
        rope_theta=one.rope_theta or before.model.rope_theta,
        rope_scaling=one.rope_scaling or before.model.rope_scaling,
        dual_chunk_attention_config=one.dual_chunk_attention_config or before.model.dual_chunk_attention_config,
    )
    return Stage(
        name=one.name,
        first=before.last,
        steps=-(-one.tokens // (size * length)),
        batch_size=size,
        sequence_length=length,
        model=model,
        documents=one.documents or before.documents,
        maximum_share=before.maximum_share if one.maximum_share is None else one.maximum_share,
        weights=one.weights or before.weights,
        schedule=one.optimizer or before.schedule,
        schedule_first=0,
        schedule_steps=0,
        until=one.until,
    )


def _scheduled(found: list[Stage], recipe: TrainRecipe) -> list[Stage]:
    """The stages with the steps that their schedules run over: from the stage that begins one to the next that does."""
    begins = [number for number, one in enumerate(recipe.stages) if number and one.optimizer is not None]
    edges = [0, *begins, len(found)]
    out = []
    for begin, end in itertools.pairwise(edges):
        part = found[begin:end]
        first, steps = part[0].first, sum(stage.steps for stage in part)
        part[0].schedule.check(f"stage {part[0].name}" if recipe.stages else "optimizer", steps)
        for stage in part:
            if stage.until and stage.schedule.schedule != "constant":
                raise FactoryError(
                    f"stage {stage.name}: until = {stage.until} with schedule = {stage.schedule.schedule!r}: how long "
                    'it takes is not known before: say schedule = "constant", and let a later stage begin another'
                )
        out += [dataclasses.replace(stage, schedule_first=first, schedule_steps=steps) for stage in part]
    return out


def _check(found: list[Stage]) -> None:
    for stage in found:
        where, length = f"stage {stage.name}: sequences of {stage.sequence_length:,} tokens", stage.sequence_length
        if length > stage.model.max_position_embeddings:
            raise FactoryError(
                f"{where}, but model.max_position_embeddings is {stage.model.max_position_embeddings:,}: raise it, or "
                "train on shorter sequences (sequence_length of a stage)"
            )
        if length < 2:
            raise FactoryError(f"{where}: at least 2 are needed")
        if stage.maximum_share < 1 and (length % max(CUTS) or length < 2 * max(CUTS)):
            raise FactoryError(
                f"{where} cannot be cut into {max(CUTS)} with maximum_share = {stage.maximum_share}: "
                f"a multiple of {max(CUTS)} can, of two tokens each or more"
            )

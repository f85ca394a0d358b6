"""A grid of small trainings over size, tokens, learning rate and batch size, and what became of each.

    points.parquet    a row for each training that has ended
    running/KEY/      the run folder of the one that was cut off, which goes on where it was

Each is a training of model.pretrain as the recipe says it, with another size, length, learning rate and batch.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.engine.errors import FactoryError
from factory.engine.files import aside, digest
from model.config import ModelConfig, TrainRecipe
from model.data import TokenDataset
from model.options import section
from model.picture import clock
from model.pretrain import Diverged, Pretraining, identity
from model.recipe import preset
from model.scaling.law import scale_of

POINTS = pa.schema(
    [
        ("key", pa.string()),  # of all that the training is: a changed recipe is trained anew
        ("size", pa.int64()),  # its place among scaling.sizes
        ("parameters", pa.int64()),  # N, see law.parameters
        ("tokens", pa.int64()),  # D as the recipe says it; trained on is the nearest whole number of steps
        ("compute", pa.float64()),
        ("learning_rate", pa.float64()),
        ("batch_size", pa.int64()),
        ("batch_tokens", pa.int64()),
        ("seed", pa.int64()),
        ("loss", pa.float64()),  # the mean over the last part of the steps, see TAIL
        ("evaluation_loss", pa.float64()),
        ("seconds", pa.float64()),
        ("diverged", pa.bool_()),  # the loss or the gradient was no number: the losses are null
    ]
)
TAIL = 0.05  # of the steps are averaged for the final training loss: the same sequences in each batch size
STEP = 8e6  # parameters times tokens: a step costs about so much more than its arithmetic, for the time left
WARMUP = 0.1  # of the steps at most: a warm-up for long trainings would be all of a short one


@dataclass(frozen=True)
class Point:
    """One training of the grid: its recipe and the columns of its row that are known before."""

    recipe: TrainRecipe
    row: dict[str, Any]
    work: float
    """What it costs, for the time left: tokens times parameters, the vocabulary's too, and something for each step."""


def sized(base: ModelConfig, size: dict[str, Any]) -> ModelConfig:
    """The model with the keys of one of scaling.sizes."""
    if "preset" in size:
        size = preset(size["preset"]) | size
    given = section("scaling.sizes", ModelConfig, size, "the recipe")
    config = dataclasses.replace(base, **{key: getattr(given, key) for key in size})
    config.check()
    return config


def points(recipe: TrainRecipe, data: Mapping[str, TokenDataset]) -> list[Point]:
    """Every training of the recipe's grid, cheap ones first. `recipe` has the vocabulary's size."""
    grid = recipe.scaling
    if recipe.stages:
        raise FactoryError("a grid is of trainings without stages: scaling.tokens says how long each is")
    for name in ("sizes", "tokens", "learning_rates", "batch_sizes"):
        if not getattr(grid, name):
            raise FactoryError(f"scaling.{name} is missing: [scaling] says which {name.replace('_', ' ')} to try")
    made = []
    for (number, size), tokens, batch, rate, seed in itertools.product(
        enumerate(grid.sizes), grid.tokens, grid.batch_sizes, grid.learning_rates, range(grid.seeds)
    ):
        model = sized(recipe.model, size)
        made.append(_point(recipe, data, model, number, tokens, batch, rate, recipe.train.seed + seed))
    return sorted(made, key=lambda point: (point.row["tokens"], point.work))


def _point(
    recipe: TrainRecipe,
    data: Mapping[str, TokenDataset],
    model: ModelConfig,
    number: int,
    tokens: int,
    batch: int,
    rate: float,
    seed: int,
) -> Point:
    length = max(one.row_length for one in data.values())
    steps = round(tokens / (batch * length))
    if not steps:
        raise FactoryError(f"scaling.tokens = {tokens:,} is less than a step of {batch} sequences of {length} tokens")
    train = dataclasses.replace(recipe.train, steps=steps, batch_size=batch, seed=seed, evaluate_every=steps)
    warmup = min(recipe.optimizer.warmup_steps, round(WARMUP * steps))
    optimizer = dataclasses.replace(recipe.optimizer, learning_rate=rate, warmup_steps=warmup)
    whole = dataclasses.replace(recipe, model=model, train=train, optimizer=optimizer)
    scale = scale_of(model, tokens, length)
    row = {
        "key": digest(identity(whole, data)),
        "size": number,
        "parameters": scale.N,
        "tokens": tokens,
        "compute": scale.C,
        "learning_rate": rate,
        "batch_size": batch,
        "batch_tokens": batch * length,
        "seed": seed,
    }
    return Point(whole, row, tokens * (float(scale.N) + model.vocab_size * model.hidden_size) + steps * STEP)


def train_point(point: Point, data: Mapping[str, TokenDataset], folder: Path) -> dict[str, Any]:
    """Train one and return its row. Raises Stopped after a signal; called again it goes on."""
    work = Pretraining(point.recipe, data, folder)
    try:
        work.run()
    except Diverged:
        ended = {"loss": None, "evaluation_loss": None, "diverged": True}
    else:
        last = work.metrics[-max(1, round(TAIL * len(work.metrics))) :]
        loss = sum(row["loss"] for row in last) / len(last)
        ended = {"loss": loss, "evaluation_loss": work.metrics[-1]["evaluation_loss"], "diverged": False}
    return point.row | ended | {"seconds": sum(row["seconds"] for row in work.metrics)}


def run(recipe: TrainRecipe, data: Mapping[str, TokenDataset], folder: Path) -> list[dict[str, Any]]:
    """Train every point of the grid that points.parquet in `folder` lacks; the rows of this grid."""
    todo = points(recipe, data)
    path = folder / "points.parquet"
    rows = pq.read_table(path).to_pylist() if path.exists() else []
    done = {row["key"]: row for row in rows}
    progress = Progress(todo, done)
    for point in todo:
        if point.row["key"] in done:
            continue
        running = folder / "running" / point.row["key"]
        begin = time.monotonic()
        done[point.row["key"]] = row = train_point(point, data, running)
        with aside(str(path)) as scratch:
            pq.write_table(pa.Table.from_pylist(list(done.values()), POINTS), scratch)
        if running.exists():
            shutil.rmtree(running.parent)
        progress(point, row, time.monotonic() - begin)
    return [done[point.row["key"]] for point in todo]


class Progress:
    """A line for each training that has ended, with the time left."""

    def __init__(self, todo: list[Point], done: dict[str, Any]) -> None:
        self.left = sum(point.work for point in todo if point.row["key"] not in done)
        self.count, self.number = len(todo), sum(point.row["key"] in done for point in todo)
        self.seconds = self.work = 0.0
        if self.number:
            print(f"{self.number} of {self.count} trainings are done already", file=sys.stderr)

    def __call__(self, point: Point, row: dict[str, Any], seconds: float) -> None:
        self.number += 1
        self.left -= point.work
        self.work += point.work
        self.seconds += seconds
        print(
            f"{self.number}/{self.count}  N {row['parameters']:,}  D {row['tokens']:,}  "
            f"batch {row['batch_tokens']:,}  rate {row['learning_rate']:.3g}  {told(row)}  "
            f"{clock(self.seconds / self.work * self.left)} left",
            file=sys.stderr,
            flush=True,
        )


def told(row: dict[str, Any]) -> str:
    if row["diverged"]:
        return "diverged"
    held = row["evaluation_loss"]
    return f"loss {row['loss']:.3f}" + (f"  held out {held:.3f}" if held is not None else "")


def groups(rows: list[dict[str, Any]]) -> Iterator[tuple[tuple[int, int], list[dict[str, Any]]]]:
    """The rows of each (size, tokens), in order."""

    def where(row: dict[str, Any]) -> tuple[int, int]:
        return row["size"], row["tokens"]

    for key, part in itertools.groupby(sorted(rows, key=where), where):
        yield key, list(part)

"""Pre-training: next-token prediction with AdamW over the stages of a recipe, evaluation, and checkpoints that go on
bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from factory.engine.errors import FactoryError
from factory.engine.files import aside
from model.attention import separated
from model.checkpoint import load_hf, load_state, save_hf, save_state
from model.config import OptimizerConfig, TrainRecipe
from model.curriculum import Stage, stages
from model.data import IGNORE, Span, TokenDataset, allot, read
from model.moe import Routing, balance_loss, expert_load
from model.stream import Mixture, Stream, blocks
from model.transformer import Transformer
from model.upcycle import upcycle

EVALUATION_BLOCKS = 64  # held-out sequences are taken from at most so many places
# The load-balancing loss before its weight; and of all layers the most and the least used expert's tokens, as multiples
# of an even share. Null without experts.
EXPERT_METRICS = ("balance_loss", "expert_load_max", "expert_load_min")
METRICS = pa.schema(
    [
        ("step", pa.int64()),
        ("stage", pa.string()),
        ("tokens", pa.int64()),
        ("loss", pa.float64()),
        ("evaluation_loss", pa.float64()),
        ("learning_rate", pa.float64()),
        ("gradient_norm", pa.float64()),
        ("seconds", pa.float64()),
        ("data_seconds", pa.float64()),  # of these, waiting for the data
        *((name, pa.float64()) for name in EXPERT_METRICS),
    ]
)
# What may differ when a training goes on: it changes neither the weights nor what the metrics mean.
FREE = (
    "data.path",
    "data.sets",
    "train.save_every",
    "train.sample_prompt",
    "train.tensorboard",
    "train.threads",
    "train.micro_batch_size",
)


class Diverged(FactoryError):
    """The loss or the gradient is no number any more."""


class Stopped(Exception):
    """A signal asked to stop; the state of `step` is saved."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step, self.signal = step, number


def optimizer_for(model: Transformer, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)


@dataclasses.dataclass(frozen=True)
class Separator:
    """Documents are kept apart: `end` is the id that ends each, `restart` whether positions begin anew."""

    end: int
    restart: bool


def separator_of(documents: str, data: TokenDataset) -> Separator | None:
    """What `documents` means for this dataset; None where documents are joined."""
    if documents == "joined":
        return None
    if data.end is None:
        raise FactoryError(
            f"documents = {documents!r}: the tokenizer of {data.folder} lacks the separator, "
            'so that documents cannot be told apart: use "joined"'
        )
    return Separator(data.end, documents == "restarted")


def loss_of(
    model: Transformer,
    batch: np.ndarray,
    reduction: str = "mean",
    separator: Separator | None = None,
    routings: list[Routing] | None = None,
) -> Tensor:
    """Cross-entropy in nats of each token given those before it; IGNORE in the batch is no token."""
    ids = torch.from_numpy(batch).to(model.lm_head.weight.device, torch.long)
    given = ids[:, :-1].clamp(min=0)
    documents = separated(given, separator.end, separator.restart) if separator else None
    logits = model(given, documents=documents, routings=routings)
    targets = ids[:, 1:].flatten()
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORE, reduction="sum")
    # A batch may hold no target at all: a shard's last sequence can be one token long.
    return total if reduction == "sum" else total / (targets != IGNORE).sum().clamp(min=1)


def held_out(spans: list[Span], length: int, count: int, seed: int) -> np.ndarray:
    """At most `count` held-out sequences, spread evenly over the places that were held out."""
    places = [block for span in spans for block in blocks(span, length)]
    order = np.random.default_rng([seed, 4]).permutation(len(places))[:EVALUATION_BLOCKS]
    share = math.ceil(count / max(1, len(order)))
    parts = [np.empty((0, length), np.int32)]
    for number in sorted(order.tolist()):
        rows = read([places[number]], length)
        parts.append(rows[np.unique(np.linspace(0, len(rows) - 1, min(share, len(rows))).astype(np.int64))])
    return np.concatenate(parts)[:count]


@torch.no_grad()
def evaluate(model: Transformer, sequences: np.ndarray, batch_size: int, separator: Separator | None = None) -> float:
    """The mean loss a token over held-out sequences."""
    total, tokens = 0.0, 0
    for at in range(0, len(sequences), batch_size):
        batch = sequences[at : at + batch_size]
        total += loss_of(model, batch, "sum", separator).item()
        tokens += int((batch[:, 1:] != IGNORE).sum())
    return total / max(1, tokens)


def identity(recipe: TrainRecipe, data: Mapping[str, TokenDataset]) -> dict[str, Any]:
    """What a training is, apart from where and how fast: two runs of one identity give the same weights."""
    parts = {name: dataclasses.asdict(getattr(recipe, name)) for name in ("model", "data", "optimizer", "train")}
    flat = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    keys = {f"key of {name}": one.key for name, one in data.items()}
    curriculum = {f"stage {one.name}": dataclasses.asdict(one) for one in recipe.stages}
    return {key: value for key, value in flat.items() if key not in FREE} | keys | curriculum


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT are put into, instead of ending the process in the middle of a step."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, _: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Pretraining:
    """One training in a run folder: `run()` starts it, or goes on from the folder's checkpoint.

    `data` are the datasets by name, `stages` what the recipe's stages come to; `model` holds the weights and `metrics`
    a row for each step (see METRICS) when it has ended.
    """

    def __init__(self, recipe: TrainRecipe, data: Mapping[str, TokenDataset], folder: Path) -> None:
        self.recipe, self.data, self.folder = recipe, data, folder
        self.state_path = folder / "checkpoint" / "training.pt"
        self.identity = identity(recipe, data)
        self.tokenizer = next(iter(data.values()))  # all have the same
        self.stages = stages(recipe, max(one.row_length for one in data.values()))
        self.steps = self.stages[-1].last
        for stage in self.stages:
            separator_of(stage.documents, self.tokenizer)
        self.parts = self._parts()
        torch.set_num_threads(recipe.train.threads or cores())
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = self._new().to(self.device)
        self.optimizer = optimizer_for(self.model, recipe.optimizer)
        self.step = 0
        self.metrics: list[dict[str, Any]] = []
        if self.state_path.exists():
            self._restore()
        self._enter(next((stage for stage in self.stages if self.step < stage.last), self.stages[-1]))

    def _parts(self) -> dict[str, list[list[Span]]]:
        """Of each dataset the tokens for each stage; none twice where there are enough."""
        whole = {name: sum(span.tokens for span in one.training) for name, one in self.data.items()}
        found = {}
        for name, one in self.data.items():
            shares = [(stage.weights or whole).get(name, 0) for stage in self.stages]
            totals = [sum((stage.weights or whole).values()) for stage in self.stages]
            demands = [
                math.ceil(stage.tokens * share / total)
                for stage, share, total in zip(self.stages, shares, totals, strict=True)
            ]
            found[name] = allot(one.training, demands, self.recipe.data.seed)
        return found

    def _new(self) -> Transformer:
        train, begun = self.recipe.train, self.state_path.exists()
        if train.upcycle and not begun:
            return upcycle(load_hf(train.upcycle).float(), self.recipe.model, train.seed)
        if train.start and not begun:
            return load_hf(train.start, self.recipe.model).float()
        model = Transformer(self.recipe.model)
        model.initialise(train.seed)
        return model

    def _enter(self, stage: Stage) -> None:
        """Make the model and the data those of a stage."""
        self.stage = stage
        self.model.configure(stage.model)
        self.separator = separator_of(stage.documents, self.tokenizer)
        config, number = self.recipe.data, self.stages.index(stage)
        streams = {
            name: Stream(
                parts[number], stage.sequence_length, [config.seed, number], config.shuffle_tokens // len(self.data)
            )
            for name, parts in self.parts.items()
            if parts[number]
        }
        self.mixture = Mixture(streams, stage.weights, stage.maximum_share)
        self.held_out = self._held_out(stage)

    def _held_out(self, stage: Stage) -> np.ndarray:
        """Held-out sequences of a stage, each set's share as in training."""
        config, count = self.recipe.data, self.recipe.train.evaluation_sequences
        shares = dict(zip(self.mixture.names, self.mixture.quota / self.mixture.quota.sum(), strict=True))
        parts = [
            held_out(self.data[name].evaluation, stage.sequence_length, max(1, round(count * share)), config.seed)
            for name, share in shares.items()
        ]
        return np.concatenate(parts)

    def _restore(self) -> None:
        state = load_state(self.state_path)
        for key in sorted(self.identity.keys() | state["identity"].keys()):
            was, now = state["identity"].get(key), self.identity.get(key)
            if was != now:
                raise FactoryError(
                    f"{self.folder} was begun with {key} = {was!r}, now it is {now!r}: "
                    "set it back, give out=ANOTHER_FOLDER, or remove the folder"
                )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        path = self.folder / "metrics.parquet"
        rows = pq.read_table(path).to_pylist() if path.exists() else []
        self.metrics = [row for row in rows if row["step"] <= self.step]

    def save(self) -> None:
        """Write metrics and state. The data's position is the step: the order of the sequences depends on nothing
        else, and training draws no random numbers."""
        # The metrics come first: a kill between the two leaves rows too many, which _restore cuts off.
        with aside(str(self.folder / "metrics.parquet")) as scratch:
            pq.write_table(pa.Table.from_pylist(self.metrics, METRICS), scratch)
        state = {
            "identity": self.identity,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_state(self.state_path, state)

    def save_model(self, name: str) -> None:
        """Write checkpoint/NAME in Hugging Face's form."""
        save_hf(self.model, self.folder / "checkpoint" / name, self.tokenizer.tokenizer, self.tokenizer.stop)

    def run(self, report: Callable[[dict[str, Any]], None] = lambda row: None) -> None:
        """Train to the end. `report` gets each step's row of metrics. Raises Stopped after SIGTERM or SIGINT."""
        train = self.recipe.train
        with stop_signals() as caught:
            while self.step < self.steps:
                if self.step == self.stage.last:
                    self.save_model(f"stage-{self.stage.name}")
                    self._enter(self.stages[self.stages.index(self.stage) + 1])
                row = self._step()
                ends = self.step == self.stage.last
                if self.step % train.evaluate_every == 0 or ends:
                    row["evaluation_loss"] = self._evaluate()
                self.metrics.append(row)
                report(row)
                if caught or self.step % train.save_every == 0 or ends:
                    self.save()
                if caught and self.step < self.steps:
                    raise Stopped(self.step, caught[0])

    def _evaluate(self) -> float | None:
        if not len(self.held_out):
            return None
        size = self.recipe.train.micro_batch_size or self.stage.batch_size
        return evaluate(self.model, self.held_out, size, self.separator)

    def _batch(self) -> list[np.ndarray]:
        """The sequences of the next step, in parts that fit into memory at once."""
        stage = self.stage
        groups = self.mixture.batch((self.step - stage.first) * stage.batch_size, stage.batch_size)
        size = (self.recipe.train.micro_batch_size or stage.batch_size) * stage.sequence_length
        return [
            group[at : at + size // group.shape[1]]
            for group in groups
            for at in range(0, len(group), size // group.shape[1])
        ]

    def _step(self) -> dict[str, Any]:
        begin = time.perf_counter()
        parts = self._batch()
        read = time.perf_counter()
        rate = self.stage.learning_rate(self.step + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        targets = sum(int((part[:, 1:] != IGNORE).sum()) for part in parts)
        # A batch may hold no target at all: a shard's last sequence can be one token long.
        results = [self._back(part, max(1, targets)) for part in parts]
        loss, *experts = (sum(values) for values in zip(*results, strict=True)) if results else (0.0,)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            places = self.mixture.places((self.step - self.stage.first) * self.stage.batch_size, self.stage.batch_size)
            raise Diverged(
                f"step {self.step + 1}: loss {loss}, gradient norm {norm}: stopped, the last good checkpoint "
                f"stays; lower optimizer.learning_rate, or look at the batch: {'; '.join(places)}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        tokens = sum(int((part != IGNORE).sum()) for part in parts)
        return {
            "step": self.step,
            "stage": self.stage.name,
            "tokens": tokens + (self.metrics[-1]["tokens"] if self.metrics else 0),
            "loss": loss,
            "evaluation_loss": None,
            "learning_rate": rate,
            "gradient_norm": norm,
            "seconds": time.perf_counter() - begin,
            "data_seconds": read - begin,
            **dict(zip(EXPERT_METRICS, experts or [None] * len(EXPERT_METRICS), strict=True)),
        }

    def _back(self, part: np.ndarray, targets: int) -> list[float]:
        """Add a part's gradients; its part of the loss and, with experts, of EXPERT_METRICS."""
        routings: list[Routing] = []
        loss = loss_of(self.model, part, "sum", self.separator, routings) / targets
        if not routings:
            loss.backward()
            return [loss.item()]
        real = torch.from_numpy(part[:, :-1] != IGNORE).flatten().to(loss.device)
        share = float((part[:, 1:] != IGNORE).sum()) / targets
        balance, load = balance_loss(routings, real), expert_load(routings, real)
        (loss + self.recipe.model.router_aux_loss_coef * share * balance).backward()
        return [loss.item(), *(share * value.item() for value in (balance, load.max(), load.min()))]

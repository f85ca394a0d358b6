"""Pre-training: next-token prediction with AdamW, evaluation, and checkpoints that go on bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from factory.engine.errors import FactoryError
from factory.engine.files import aside
from model.attention import separated
from model.checkpoint import load_hf, load_state, save_state
from model.config import OptimizerConfig, TrainRecipe
from model.data import IGNORE, Block, Stream, TokenDataset, read
from model.moe import Routing, balance_loss, expert_load
from model.transformer import Transformer
from model.upcycle import upcycle

EVALUATION_BLOCKS = 64  # held-out sequences are taken from at most so many places
# The load-balancing loss before its weight; and of all layers the most and the least used expert's tokens, as multiples
# of an even share. Null without experts.
EXPERT_METRICS = ("balance_loss", "expert_load_max", "expert_load_min")
METRICS = pa.schema(
    [
        ("step", pa.int64()),
        ("tokens", pa.int64()),
        ("loss", pa.float64()),
        ("evaluation_loss", pa.float64()),
        ("learning_rate", pa.float64()),
        ("gradient_norm", pa.float64()),
        ("seconds", pa.float64()),
        *((name, pa.float64()) for name in EXPERT_METRICS),
    ]
)
# What may differ when a training goes on: it changes neither the weights nor what the metrics mean.
FREE = ("data.path", "train.save_every", "train.sample_prompt", "train.threads")


class Stopped(Exception):
    """A signal asked to stop; the state of `step` is saved."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step, self.signal = step, number


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """The rate of step 1 .. steps: a straight warm-up, then a cosine, or level and then straight down (WSD)."""
    top, low = config.learning_rate, config.learning_rate * config.final_share
    if step <= config.warmup_steps:
        return top * step / config.warmup_steps
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return low + (top - low) * 0.5 * (1 + math.cos(math.pi * done))
    falling = max(1, round(config.decay_share * steps))
    return top - (top - low) * max(0.0, (step - (steps - falling)) / falling)


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


def separator_of(recipe: TrainRecipe, data: TokenDataset) -> Separator | None:
    """What data.documents says of this dataset; None where documents are joined."""
    if recipe.data.documents == "joined":
        return None
    if data.end is None:
        raise FactoryError(
            f"data.documents = {recipe.data.documents!r}: the tokenizer of {data.folder} has no <|endoftext|>, "
            'so that documents cannot be told apart: use "joined"'
        )
    return Separator(data.end, recipe.data.documents == "restarted")


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
    targets = ids[:, 1:]
    total = model(given, documents=documents, routings=routings, targets=targets)
    # A batch may hold no target at all: a shard's last sequence can be one token long.
    return total if reduction == "sum" else total / (targets != IGNORE).sum().clamp(min=1)


def held_out(blocks: list[Block], length: int, count: int, seed: int) -> np.ndarray:
    """At most `count` held-out sequences, spread evenly over the places that were held out."""
    order = np.random.default_rng([seed, 4]).permutation(len(blocks))[:EVALUATION_BLOCKS]
    share = math.ceil(count / max(1, len(order)))
    parts = []
    for number in sorted(order.tolist()):
        rows = read([blocks[number]], length)
        parts.append(rows[np.unique(np.linspace(0, len(rows) - 1, min(share, len(rows))).astype(np.int64))])
    return np.concatenate(parts)[:count] if parts else np.empty((0, length), np.int32)


@torch.no_grad()
def evaluate(model: Transformer, sequences: np.ndarray, batch_size: int, separator: Separator | None = None) -> float:
    """The mean loss a token over held-out sequences."""
    total, tokens = 0.0, 0
    for at in range(0, len(sequences), batch_size):
        batch = sequences[at : at + batch_size]
        total += loss_of(model, batch, "sum", separator).item()
        tokens += int((batch[:, 1:] != IGNORE).sum())
    return total / max(1, tokens)


def identity(recipe: TrainRecipe, data: TokenDataset) -> dict[str, Any]:
    """What a training is, apart from where and how fast: two runs of one identity give the same weights."""
    parts = {name: dataclasses.asdict(getattr(recipe, name)) for name in ("model", "data", "optimizer", "train")}
    flat = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    return {key: value for key, value in flat.items() if key not in FREE} | {"data.key": data.key}


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

    `model` holds the weights and `metrics` a row for each step (see METRICS) when it has ended.
    """

    def __init__(self, recipe: TrainRecipe, data: TokenDataset, folder: Path) -> None:
        self.recipe, self.data, self.folder = recipe, data, folder
        self.state_path = folder / "checkpoint" / "training.pt"
        self.identity = identity(recipe, data)
        if data.sequence_length > recipe.model.max_position_embeddings:
            raise FactoryError(
                f"{data.folder} has sequences of {data.sequence_length} tokens, but model.max_position_embeddings is "
                f"{recipe.model.max_position_embeddings}: raise it, or pack shorter sequences"
            )
        torch.set_num_threads(recipe.train.threads or cores())
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = self._new().to(self.device)
        self.optimizer = optimizer_for(self.model, recipe.optimizer)
        self.separator = separator_of(recipe, data)
        self.stream = Stream(data.training, data.sequence_length, recipe.data)
        self.held_out = held_out(
            data.evaluation, data.sequence_length, recipe.train.evaluation_sequences, recipe.data.seed
        )
        self.step = 0
        self.metrics: list[dict[str, Any]] = []
        if self.state_path.exists():
            self._restore()

    def _new(self) -> Transformer:
        if self.recipe.train.upcycle and not self.state_path.exists():
            dense = load_hf(self.recipe.train.upcycle).float()
            return upcycle(dense, self.recipe.model, self.recipe.train.seed)
        model = Transformer(self.recipe.model)
        model.initialise(self.recipe.train.seed)
        return model

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

    def run(self, report: Callable[[dict[str, Any]], None] = lambda row: None) -> None:
        """Train to the end. `report` gets each step's row of metrics. Raises Stopped after SIGTERM or SIGINT."""
        train = self.recipe.train
        with stop_signals() as caught:
            while self.step < train.steps:
                row = self._step()
                if self.step % train.evaluate_every == 0 or self.step == train.steps:
                    row["evaluation_loss"] = self._evaluate()
                self.metrics.append(row)
                report(row)
                if caught or self.step % train.save_every == 0 or self.step == train.steps:
                    self.save()
                if caught and self.step < train.steps:
                    raise Stopped(self.step, caught[0])

    def _evaluate(self) -> float | None:
        if not len(self.held_out):
            return None
        return evaluate(self.model, self.held_out, self.recipe.train.batch_size, self.separator)

    def _step(self) -> dict[str, Any]:
        begin = time.perf_counter()
        train = self.recipe.train
        batch = self.stream.batch(self.step * train.batch_size, train.batch_size)
        rate = learning_rate(self.step + 1, train.steps, self.recipe.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        routings: list[Routing] = []
        loss = loss_of(self.model, batch, "mean", self.separator, routings)
        total, experts = loss, dict.fromkeys(EXPERT_METRICS)
        if routings:
            real = torch.from_numpy(batch[:, :-1] != IGNORE).flatten().to(loss.device)
            balance, load = balance_loss(routings, real), expert_load(routings, real)
            total = loss + self.recipe.model.router_aux_loss_coef * balance
            experts = dict(zip(EXPERT_METRICS, (balance.item(), load.max().item(), load.min().item()), strict=True))
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip)
        values = loss.item(), norm.item()
        if not all(map(math.isfinite, values)):
            places = self.stream.places(self.step * train.batch_size, train.batch_size)
            raise FactoryError(
                f"step {self.step + 1}: loss {values[0]}, gradient norm {values[1]}: stopped, the last good checkpoint "
                f"stays; lower optimizer.learning_rate, or look at the batch: {'; '.join(places)}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        tokens = int((batch != IGNORE).sum()) + (self.metrics[-1]["tokens"] if self.metrics else 0)
        return {
            "step": self.step,
            "tokens": tokens,
            "loss": values[0],
            "evaluation_loss": None,
            "learning_rate": rate,
            "gradient_norm": values[1],
            "seconds": time.perf_counter() - begin,
            **experts,
        }

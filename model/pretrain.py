"""Pre-training: next-token prediction over the stages of a recipe, and checkpoints that go on bit for bit."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from factory.engine.errors import FactoryError
from factory.engine.files import aside, digest
from model.checkpoint import file_hashes, load_hf, save_hf
from model.config import OptimizerConfig, TrainRecipe
from model.curriculum import Stage, stages
from model.data import IGNORE, Span, TokenDataset, allot
from model.flops import peak, utilisation
from model.moe import Routing, balance_loss, expert_load
from model.muon import Muon
from model.objective import evaluate, held_out, loss_of, separator_of
from model.parallel import World, accumulate, build, clip, cores, gathered, stop_signals
from model.probe import Probe
from model.state import States
from model.stream import Mixture, Stream
from model.transformer import Transformer
from model.upcycle import upcycle

AHEAD = 20  # so many steps before the end of a stage the data of the next begin to be read
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
        ("probe_accuracy", pa.float64()),
        ("learning_rate", pa.float64()),
        ("gradient_norm", pa.float64()),
        ("seconds", pa.float64()),
        ("data_seconds", pa.float64()),  # of these, waiting for the data
        ("mfu", pa.float64()),  # the share of the GPUs' peak; null on CPU, or where model/flops.py has no peak
        *((name, pa.float64()) for name in EXPERT_METRICS),
    ]
)
# What may differ when a training goes on: it changes neither the weights nor what the metrics mean.
FREE = (
    "data.path",
    "data.sets",
    "probe.data",
    "train.save_every",
    "train.sample_prompt",
    "train.tensorboard",
    "train.threads",
    "train.micro_batch_size",
    "train.compile",
    "train.checkpoint_activations",
    "train.context_parallel",
)


START = "the checkpoint to start with"


class Diverged(FactoryError):
    """The loss or the gradient is no number any more."""


class Stopped(Exception):
    """A signal asked to stop; the state of `step` is saved."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step, self.signal = step, number


def optimizer_for(model: Transformer, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of a recipe; weight decay on matrices only."""
    betas = (config.beta1, config.beta2)
    if config.name == "muon":
        return Muon(
            model.named_parameters(),
            config.learning_rate,
            betas=betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)


def identity(recipe: TrainRecipe, data: Mapping[str, TokenDataset]) -> dict[str, Any]:
    """What a training is, apart from where and how fast: two runs of one identity give the same weights."""
    parts = {
        name: dataclasses.asdict(getattr(recipe, name)) for name in ("model", "data", "optimizer", "train", "probe")
    }
    flat = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    keys = {f"key of {name}": one.key for name, one in data.items()}
    curriculum = {f"stage {n} {one.name}": dataclasses.asdict(one) for n, one in enumerate(recipe.stages, 1)}
    free = set(FREE)
    if recipe.model.num_experts:  # the load-balancing loss is over what is computed at a time
        free.remove("train.micro_batch_size")
    return {key: value for key, value in flat.items() if key not in free} | keys | curriculum


class Pretraining:
    """One training in a run folder: `run()` starts it, or goes on from the folder's checkpoint.

    `data` are the datasets by name, `stages` what the recipe's stages come to; `model` holds the weights and `metrics`
    a row for each step (see METRICS) when it has ended. Each process of `world` makes one, of the same arguments; rank
    0 writes the files.
    """

    def __init__(
        self, recipe: TrainRecipe, data: Mapping[str, TokenDataset], folder: Path, world: World | None = None
    ) -> None:
        self.recipe, self.data, self.folder = recipe, data, folder
        self.world = world or World()
        self.world.share(recipe.train.context_parallel)
        self.states = States(folder / "checkpoint", self.world)
        self.identity = identity(recipe, data)
        self.tokenizer = next(iter(data.values()))  # all have the same
        self.probe: Probe | None = None
        if recipe.probe.data:
            self.probe = Probe(recipe.probe, self.tokenizer.tokenizer, recipe.model.max_position_embeddings)
            self.identity["key of the probe"] = self.probe.key
        self.ends: dict[str, int] = {}  # the last step of each stage that reached its `until`
        self._plan()
        self.whole = {name: sum(span.tokens for span in one.training) for name, one in data.items()}
        self.parts = self._parts()
        for stage in self.stages:  # what a later one refuses is told before the first
            separator_of(stage.documents, self.tokenizer)
        self.mixtures = {stage.name: self._mixture(stage) for stage in self.stages}
        torch.set_num_threads(recipe.train.threads or max(1, cores() // self.world.local_size))
        begun = self.states.description()
        start = recipe.train.start or recipe.train.upcycle
        if start:  # by its content, another one may lie there by now; once begun it is not needed any more
            gone = begun is not None and not (Path(start) / "config.json").is_file()
            self.identity[START] = begun["identity"].get(START) if begun and gone else digest(file_hashes(Path(start)))
        if begun is not None:
            self._check(begun["identity"])
            self.ends = begun["ends"]
            self._plan()
        self.step: int = begun["step"] if begun is not None else 0
        # At the end of a stage that stage: its model may not have been written before the kill.
        stage = next(stage for stage in self.stages if self.step <= stage.last)
        self.mixtures[stage.name].ahead(self._position(stage))
        self.model = build(recipe.model, self.world, recipe.train, self._new if begun is None else None)
        self.optimizer = optimizer_for(self.model, recipe.optimizer)
        self.metrics: list[dict[str, Any]] = []
        if begun is not None:
            self._restore()
        self._enter(stage)

    @property
    def steps(self) -> int:
        """Of the whole training, as far as is known."""
        return self.stages[-1].last

    def _plan(self) -> None:
        self.stages = stages(self.recipe, max(one.row_length for one in self.data.values()), self.ends)

    def _position(self, stage: Stage) -> int:
        """The first sequence of the next step, counted in a stage's mixture."""
        return (self.step - stage.first) * stage.batch_size

    def _parts(self) -> dict[str, list[list[Span]]]:
        """Of each dataset the tokens for each stage, for all the steps that it may take; none twice where there are
        enough. So what a stage reads does not depend on where those before it ended."""
        weights = [stage.weights or self.whole for stage in self.stages]
        found = {}
        for name, one in self.data.items():
            demands = [
                math.ceil(stage.tokens * shares.get(name, 0) / sum(shares.values()))
                for stage, shares in zip(self.stages, weights, strict=True)
            ]
            found[name] = allot(one.training, demands, self.recipe.data.seed)
        return found

    def _new(self) -> Transformer:
        train = self.recipe.train
        if train.upcycle:
            return upcycle(load_hf(train.upcycle).float(), self.recipe.model, train.seed)
        if train.start:
            return load_hf(train.start, self.recipe.model).float()
        model = Transformer(self.recipe.model)
        model.initialise(train.seed)
        return model

    def _enter(self, stage: Stage) -> None:
        """Make the model and the data those of a stage."""
        self.stage = stage
        self.model.configure(stage.model)
        self.separator = separator_of(stage.documents, self.tokenizer)
        self.mixture = self.mixtures.pop(stage.name)
        self.held_out = self._held_out(stage)

    def _mixture(self, stage: Stage) -> Mixture:
        config, number = self.recipe.data, self.stages.index(stage)
        streams = {
            name: Stream(
                parts[number], stage.sequence_length, [config.seed, number], config.shuffle_tokens // len(self.data)
            )
            for name, parts in self.parts.items()
            if parts[number]
        }
        return Mixture(streams, stage.weights or self.whole, stage.maximum_share)

    def _held_out(self, stage: Stage) -> np.ndarray:
        """Held-out sequences of a stage, each set's share as in training."""
        config, count = self.recipe.data, self.recipe.train.evaluation_sequences
        shares = dict(zip(self.mixture.names, self.mixture.quota / self.mixture.quota.sum(), strict=True))
        parts = [
            held_out(self.data[name].evaluation, stage.sequence_length, max(1, round(count * share)), config.seed)
            for name, share in shares.items()
        ]
        return np.concatenate(parts)

    def _check(self, begun: dict[str, Any]) -> None:
        """Refuse to go on with what was begun as another training."""
        identity = json.loads(json.dumps(self.identity))  # as it is stored: tuples are lists
        for key in sorted(identity.keys() | begun.keys()):
            was, now = begun.get(key), identity.get(key)
            if was != now:
                raise FactoryError(
                    f"{self.folder} was begun with {key} = {was!r}, now it is {now!r}: "
                    "set it back, give out=ANOTHER_FOLDER, or remove the folder"
                )

    def _restore(self) -> None:
        self.states.load(self.model, self.optimizer)
        path = self.folder / "metrics.parquet"
        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            what = f"the metrics of the {self.step:,} steps that are done: {str(error).splitlines()[0]}"
            raise FactoryError(f"{path}: cannot read {what}: put it back, or remove the folder") from error
        self.metrics = [row for row in rows if row["step"] <= self.step]

    def save(self) -> None:
        """Write metrics and state, the state while training goes on. The data's position is the step in its stage: the
        order of the sequences depends on nothing else, and training draws no random numbers."""
        # The metrics come first: a kill between the two leaves rows too many, which _restore cuts off.
        self.world.together(self._save_metrics)
        self.states.save(self.step, self.model, self.optimizer, {"identity": self.identity, "ends": dict(self.ends)})

    def _save_metrics(self) -> None:
        with aside(str(self.folder / "metrics.parquet")) as scratch:
            pq.write_table(pa.Table.from_pylist(self.metrics, METRICS), scratch)

    def save_model(self, name: str) -> None:
        """Write checkpoint/NAME in Hugging Face's form."""
        folder, data = self.folder / "checkpoint" / name, self.tokenizer
        save_hf(self.model, folder, data.tokenizer, data.stop, self.world.first)

    def run(self, report: Callable[[dict[str, Any]], None] = lambda row: None) -> None:
        """Train to the end. `report` gets each step's row of metrics. Raises Stopped after SIGTERM or SIGINT to any
        rank."""
        try:
            self._run(report)
        finally:
            self.states.wait()

    def _run(self, report: Callable[[dict[str, Any]], None]) -> None:
        train = self.recipe.train
        with stop_signals() as caught:
            while self.step < self.steps:
                if self.step >= self.stage.last - AHEAD and self.stage.last < self.steps:
                    following = self.stages[self.stages.index(self.stage) + 1]
                    self.mixtures[following.name].ahead(0)
                    if self.step == self.stage.last:
                        self.save_model(f"stage-{self.stage.name}")
                        self._enter(following)
                row = self._step()
                row["probe_accuracy"] = self._ask()
                ends = self.step == self.stage.last
                if self.step % train.evaluate_every == 0 or ends:
                    row["evaluation_loss"] = self._evaluate()
                self.metrics.append(row)
                report(row)
                stop = self.world.sums(len(caught))[0] > 0
                if stop or self.step % train.save_every == 0 or ends:
                    self.save()
                if stop and self.step < self.steps:
                    raise Stopped(self.step, caught[0] if caught else signal.SIGTERM)

    def _ask(self) -> float | None:
        """The probe's accuracy where it is time for one. The stage ends here where that is what it lasted for."""
        stage, at_last = self.stage, self.step == self.stage.last
        if self.probe is None or (self.step % self.recipe.probe.every and not at_last):
            return None
        model, probe = gathered(self.model, self.world, getattr(torch, self.recipe.train.dtype)), self.probe
        (accuracy,) = self.world.sums(self.world.together(lambda: probe(model)) or 0.0)
        if stage.until and accuracy >= stage.until:
            self.ends[stage.name] = self.step
            self._plan()
            self.stage = next(one for one in self.stages if one.name == stage.name)
        elif stage.until and at_last and self.world.first:
            told = f"its {stage.tokens:,} tokens with a probe of {accuracy:.1%}, below until = {stage.until}"
            print(f"warning: stage {stage.name} ended after {told}", file=sys.stderr)
        return accuracy

    def _evaluate(self) -> float | None:
        if not len(self.held_out):
            return None
        size = self.recipe.train.micro_batch_size or self.stage.batch_size
        return evaluate(self.model, self.held_out, size, self.separator, self.world)

    def _batch(self) -> list[np.ndarray]:
        """The sequences of the next step in portions [parts of the world, sequences, length] that fit into memory."""
        stage = self.stage
        groups = self.mixture.batch(self._position(stage), stage.batch_size)
        size = (self.recipe.train.micro_batch_size or stage.batch_size) * stage.sequence_length
        return [part for group in groups for part in self.world.split(group, size // group.shape[1], IGNORE)]

    def _step(self) -> dict[str, Any]:
        begin = time.perf_counter()
        parts = self._batch()
        read = time.perf_counter()
        rate = self.stage.learning_rate(self.step + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        targets = sum(int((part[..., 1:] != IGNORE).sum()) for part in parts)
        # A batch may hold no target at all: a shard's last sequence can be one token long.
        results = [self._back(part, max(1, targets), last=part is parts[-1]) for part in parts]
        values = [sum(column) for column in zip(*results, strict=True)] or [0.0]
        values[:2] = self.world.sums(*values[:2])  # loads are those of all ranks already
        loss, experts = values[0], values[1:]
        norm = clip(self.model, self.recipe.optimizer.clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            places = self.mixture.places(self._position(self.stage), self.stage.batch_size)
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
            "probe_accuracy": None,
            "learning_rate": rate,
            "gradient_norm": norm,
            "seconds": time.perf_counter() - begin,
            "data_seconds": read - begin,
            "mfu": self._mfu(parts, time.perf_counter() - begin),
            **dict(zip(EXPERT_METRICS, experts or [None] * len(EXPERT_METRICS), strict=True)),
        }

    def _mfu(self, parts: list[np.ndarray], seconds: float) -> float | None:
        if self.world.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.world.device)
        if peak(name) is None:
            return None
        rates = (
            utilisation(self.stage.model, part.shape[-1], int((part != IGNORE).sum()) / seconds, name, self.world.size)
            for part in parts
        )
        return sum(rates)

    def _back(self, parts: np.ndarray, targets: int, last: bool) -> list[float]:
        """Add the gradients of this rank's part of a portion, after the `last` those of all ranks; its part of the loss
        and, with experts, of EXPERT_METRICS."""
        accumulate(self.model, last)
        routings: list[Routing] = []
        part, context, total = parts[self.world.part], self.world.context, self.world.sum
        loss = loss_of(self.model, part, "sum", self.separator, routings) / targets
        if not routings:
            loss.backward()
            return [loss.item()]
        real = torch.from_numpy(part[:, 1:] != IGNORE)  # tokens that have one to predict
        real = (context.part(real) if context is not None else real).flatten().to(loss.device)
        share = float((parts[..., 1:] != IGNORE).sum()) / targets
        balance, load = balance_loss(routings, real, total), expert_load(routings, real, total)
        (loss + self.recipe.model.router_aux_loss_coef * share * balance).backward()
        return [loss.item(), *(share * value.item() for value in (balance, load.max(), load.min()))]

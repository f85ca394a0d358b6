"""Runs a recipe of post-training: `python -m model.train RECIPE.toml [data=DATASET] [key=value ...]`.

The run folder holds recipe.json with the dataset's identity, metrics.parquet, checkpoint/hf/ for everyone, and
checkpoint/trainer/ to go on from.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
import trl
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from factory.engine.errors import FactoryError
from factory.engine.files import aside, make_folder, write_atomic
from model.checkpoint import GENERATION, copy_tokenizer, save_hf
from model.parallel import checkpoint_layers, cores
from model.picture import clock
from model.posttrain import process, rewards, stages
from model.posttrain.config import MAX_LENGTH, SAMPLING, SECTIONS, PostRecipe
from model.posttrain.data import load_tokenizer, read
from model.posttrain.heads import Headed, ProcessModel, RewardModel, load_headed
from model.posttrain.language_model import LanguageModel, is_ours
from model.posttrain.provenance import lineage

SHOWN = {
    "loss": "loss",
    "eval_loss": "held-out loss",
    "mean_token_accuracy": "token accuracy",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "reward": "reward",
    "groups_dropped": "groups dropped",
    "accuracy": "accuracy",
    "margin": "margin",
    "eval_accuracy": "held-out accuracy",
    "eval_first_wrong": "first wrong step found",
}
WHOLE = "whole"  # a file in a checkpoint to go on from
STAGES = {
    "sft": stages.sft,
    "dpo": stages.dpo,
    "reward": stages.reward,
    "prm": process.prm,
    "grpo": stages.grpo,
    "online_dpo": stages.online_dpo,
}
HEADS = {"reward": RewardModel, "prm": ProcessModel}


def train(recipe: PostRecipe) -> Path:
    """Run a recipe to the end, or go on where it was stopped, and return its run folder."""
    work = begin(recipe)
    trainer = STAGES[recipe.stage](work)
    trainer.remove_callback(PrinterCallback)
    if trainer.accelerator.is_main_process:
        trainer.add_callback(Told())
    trainer.add_callback(Saved())
    last = _last(work.folder / "checkpoint" / "trainer")
    state = TrainerState.load_from_json(str(Path(last) / "trainer_state.json")) if last else None
    if last and state and state.global_step >= trainer.args.max_steps:
        # It has ended: the trainer would take a step more where that is not the end of an epoch.
        trainer._load_from_checkpoint(last)
        trainer.state = state
    else:
        trainer.train(resume_from_checkpoint=last)
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        _export(trainer, work)
        _metrics(trainer.state.log_history, work.folder)
        shutil.rmtree(work.cache)
    return work.folder


def begin(recipe: PostRecipe) -> stages.Work:
    """What a trainer is made of, with the run folder that says so. FactoryError where it does not fit together."""
    torch.set_num_threads(recipe.train.threads or cores())
    transformers.set_seed(recipe.train.seed)
    for library in (transformers.utils.logging, datasets.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    world = PartialState(cpu=not torch.cuda.is_available())
    start = recipe.model.start
    if not (Path(start) / "config.json").is_file():
        raise FactoryError(f"model.start = {start!r}: no config.json there: give a checkpoint in Hugging Face's form")
    if recipe.optimizer.merge and not (Path(recipe.model.base) / "config.json").is_file():
        raise FactoryError(
            f"model.base = {recipe.model.base!r}: no config.json there: give a checkpoint in Hugging Face's form"
        )
    given, recipe = recipe.train.max_length, recipe.within(_positions(start))
    length = recipe.train.max_length
    if not given and length < MAX_LENGTH and world.is_main_process:
        print(f"train.max_length = {length:,}: max_position_embeddings of {start} are no more", file=sys.stderr)
    more = rewards.needs(recipe.sample) if recipe.stage in SAMPLING else ()
    folder = Path(recipe.out or Path(os.environ.get("FACTORY_RUNS", "runs")) / "train" / recipe.name)
    make_folder(str(folder))
    rows = read(recipe.data, recipe.stage, start, folder / "cache", more)
    resolved = _resolved(recipe, rows.identity)
    _same(folder, resolved)
    if world.is_main_process:
        write_atomic(str(folder / "recipe.json"), json.dumps(resolved, indent=2) + "\n")

    def load(path: str) -> PreTrainedModel:
        return load_model(path, recipe.model.implementation)

    head = HEADS.get(recipe.stage)
    model = load_headed(head, start, recipe.model.implementation) if head else load(start)
    if recipe.train.checkpoint_activations:
        if isinstance(model, LanguageModel | Headed):
            checkpoint_layers(model.transformer)
        elif not model.supports_gradient_checkpointing:
            raise FactoryError(
                f"train.checkpoint_activations: transformers' {type(model).__name__} has none: leave it out"
            )
    return stages.Work(recipe, folder, rows, model, load_tokenizer(start), load)


def _positions(start: str) -> int | None:
    """How many tokens a checkpoint is made for, as its config.json says; None where it says nothing of it."""
    try:
        config = AutoConfig.from_pretrained(start, local_files_only=True)
    except (OSError, ValueError):
        return None  # whoever loads the model tells why
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found


def load_model(path: str, implementation: str) -> PreTrainedModel:
    """A language model by our code or by transformers', in float32."""
    if is_ours(path, implementation):
        return LanguageModel.load(path)
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FactoryError(f"{path}: no language model that can be read ({str(error).splitlines()[0]})") from error


def _resolved(recipe: PostRecipe, dataset: dict[str, str]) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"transformers": transformers.__version__, "trl": trl.__version__}
    before: dict[str, Any] = {"start": lineage(recipe.model.start)}
    if recipe.optimizer.merge:
        before["base"] = lineage(recipe.model.base)
    if recipe.stage in SAMPLING and (models := [name for name in recipe.sample.rewards if Path(name).is_dir()]):
        before["rewards"] = [lineage(name) for name in models]
    return {**dataclasses.asdict(recipe), "dataset": dataset, "lineage": before, "versions": versions}


def _same(folder: Path, resolved: dict[str, Any]) -> None:
    """FactoryError where the folder holds another training: what is there is never mixed."""
    path = folder / "recipe.json"
    if not path.is_file() or not (folder / "checkpoint").is_dir():
        return
    before = json.loads(path.read_text("utf-8"))
    now = json.loads(json.dumps(resolved))
    for name in ("stage", *SECTIONS, "dataset", "lineage"):
        if before.get(name) != now[name]:
            raise FactoryError(
                f"{folder} holds another training: [{name}] differs. Give out=FOLDER, or remove that folder"
            )


class Saved(TrainerCallback):
    """Marks a checkpoint as whole: the trainer writes its files in place, one after the other."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / WHOLE).touch()


def _last(folder: Path) -> str | None:
    """The last whole checkpoint, to go on from; those that a kill left unfinished are removed."""
    whole = []
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if (path / WHOLE).is_file():
            whole.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)  # of several processes the first one removes it
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


class Told(TrainerCallback):
    """Shows how far training is: a bar, or without a terminal a plain line about every five seconds."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stderr
        self.bar: Any = None
        self.begin = self.told = 0.0
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begin = self.told = time.monotonic()
        self.first = state.global_step
        if self.out.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=state.max_steps, initial=self.first, unit="step", file=self.out, dynamic_ncols=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        logs = logs or {}
        what = "  ".join(f"{label} {logs[key]:.4g}" for key, label in SHOWN.items() if logs.get(key) is not None)
        if not what:
            return
        if self.bar is not None:
            self.bar.set_postfix_str(what, refresh=False)
            self.bar.update(state.global_step - self.bar.n)
            return
        now, step = time.monotonic(), state.global_step
        if now - self.told >= 5 or step == state.max_steps or "eval_loss" in logs:
            self.told = now
            left = (now - self.begin) / max(1, step - self.first) * (state.max_steps - step)
            print(f"step {step:,}/{state.max_steps:,}  {what}  {clock(left)} left", file=self.out, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def _export(trainer: Trainer, work: stages.Work) -> None:
    """The model for everyone, with its tokenizer: written aside and renamed."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    out = work.folder / "checkpoint" / "hf"
    if isinstance(model, LanguageModel):
        save_hf(model.transformer, out, Path(work.recipe.model.start), model.end)
        return
    scratch = out.with_name(".hf.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(scratch)
    start = Path(work.recipe.model.start)
    if not (start / "tokenizer.json").is_file():  # one of another form
        work.tokenizer.save_pretrained(scratch)
    copy_tokenizer(start, scratch)
    if work.recipe.stage == "reward":
        path = scratch / "tokenizer_config.json"
        told = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        path.write_text(json.dumps(told | {"pad_token": work.tokenizer.pad_token}, indent=2) + "\n", "utf-8")
    elif work.recipe.stage not in HEADS and (start / GENERATION).is_file():
        shutil.copyfile(start / GENERATION, scratch / GENERATION)
    shutil.rmtree(out, ignore_errors=True)
    os.rename(scratch, out)


def _metrics(history: list[dict[str, Any]], folder: Path) -> None:
    rows = [row for row in history if "loss" in row or any(name.startswith("eval_") for name in row)]
    names = dict.fromkeys(name for row in rows for name in row)
    with aside(str(folder / "metrics.parquet")) as scratch:
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), scratch)

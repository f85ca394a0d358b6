"""The command line: `python -m model.train RECIPE.toml data=DATASET [key=value ...]`.

Trains, or goes on where it was stopped, and leaves a run folder:

    recipe.json               the recipe as resolved, with the data's identity and the versions
    metrics.parquet           a row for each step
    loss.png, speed.png       the loss, and tokens/s
    sample.txt                generated text
    checkpoint/hf/            the model for transformers: AutoModelForCausalLM.from_pretrained(...)
    checkpoint/stage-NAME/    the same at the end of each stage but the last
    checkpoint/step-NUMBER/   the state to go on from

`torchrun --nproc-per-node N -m model.train …` does the same on N processes (docs/distributed.md).
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from factory.engine.collector import importing
from factory.engine.errors import FactoryError
from factory.engine.files import make_folder, write_atomic
from model.checkpoint import load_hf
from model.config import TrainRecipe
from model.curriculum import Stage
from model.data import TokenDataset, open_datasets, read_tokenizer
from model.generate import encode, sample_text
from model.parallel import World, lost
from model.picture import Progress, clock, loss_picture, speed_picture, tensorboard, text_curve
from model.pretrain import Pretraining, Stopped
from model.recipe import load_recipe, read_table
from model.sample import Sampling
from model.scaling.law import resolve
from model.state import States

USAGE = "usage: python -m model.train RECIPE.toml data=DATASET_FOLDER [out=FOLDER] [key=value ...]"
SAMPLE_TOKENS = 120
FULL = 0.9  # the share of real tokens in a stage's sequences below which a warning is given


def train(recipe: TrainRecipe, world: World | None = None) -> Path:
    """Run a training recipe to the end and return its run folder. Rank 0 of the world prints as it goes."""
    world = world or World()
    data = open_datasets(recipe.data)
    recipe = fit(recipe, data, quiet=not world.first)
    folder = Path(recipe.out or Path(os.environ.get("FACTORY_RUNS", "runs")) / "train" / recipe.name)
    make_folder(str(folder))
    # The prompt of the sample is tried now, not after all of the training.
    room = min(SAMPLE_TOKENS, recipe.model.max_position_embeddings // 2)
    tokenizer = next(iter(data.values())).tokenizer
    encode(tokenizer, recipe.train.sample_prompt, recipe.model.max_position_embeddings - room)
    try:
        work = Pretraining(recipe, data, folder, world)
        _run(recipe, work)
    except Exception as error:
        if not lost(error):
            raise
        last = States(folder / "checkpoint", world).last()
        raise FactoryError(
            "another process of this training ended or cannot be reached: look at what it said; the same command "
            + (f"goes on after {last.name}" if last else "begins again")
        ) from error
    return folder


def _run(recipe: TrainRecipe, work: Pretraining) -> None:
    if not work.world.first:
        work.run()
        work.save_model("hf")
        return
    folder, data = work.folder, work.data
    resolved = dataclasses.asdict(recipe)
    resolved["datasets"] = {
        name: {"name": one.name, "version": one.version, "key": one.key} for name, one in data.items()
    }
    resolved["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    write_atomic(str(folder / "recipe.json"), json.dumps(resolved, indent=2) + "\n")
    describe(recipe, work)
    progress = Progress(work.steps, work.step)

    def show(row: dict[str, Any]) -> None:
        progress.steps = work.steps  # a stage may have ended early
        progress(row)

    reports: list[Callable[[dict[str, Any]], None]] = [show]
    if recipe.train.tensorboard:
        reports.append(tensorboard(folder / "tensorboard", work.step))
    try:
        work.run(lambda row: _each(reports, row))
    finally:
        progress.close()
    finish(recipe, work)


def _each(reports: list[Callable[[dict[str, Any]], None]], row: dict[str, Any]) -> None:
    for report in reports:
        report(row)


def describe(recipe: TrainRecipe, work: Pretraining) -> None:
    """Print what is going to be trained, and on what."""
    size, threads, world = work.model.parameter_count(), torch.get_num_threads(), work.world
    where = f"{world.device.type}, {threads} threads"
    where += f" in each of {world.size} processes" if world.size > 1 else ""
    used = f", {work.model.activated_count():,} of them used by a token" if recipe.model.num_experts else ""
    print(f"{recipe.name}: {size:,} parameters{used}, {where}")
    for one in work.data.values():
        learn, held = (sum(span.tokens for span in spans) for spans in (one.training, one.evaluation))
        print(f"data: {one.name}@{one.version}, {learn:,} tokens to learn from, {held:,} held out")
    for stage in work.stages:
        named = f"stage {stage.name}: " if recipe.stages else ""
        whole = f", {stage.maximum_share:.0%} of the tokens at full length" if stage.maximum_share < 1 else ""
        until = f", or until the probe reaches {stage.until:.0%}" if stage.until else ""
        print(
            f"{named}{stage.tokens:,} tokens = {stage.steps:,} steps of {stage.batch_size} sequences of "
            f"{stage.sequence_length:,} tokens{whole}{until}"
        )
        if (full := fill(work, stage)) < FULL:
            print(
                f"warning: shards end within these sequences, {full:.0%} of which are tokens, the rest is empty: "
                "make the dataset anew with larger shards",
                file=sys.stderr,
            )
    if work.step:
        print(f"going on after step {work.step:,}")


def fill(work: Pretraining, stage: Stage) -> float:
    """The share of tokens in the sequences of a stage: a shard's last sequence is not full."""
    number, length = work.stages.index(stage), stage.sequence_length
    names = [name for name in work.parts if not stage.weights or stage.weights.get(name)]
    found = [span.tokens for name in names for span in work.parts[name][number]]
    return sum(found) / sum(-(-tokens // length) * length for tokens in found)


def fit(recipe: TrainRecipe, data: Mapping[str, TokenDataset], quiet: bool = False) -> TrainRecipe:
    """The recipe with the size of the data's vocabulary filled in, and with numbers for what is `scaling`; FactoryError
    where data and model do not fit."""
    one = next(iter(data.values()))
    start = recipe.train.start or recipe.train.upcycle
    if start and (Path(start) / "tokenizer.json").is_file() and read_tokenizer(Path(start))[0] != one.tokenizer_hash:
        raise FactoryError(
            f"{one.folder} was made with another tokenizer than the checkpoint {start}: pack the text with the "
            f"checkpoint's (tokens.Pack: tokenizer = {str(start)!r})"
        )
    ids = one.vocabulary
    if 0 < recipe.model.vocab_size < ids:
        raise FactoryError(
            f"model.vocab_size = {recipe.model.vocab_size}, but the tokenizer of {one.folder} has {ids:,} ids: "
            "leave vocab_size out, or use data of the right tokenizer"
        )
    size = recipe.model.vocab_size or ids
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=size))
    return resolve(recipe, max(one.row_length for one in data.values()), quiet)


def finish(recipe: TrainRecipe, work: Pretraining) -> None:
    """Write the checkpoint for others, the pictures and the sample, and say what lies where."""
    folder, metrics = work.folder, work.metrics
    work.save_model("hf")
    title = f"{recipe.name} on {', '.join(f'{one.name}@{one.version}' for one in work.data.values())}"
    loss_picture(metrics, folder / "loss.png", title)
    speed_picture(metrics, folder / "speed.png", title)
    room = min(SAMPLE_TOKENS, recipe.model.max_position_embeddings // 2)
    # Read again: the model in training may be in shards, or compiled for training.
    model = load_hf(folder / "checkpoint" / "hf").to(work.world.device)
    sampling = Sampling(tokens=room, temperature=0.7, top_p=0.9, seed=recipe.train.seed)
    text = sample_text(model, work.tokenizer.tokenizer, recipe.train.sample_prompt, sampling)
    sample = recipe.train.sample_prompt + text
    write_atomic(str(folder / "sample.txt"), sample + "\n")

    held = [row["evaluation_loss"] for row in metrics if row["evaluation_loss"] is not None]
    probes = [row["probe_accuracy"] for row in metrics if row["probe_accuracy"] is not None]
    seconds, waited = (sum(row[name] for row in metrics) for name in ("seconds", "data_seconds"))
    print(f"\n{text_curve(metrics)}\n")
    print(
        f"loss {metrics[0]['loss']:.3f} -> {metrics[-1]['loss']:.3f}"
        + (f", held out {held[-1]:.3f}" if held else "")
        + (f", probe {probes[-1]:.1%}" if probes else "")
        + f"; {metrics[-1]['tokens']:,} tokens in {clock(seconds)}, {metrics[-1]['tokens'] / seconds:,.0f} tokens/s, "
        f"{waited / seconds:.2%} of the time waiting for data"
    )
    print(f"\nsample:\n{sample}\n")
    last = work.states.last()
    assert last is not None
    lines = (
        ("checkpoint/hf/", "the model for transformers: AutoModelForCausalLM.from_pretrained"),
        (f"checkpoint/{last.name}/", "the state of the training"),
        ("metrics.parquet", "a row for each step"),
        ("loss.png, speed.png", "the loss, and tokens/s"),
        ("sample.txt", "the text above"),
        ("recipe.json", "the recipe as resolved"),
    )
    print(f"in {folder}:")
    for name, what in lines:
        print(f"  {name:<26} {what}")


def main(words: list[str] | None = None) -> int:
    """Exit code 0 when trained, 2 after an error, 128 + signal when stopped by one."""
    given = sys.argv[1:] if words is None else words
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if given else 2
    world, told, code = World(), "", 0
    try:
        if isinstance(read_table(given[0]).get("stage"), str):
            with importing("trl"):
                from model.posttrain import config, run

            run.train(config.load_recipe(given[0], given[1:]))
        else:
            world = World.begin()
            train(load_recipe(given[0], given[1:]), world)
    except FactoryError as error:
        told, code = f"error: {error}", 2
    except Stopped as stop:
        told, code = f"stopped after step {stop.step:,}; run the same command to go on", 128 + stop.signal
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "the run folder"
        told, code = f"error: {where}: the disk is full: free some space or give out=FOLDER, then run again", 2
    if told and world.says(told):
        print(told, file=sys.stderr, flush=True)
    if code != 2 or world.size == 1:  # after an error the others may not be there to leave with
        world.end()
    return code


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `python -m model.train RECIPE.toml data=DATASET [key=value ...]`.

Trains, or goes on where it was stopped, and leaves a run folder:

    recipe.json               the recipe as resolved, with the data's identity and the versions
    metrics.parquet           a row for each step
    loss.png                  the loss curve
    sample.txt                generated text
    checkpoint/hf/            the model for transformers: AutoModelForCausalLM.from_pretrained(...)
    checkpoint/training.pt    the state to go on from
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import sys
from pathlib import Path

import torch

from factory.engine.errors import FactoryError
from factory.engine.files import make_folder, write_atomic
from model.checkpoint import save_hf
from model.config import TrainRecipe, load_recipe
from model.data import TokenDataset
from model.generate import encode, generate_text
from model.picture import Progress, clock, loss_picture, text_curve
from model.pretrain import Pretraining, Stopped
from model.scaling.law import resolve

USAGE = "usage: python -m model.train RECIPE.toml data=DATASET_FOLDER [out=FOLDER] [key=value ...]"
SAMPLE_TOKENS = 120


def train(recipe: TrainRecipe) -> Path:
    """Run a training recipe to the end and return its run folder. Prints as it goes."""
    data = TokenDataset(recipe.data.path, recipe.data.evaluation_share, recipe.data.seed)
    recipe = fit(recipe, data)
    folder = Path(recipe.out or Path(os.environ.get("FACTORY_RUNS", "runs")) / "train" / recipe.name)
    make_folder(str(folder))
    # The prompt of the sample is tried now, not after all of the training.
    room = min(SAMPLE_TOKENS, recipe.model.max_position_embeddings // 2)
    encode(data.tokenizer, recipe.train.sample_prompt, recipe.model.max_position_embeddings - room)
    work = Pretraining(recipe, data, folder)
    resolved = dataclasses.asdict(recipe)
    resolved["dataset"] = {"name": data.name, "version": data.version, "key": data.key}
    resolved["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    write_atomic(str(folder / "recipe.json"), json.dumps(resolved, indent=2) + "\n")

    length, steps = data.sequence_length, recipe.train.steps
    size, threads = work.model.parameter_count(), torch.get_num_threads()
    used = f", {work.model.activated_count():,} of them used by a token" if recipe.model.num_experts else ""
    print(f"{recipe.name}: {size:,} parameters{used}, {work.device}, {threads} threads")
    print(
        f"data: {data.name}@{data.version}, {work.stream.rows:,} sequences of {length} tokens to learn from, "
        f"{len(work.held_out):,} held out for evaluation"
    )
    tokens = steps * recipe.train.batch_size * length
    print(f"{steps:,} steps of {recipe.train.batch_size} sequences = {tokens:,} tokens")
    if work.step:
        print(f"going on after step {work.step:,}")
    progress = Progress(steps, work.step)
    try:
        work.run(progress)
    finally:
        progress.close()
    return finish(recipe, data, work)


def fit(recipe: TrainRecipe, data: TokenDataset) -> TrainRecipe:
    """The recipe with the size of the data's vocabulary filled in, and what scaling laws say."""
    ids = data.vocabulary
    if 0 < recipe.model.vocab_size < ids:
        raise FactoryError(
            f"model.vocab_size = {recipe.model.vocab_size}, but the tokenizer of {data.folder} has {ids:,} ids: "
            "leave vocab_size out, or use data of the right tokenizer"
        )
    size = recipe.model.vocab_size or ids
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=size))
    return resolve(recipe, data.sequence_length)


def finish(recipe: TrainRecipe, data: TokenDataset, work: Pretraining) -> Path:
    """Write the checkpoint for others, the picture and the sample, and say what lies where."""
    folder, metrics = work.folder, work.metrics
    save_hf(work.model, folder / "checkpoint" / "hf", data.tokenizer, data.end)
    loss_picture(metrics, folder / "loss.png", f"{recipe.name} on {data.name}@{data.version}")
    room = min(SAMPLE_TOKENS, recipe.model.max_position_embeddings // 2)
    options = {"temperature": 0.7, "top_p": 0.9, "seed": recipe.train.seed}
    text = generate_text(work.model, data.tokenizer, recipe.train.sample_prompt, room, stop=False, **options)
    sample = recipe.train.sample_prompt + text
    write_atomic(str(folder / "sample.txt"), sample + "\n")

    held = [row["evaluation_loss"] for row in metrics if row["evaluation_loss"] is not None]
    seconds = sum(row["seconds"] for row in metrics)
    print(f"\n{text_curve(metrics)}\n")
    print(
        f"loss {metrics[0]['loss']:.3f} -> {metrics[-1]['loss']:.3f}"
        + (f", held out {held[-1]:.3f}" if held else "")
        + f"; {metrics[-1]['tokens']:,} tokens in {clock(seconds)}, {metrics[-1]['tokens'] / seconds:,.0f} tokens/s"
    )
    print(f"\nsample:\n{sample}\n")
    lines = (
        ("checkpoint/hf/", "the model for transformers: AutoModelForCausalLM.from_pretrained"),
        ("checkpoint/training.pt", "the state of the training"),
        ("metrics.parquet", "a row for each step"),
        ("loss.png", "the loss curve"),
        ("sample.txt", "the text above"),
        ("recipe.json", "the recipe as resolved"),
    )
    print(f"in {folder}:")
    for name, what in lines:
        print(f"  {name:<24} {what}")
    return folder


def main(words: list[str] | None = None) -> int:
    """Exit code 0 when trained, 2 after an error, 128 + signal when stopped by one."""
    given = sys.argv[1:] if words is None else words
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if given else 2
    try:
        train(load_recipe(given[0], given[1:]))
    except FactoryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"stopped after step {stop.step:,}; run the same command to go on", file=sys.stderr)
        return 128 + stop.signal
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "the run folder"
        print(f"error: {where}: the disk is full: free some space or give out=FOLDER, then run again", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

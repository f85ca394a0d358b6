"""Helpers of post-training's tests: a small checkpoint, datasets of sums, recipes, and what a training left."""

from __future__ import annotations

import json
import random
from pathlib import Path

import duckdb
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from factory.corpus.tokens import train_bpe
from model.checkpoint import save_hf
from model.config import ModelConfig
from model.data import read_tokenizer
from model.posttrain import run
from model.posttrain.config import PostRecipe, load_recipe
from model.transformer import Transformer
from tests.engine.build import build, make
from tests.model.test_parallel import torchrun


def make_place(folder: Path) -> Path:
    """A small checkpoint with a tokenizer, and datasets of sums."""
    train_bpe(iter(f"Question: {a}+{b}=? Answer: {a + b}." for a in range(30) for b in range(30)), 320, folder / "tok")
    ids = read_tokenizer(folder / "tok")[1]
    config = ModelConfig(
        vocab_size=len(ids), hidden_size=32, intermediate_size=64, num_hidden_layers=2, max_position_embeddings=128
    )
    model = Transformer(config)
    model.initialise(0)
    save_hf(model, folder / "base", folder / "tok", ids["<|im_end|>"])
    chance = random.Random(0)
    rows: dict[str, list[dict[str, object]]] = {"chats": [], "pairs": [], "prompts": []}
    for number in range(64):
        a, b = chance.randrange(30), chance.randrange(30)
        row = {"id": str(number), "text": ""}
        turns = [{"role": "user", "content": f"{a}+{b}=?"}, {"role": "assistant", "content": f"{a + b}"}]
        rows["chats"].append(row | {"messages": turns})
        asked = f"Question: {a}+{b}=? Answer:"
        rows["pairs"].append(row | {"prompt": asked, "chosen": f" {a + b}.", "rejected": f" {a}, so {b}?"})
        rows["prompts"].append(row | {"prompt": asked, "ending": "1"})
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        columns = ["ending"] if name == "prompts" else []
        source = {"use": "ingest.JsonLines", "glob": str(folder / f"{name}.jsonl"), "columns": columns}
        build(make(source, name=name), folder / "runs")
    return folder


def recipe(place: Path, stage: str, out: Path, *words: str, more: str = "") -> PostRecipe:
    data = {"sft": "chats", "grpo": "prompts", "online_dpo": "prompts"}.get(stage, "pairs")
    path = out.with_suffix(".toml")
    path.write_text(
        f'stage = "{stage}"\n[model]\nstart = "{place}/base"\n[data]\npath = "{place}/runs/{data}@1"\n{more}'
    )
    given = ["batch_size=16", "steps=6", "threads=1", "save_every=3", "evaluate_every=6", "learning_rate=3e-3"]
    return load_recipe(path, [*given, f"out={out}", *words])


def losses(folder: Path) -> list[float]:
    sql = f"select loss from '{folder}/metrics.parquet' where loss is not null order by step"
    return [loss for (loss,) in duckdb.sql(sql).fetchall()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder / "checkpoint" / "hf").state_dict()


def stopped(made: PostRecipe, step: int, patch: pytest.MonkeyPatch) -> None:
    """Train until a step, where it is stopped as by a signal."""

    class Stopped(Exception):
        pass

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == step:
                raise Stopped

    with patch.context() as here, pytest.raises(Stopped):
        here.setattr(run, "Told", Stop)
        run.train(made)


def train_on_two(path: Path, *words: str) -> None:
    """Run a recipe on two processes."""
    launcher = torchrun(2, "-m", "model.train", path, *words)
    _, told = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, told

"""Stages: their steps, lengths, positions, data and rates; a run that is stopped in any of them goes on."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from factory.engine.errors import FactoryError
from model import train
from model.checkpoint import load_hf
from model.config import TrainRecipe
from model.curriculum import stages
from model.data import IGNORE, open_datasets
from model.pretrain import Pretraining, Stopped
from model.recipe import load_recipe
from tests.model.conftest import RECIPE

STAGES = """
[[stage]]
name = "short"
tokens = 800
sequence_length = 16
weights = { one = 3, two = 1 }

[[stage]]
name = "long"
tokens = 1000
sequence_length = 64
rope_theta = 1e6
maximum_share = 0.4
documents = "masked"
[stage.optimizer]
learning_rate = 2e-3
schedule = "wsd"
warmup_steps = 0
final_share = 0.0

[[stage]]
tokens = 640
rope_scaling = { rope_type = "yarn", factor = 2.0, original_max_position_embeddings = 32 }
"""


@pytest.fixture
def staged(tmp_path: Path, dataset: Path, make_dataset: Callable[..., Path]) -> Path:
    path = tmp_path / "staged.toml"
    sets = f"""
    [data.sets]
    one = {str(dataset)!r}
    two = {str(make_dataset("second", shards=2, length=64))!r}
    """
    path.write_text(RECIPE.replace("steps = 40\n", "").replace("save_every = 10", "save_every = 4") + sets + STAGES)
    return path


def begin(recipe: TrainRecipe, folder: Path) -> Pretraining:
    data = open_datasets(recipe.data)
    return Pretraining(train.fit(recipe, data), data, folder)


def test_what_the_stages_come_to(staged: Path) -> None:
    short, long, last = stages(load_recipe(staged), 32)
    assert (short.first, short.steps, short.batch_size, short.sequence_length) == (0, 7, 8, 16), (
        "800 tokens, rounded up"
    )
    assert (long.first, long.steps, long.batch_size, long.sequence_length) == (7, 8, 2, 64), "the tokens of a step stay"
    assert (last.name, last.first, last.last, last.sequence_length) == ("3", 15, 20, 64)
    assert [stage.model.rope_theta for stage in (short, long, last)] == [1e4, 1e6, 1e6]
    assert last.model.rope_scaling is not None and long.model.rope_scaling is None
    assert [stage.maximum_share for stage in (short, long, last)] == [1.0, 0.4, 0.4]
    assert [stage.documents for stage in (short, long, last)] == ["joined", "masked", "masked"]
    assert last.weights == {"one": 3.0, "two": 1.0}
    rates = [
        stage.learning_rate(step) for stage in (short, long, last) for step in range(stage.first + 1, stage.last + 1)
    ]
    assert rates[0] == pytest.approx(2e-3) and rates[6] == pytest.approx(1e-3), "a cosine over the first stage"
    assert rates[7:17] == [2e-3] * 10, "level over two stages, but for"
    assert rates[17:] == pytest.approx([2e-3 * share for share in (2 / 3, 1 / 3, 0)]), "the last fifth of both"


def test_a_curriculum_stopped_in_any_stage_goes_on_bit_for_bit(staged: Path, tmp_path: Path) -> None:
    recipe = load_recipe(staged)
    whole = begin(recipe, tmp_path / "whole")
    whole.run()
    assert [row["stage"] for row in whole.metrics] == ["short"] * 7 + ["long"] * 8 + ["3"] * 5
    assert whole.metrics[-1]["loss"] < whole.metrics[0]["loss"] - 1
    for stop in (3, 7, 9, 15):
        folder = tmp_path / f"cut{stop}"

        def kill(row: dict, stop: int = stop) -> None:
            if row["step"] == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Stopped):
            begin(recipe, folder).run(kill)
        again = begin(recipe, folder)
        assert again.step == stop
        again.run()
        for (name, one), other in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
            assert torch.equal(one, other), name
        stored = {path.name for path in (folder / "checkpoint").iterdir()}
        assert stored == {"stage-short", "stage-long", "step-0000020"}, "also of a stage at whose end it was stopped"


def test_a_set_that_no_stage_reads_is_left_alone(staged: Path, tmp_path: Path) -> None:
    staged.write_text(staged.read_text().replace("{ one = 3, two = 1 }", "{ one = 3 }"))
    work = begin(load_recipe(staged), tmp_path / "run")
    work.run()
    assert work.mixture.names == ["one"] and work.parts["two"] == [[], [], []]


def test_without_weights_each_set_has_its_share_of_all_tokens(staged: Path, tmp_path: Path) -> None:
    """Whatever another stage takes of one of them."""
    text = staged.read_text().replace("weights = { one = 3, two = 1 }", "")
    staged.write_text(text.replace("rope_theta = 1e6", "weights = { one = 1 }"))
    work = begin(load_recipe(staged), tmp_path / "run")
    one, two = (sum(span.tokens for span in work.data[name].training) for name in work.mixture.names)
    shares = work.mixture.quota / work.mixture.quota.sum()
    assert work.stage.name == "short" and shares == pytest.approx([one / (one + two), two / (one + two)], abs=1e-3)


def test_stages_in_another_order_are_another_training(staged: Path, tmp_path: Path) -> None:
    recipe = load_recipe(staged)
    work = begin(recipe, tmp_path / "run")
    work.save()
    work.states.wait()
    short, long, last = recipe.stages
    with pytest.raises(FactoryError, match=r"begun with stage 2 3 = None, now it is"):
        begin(dataclasses.replace(recipe, stages=(short, last, long)), tmp_path / "run")


def test_the_run_folder_has_the_checkpoint_of_each_stage(staged: Path, tmp_path: Path) -> None:
    assert train.main([str(staged), f"out={tmp_path / 'run'}"]) == 0
    for name, theta, scaled in (("stage-short", 1e4, False), ("stage-long", 1e6, False), ("hf", 1e6, True)):
        config = load_hf(tmp_path / "run" / "checkpoint" / name).config
        assert config.rope_theta == theta and (config.rope_scaling is not None) == scaled
    assert (tmp_path / "run" / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_a_batch_in_parts_gives_the_same_gradients(staged: Path, tmp_path: Path) -> None:
    whole = begin(load_recipe(staged), tmp_path / "whole")
    parts = begin(load_recipe(staged, ["micro_batch_size=1"]), tmp_path / "parts")
    whole.run()
    parts.run()
    assert [row["loss"] for row in parts.metrics] == pytest.approx([row["loss"] for row in whole.metrics], abs=1e-5)
    sizes = [part.shape for part in parts._batch()]
    assert all(rows * length <= 64 for _, rows, length in sizes)


def test_a_training_begins_with_a_checkpoint(staged: Path, recipe: Path, dataset: Path, tmp_path: Path) -> None:
    assert train.main([str(recipe), f"data={dataset}", "steps=5", f"out={tmp_path / 'first'}"]) == 0
    folder = tmp_path / "first" / "checkpoint" / "hf"
    path = tmp_path / "second.toml"
    path.write_text(f"""
    [model]
    rope_scaling = {{ rope_type = "yarn", factor = 4.0, original_max_position_embeddings = 32 }}
    max_position_embeddings = 128
    [train]
    start = {str(folder)!r}
    steps = 1
    """)
    loaded = load_recipe(path, [f"data={dataset}", "learning_rate=1e-9", "sequence_length=1"][:2])
    work = begin(loaded, tmp_path / "second")
    assert work.model.config.max_position_embeddings == 128 and work.model.config.rope_scaling is not None
    before = load_hf(folder)
    assert all(torch.equal(one, other) for one, other in zip(before.parameters(), work.model.parameters(), strict=True))
    work.run()
    os.rename(folder, folder.with_name("gone"))
    begin(loaded, tmp_path / "second")  # which has begun
    os.rename(folder.with_name("gone"), folder)
    weights = folder / "model.safetensors"
    shutil.copy(weights, tmp_path)
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(FactoryError, match="begun with the checkpoint to start with = "):
        begin(loaded, tmp_path / "second")
    shutil.copy(tmp_path / "model.safetensors", weights)
    with pytest.raises(FactoryError, match=r"parameter model\.embed_tokens\.weight has shape"):
        begin(load_recipe(path, [f"data={dataset}", "hidden_size=64"]), tmp_path / "third")
    with pytest.raises(FactoryError, match=r"train\.start and train\.upcycle: .* give one"):
        load_recipe(path, [f"data={dataset}", f"train.upcycle={folder}"])
    other = folder / "tokenizer.json"
    other.write_text(other.read_text().replace("<|im_start|>", "<|im_begin|>"))
    with pytest.raises(FactoryError, match="another tokenizer than the checkpoint"):
        begin(loaded, tmp_path / "fourth")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tokens = 800\n", "", r"stage short: tokens = 0: say how many"),
        ('name = "short"', 'name = "long"', r"two stages have the name 'long'"),
        ('name = "short"', 'name = "a/b"', r"stage 'a/b': a folder is called so"),
        ("[[stage]]", "[[stagge]]", r"unknown key 'stagge' \(did you mean 'stage'"),
        (
            "sequence_length = 64",
            "sequence_length = 65536",
            r"stage long: sequences of 65,536 tokens, but model\.max_pos",
        ),
        ("sequence_length = 64", "sequence_length = 60", r"60 tokens cannot be cut into 8 with maximum_share = 0\.4"),
        ("sequence_length = 64", "sequence_length = 8", r" 8 tokens cannot be cut into 8 .* two tokens each"),
        ("rope_theta = 1e6", "rope_theta = nan", r"stage long: rope_theta = nan: must be a number"),
        ("learning_rate = 2e-3", "learning_rate = nan", r"stage long: learning_rate = nan: must be a number"),
        ("learning_rate = 2e-3", "learning_rate = inf", r"stage long: learning_rate = inf: must be a number"),
        ("warmup_steps = 0\n", "warmup_steps = -3\n", r"stage long: warmup_steps = -3: must not be negative"),
        ("factor = 2.0", "factor = nan", r"rope_scaling\.factor = nan: must be a number, at least 1"),
        ("rope_theta = 1e6", "weights = { one = 1, two = 1e-6 }", r"the set two has a share of 1e-06 of the data"),
        ("one = 3,", "three = 3,", r"no set 'three' in \[data\.sets\]"),
        ("one = 3,", "one = -3,", r"weights: one = -3\.0: must be a number, not negative"),
        ("maximum_share = 0.4", "maximum_share = 0", r"maximum_share = 0\.0: must be above 0"),
        ("warmup_steps = 0\n", "warmup_steps = 11\n", r"stage long\.warmup_steps = 11 and a decay of 3 steps"),
        ("learning_rate = 2e-3", "learning_rat = 2e-3", r"unknown key 'learning_rat' .*did you mean 'learning_rate'"),
        (
            ", original_max_position_embeddings = 32",
            "",
            r"stage 3: rope_scaling has no original_max_position_embeddings",
        ),
        ('documents = "masked"', 'documents = "apart"', r"documents = 'apart': must be one of"),
        ("evaluate_every = 20", "evaluate_every = 20\nsteps = 3", r"train\.steps says nothing where there are stages"),
    ],
)
def test_bad_stages_are_one_line(
    staged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    text = staged.read_text()
    assert old in text
    staged.write_text(text.replace(old, new))
    assert train.main([str(staged), f"out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error


def test_words_for_stages(staged: Path) -> None:
    recipe = load_recipe(
        staged, ["stage.short.tokens=5e2", "stage.long.optimizer.learning_rate=0.5", "data.sets.one=here"]
    )
    assert recipe.stages[0].tokens == 500 and recipe.stages[1].optimizer.learning_rate == 0.5
    assert recipe.data.sets["one"] == "here"
    assert [stage.name for stage in load_recipe(staged, ["stage.short.name="]).stages] == ["1", "long", "3"]
    with pytest.raises(FactoryError, match=r"two stages have the name 'long'"):
        load_recipe(staged, ["stage.short.name=long"])
    for word in ("stage.short.tokens.x=3", "optimizer.learning_rate.x=3"):
        with pytest.raises(FactoryError, match=r"\.(tokens|learning_rate) is not a table of keys"):
            load_recipe(staged, [word])
    with pytest.raises(FactoryError, match=r"no stage 'shrt' \(did you mean 'short'"):
        load_recipe(staged, ["stage.shrt.tokens=500"])


def test_stages_do_not_read_the_same_tokens(make_dataset: Callable[..., Path], recipe: Path, tmp_path: Path) -> None:
    data = make_dataset("large", shards=4)
    text = recipe.read_text().replace("steps = 40\n", "")
    stage = "\n[[stage]]\ntokens = 1600\nbatch_size = 5\n"
    recipe.write_text(text + stage + stage)
    work = begin(load_recipe(recipe, [f"data={data}"]), tmp_path / "run")
    parts = work.parts["data"]
    tokens = [{(span.shard.path, at) for span in part for at in range(span.begin, span.end)} for part in parts]
    assert not tokens[0] & tokens[1] and len(tokens[0]) >= 1600 and len(tokens[1]) >= 1600


def test_sequences_longer_than_the_shards_are_told(
    staged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("max_position_embeddings=16384", "stage.long.sequence_length=16384", "stage.long.batch_size=1")
    work = begin(load_recipe(staged, words), tmp_path / "run")
    epochs = [one.batch(0, one.rows) for one in work.mixture.streams]
    tokens, room = sum(int((epoch != IGNORE).sum()) for epoch in epochs), sum(epoch.size for epoch in epochs)
    assert train.fill(work, work.stages[0]) == tokens / room > 0.95 and train.fill(work, work.stages[1]) < 0.5
    train.describe(work.recipe, work)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all("warning: shards end within these sequences" in line for line in told)


def test_waiting_for_data_is_measured(staged: Path, tmp_path: Path) -> None:
    work = begin(load_recipe(staged), tmp_path / "run")
    work.run()
    assert all(0 < row["data_seconds"] < row["seconds"] for row in work.metrics)
    assert np.median([row["data_seconds"] / row["seconds"] for row in work.metrics]) < 0.5

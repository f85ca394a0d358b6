"""Training: the loss falls, a killed run goes on bit for bit, wrong input is refused in one line."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from factory.engine.errors import FactoryError
from model import generate, pretrain, train
from model.config import DataConfig, OptimizerConfig
from model.data import open_datasets
from model.objective import loss_of
from model.picture import Progress, clock, text_curve
from model.pretrain import Pretraining, Stopped
from model.recipe import load_recipe, read_table

ROOT = Path(__file__).resolve().parents[2]


def start(recipe: Path, dataset: Path, folder: Path, *words: str) -> Pretraining:
    loaded = load_recipe(recipe, [f"data={dataset}", *words])
    data = open_datasets(loaded.data)
    return Pretraining(train.fit(loaded, data), data, folder)


def weights(work: Pretraining) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in work.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_command_line_leaves_a_run_folder(
    recipe: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ("steps=160", "evaluate_every=60")
    assert train.main([str(recipe), f"data={dataset}", f"out={out}", *words]) == 0
    printed = capsys.readouterr()
    rows = pq.read_table(out / "metrics.parquet").to_pylist()
    assert [row["step"] for row in rows] == list(range(1, 161))
    assert abs(rows[0]["loss"] - math.log(320)) < 0.3
    assert rows[-1]["loss"] < 1.0, "it has learned five sentences"
    assert [row["step"] for row in rows if row["evaluation_loss"] is not None] == [60, 120, 160]
    assert rows[-1]["evaluation_loss"] < 1.0
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "sample.txt").read_text().startswith("Returns a new array of the given shape")
    resolved = json.loads((out / "recipe.json").read_text())
    assert resolved["model"]["vocab_size"] == 320 and resolved["datasets"]["data"]["key"] == "0123"
    for name in ("loss.png", "metrics.parquet", "checkpoint/hf/", "Returns a new array", "tokens/s", "held out"):
        assert name in printed.out + printed.err
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(out / "checkpoint" / "hf", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "checkpoint" / "hf")
    ids = tokenizer("Returns a new array", return_tensors="pt")["input_ids"]
    capsys.readouterr()
    assert generate.main([str(out / "checkpoint" / "hf"), "Returns a", "--temperature", "0", "--tokens", "20"]) == 0
    assert capsys.readouterr().out.startswith("Returns a new array of the given shape")
    work = start(recipe, dataset, out, *words)
    assert work.step == 160, "a finished training is only read again"
    assert (work.model(ids) - model(ids).logits).abs().max() < 1e-4
    before = (out / "checkpoint" / "step-0000160").stat().st_mtime_ns
    assert train.main([str(recipe), f"data={dataset}", f"out={out}", *words]) == 0
    assert (out / "checkpoint" / "step-0000160").stat().st_mtime_ns == before


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_a_stopped_training_goes_on_bit_for_bit(recipe: Path, dataset: Path, tmp_path: Path, schedule: str) -> None:
    words = (f"schedule={schedule}", "shuffle_tokens=1000", "batch_size=5")
    whole = start(recipe, dataset, tmp_path / "whole", *words)
    whole.run()
    for stop in (1, 13, 30):
        folder = tmp_path / f"cut{stop}"

        def kill(row: dict, stop: int = stop) -> None:
            if row["step"] == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        cut = start(recipe, dataset, folder, *words)
        with pytest.raises(Stopped) as caught:
            cut.run(kill)
        assert caught.value.step == stop and caught.value.signal == signal.SIGTERM
        again = start(recipe, dataset, folder, *words)
        assert again.step == stop
        again.run()
        assert same(weights(whole), weights(again))
        steady = [[{**row, "seconds": 0, "data_seconds": 0} for row in work.metrics] for work in (whole, again)]
        assert steady[0] == steady[1]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_kill_loses_at_most_the_steps_since_the_checkpoint(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    """SIGKILL of the real command at some moment; the same command then ends with the weights of a run never killed."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "model.train", str(recipe), f"data={dataset}", f"out={out}", "steps=300"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob("checkpoint/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    work = start(recipe, dataset, out, "steps=300")
    assert 0 < work.step < 300 and work.step % 10 == 0
    work.run()
    whole = start(recipe, dataset, tmp_path / "whole", "steps=300")
    whole.run()
    assert same(weights(whole), weights(work))
    assert [row["loss"] for row in work.metrics] == [row["loss"] for row in whole.metrics]


def test_another_recipe_in_the_same_folder_is_refused(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    work = start(recipe, dataset, tmp_path / "run", "steps=2")
    work.run()
    with pytest.raises(FactoryError, match=r"begun with optimizer\.learning_rate = 0\.01, now it is 0\.02"):
        start(recipe, dataset, tmp_path / "run", "steps=2", "learning_rate=0.02")
    manifest = json.loads((dataset / "manifest.json").read_text())
    other = shutil.copytree(dataset, tmp_path / "other")
    (other / "manifest.json").write_text(json.dumps(manifest | {"key": "4567"}))
    with pytest.raises(FactoryError, match=r"key of data = '0123', now it is '4567'"):
        start(recipe, other, tmp_path / "run", "steps=2")
    start(recipe, dataset, tmp_path / "run", "steps=2", "save_every=1")
    (tmp_path / "run" / "checkpoint" / "step-0000002" / ".metadata").write_bytes(b"cut off")
    with pytest.raises(FactoryError, match="cannot read the checkpoint"):
        start(recipe, dataset, tmp_path / "run", "steps=2")


def test_lost_metrics_are_told(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    start(recipe, dataset, tmp_path / "run", "steps=2").run()
    path = tmp_path / "run" / "metrics.parquet"
    path.write_bytes(b"PAR1")
    for _ in range(2):
        with pytest.raises(FactoryError, match=r"metrics\.parquet: cannot read the metrics of the 2 steps"):
            start(recipe, dataset, tmp_path / "run", "steps=2")
        path.unlink(missing_ok=True)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint(
    recipe: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = start(recipe, dataset, tmp_path / "run")
    monkeypatch.setattr(pretrain, "loss_of", lambda *given: loss_of(*given) * (math.nan if work.step == 14 else 1))
    with pytest.raises(FactoryError, match=r"step 15: loss nan.*part-000000\d\.parquet group \d+ row \d+"):
        work.run()
    assert start(recipe, dataset, tmp_path / "run").step == 10


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint(
    recipe: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.fsync

    def fsync(file: int) -> None:
        real(file)
        if "step-0000030" in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    out = tmp_path / "run"
    assert train.main([str(recipe), f"data={dataset}", f"out={out}"]) == 2
    error = capsys.readouterr().err
    assert "disk is full" in error.splitlines()[-1]
    assert [path.name for path in (out / "checkpoint").iterdir()] == ["step-0000020"]
    monkeypatch.undo()
    again = start(recipe, dataset, out)
    assert again.step == 20 and len(again.metrics) == 20


def test_short_sequences_and_padding_do_not_count(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    work = start(recipe, dataset, tmp_path / "run")
    batch = work.mixture.batch(0, 2)[0]
    short = np.full_like(batch, -1)
    short[:, :20] = batch[:, :20]
    assert torch.allclose(loss_of(work.model, short), loss_of(work.model, batch[:, :20]), atol=1e-6)


def test_learning_rates() -> None:
    cosine = OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_share=0.1)
    rates = [cosine.rate(step, 100) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[54] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1)
    wsd = OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_share=0.0, schedule="wsd", decay_share=0.2)
    rates = [wsd.rate(step, 100) for step in range(1, 101)]
    assert rates[10:80] == [1.0] * 70
    assert rates[80:] == pytest.approx([1 - step / 20 for step in range(1, 21)])
    assert OptimizerConfig(warmup_steps=0, learning_rate=1.0).rate(1, 1) <= 1.0
    constant, linear = (dataclasses.replace(wsd, schedule=name) for name in ("constant", "linear"))
    assert [constant.rate(step, 100) for step in range(10, 101)] == [1.0] * 91
    assert [linear.rate(step, 100) for step in range(10, 101)] == pytest.approx([1 - k / 90 for k in range(91)])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("learning_rat=1", r"unknown key 'learning_rat' \(did you mean 'learning_rate'\?\)"),
        ("model.hiden_size=1", r"did you mean 'model\.hidden_size'\?"),
        ("seed=1", r"several sections: say data\.seed or train\.seed"),
        ("steps=many", r"train\.steps = 'many': must be of type int"),
        ("schedule=lineal", r"optimizer\.schedule = 'lineal': must be one of 'cosine', 'linear', 'wsd', 'constant'"),
        ("optimizer.name=sgd", r"optimizer\.name = 'sgd': must be one of 'adamw', 'muon'"),
        ("hidden_size=33", r"model\.hidden_size = 33 must be"),
        ("num_key_value_heads=3", r"num_key_value_heads = 3"),
        ("steps=0", r"train\.steps = 0: must be above 0"),
        ("evaluation_share=0.9", r"between 0 and 0\.5"),
        ("final_share=2", r"optimizer\.final_share = 2\.0: must lie between 0 and 1"),
        ("steps", r"not of the form key=value"),
        ("vocab_size=100", r"vocab_size = 100, but the tokenizer of .* has 320 ids"),
        ("beta1=1.5", r"optimizer\.beta1 = 1\.5: must be at least 0 and below 1"),
        ("learning_rate=nan", r"optimizer\.learning_rate = nan: must be a number"),
        ("weight_decay=-1.0", r"optimizer\.weight_decay = -1\.0: must not be negative"),
        ("initializer_range=-1.0", r"model\.initializer_range = -1\.0: must not be negative"),
        ("rms_norm_eps=0.0", r"model\.rms_norm_eps = 0\.0: must be above 0"),
        ("data.seed=-1", r"data\.seed = -1: must not be negative"),
        ("threads=-2", r"train\.threads = -2: must not be negative"),
        ("vocab_size=-5", r"model\.vocab_size = -5: must not be negative"),
        ("train.sample_prompt=", r"a prompt of 0 tokens"),
        ("max_position_embeddings=16", r"sequences of 32 tokens, but model\.max_position_embeddings is 16"),
    ],
)
def test_bad_words_are_one_line(
    word: str, message: str, recipe: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(recipe), f"data={dataset}", f"out={tmp_path / 'run'}", word]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_bad_recipes_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    with pytest.raises(FactoryError, match="cannot read"):
        load_recipe(path)
    for text, message in (
        ("[model", "not valid TOML"),
        ("[modle]\n", r"unknown key 'modle' \(did you mean 'model'\?\)"),
        ("[model]\nhidden = 3\n", r"unknown key 'hidden' in \[model\] \(did you mean 'hidden_size'\?\)"),
        ("model = 3\n", r"\[model\] must be a table"),
        ("[train]\nsteps = 1.5\n", "must be of type int, not float"),
    ):
        path.write_text(text)
        with pytest.raises(FactoryError, match=message):
            load_recipe(path)


def test_the_shipped_recipes_load() -> None:
    found = sorted((ROOT / "recipes" / "train").glob("*.toml"))
    assert found
    for path in found:
        if isinstance(read_table(path).get("stage"), str):
            continue  # one of post-training
        recipe = load_recipe(path, ["data=somewhere", "train.seed=3", "sample_prompt=The one"])
        assert recipe.name == path.stem and recipe.train.seed == 3 and recipe.train.sample_prompt == "The one"
        assert recipe.data == DataConfig(path="somewhere", evaluation_share=recipe.data.evaluation_share)


def test_curve_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"step": step, "tokens": step * 10, "loss": 5 - step / 50, "evaluation_loss": 4.0 if step == 100 else None}
        for step in range(1, 201)
    ]
    lines = text_curve(rows).splitlines()
    assert lines[0].startswith("   4.9") and "·" in lines[0] and sum(line.count("o") for line in lines[:12]) == 1
    assert all(len(line) < 100 for line in lines)
    assert text_curve(rows[:1]) and text_curve([]) == "(no steps)"
    progress = Progress(200, 0)
    for row in rows:
        progress(row)
    progress.close()
    told = capsys.readouterr().err
    assert "step 100/200  loss 3.000  held-out 4.000" in told and told.count("\n") == 2
    assert clock(65) == "1:05" and clock(7384) == "2:03:04"


def test_a_decay_that_begins_in_the_warm_up_is_refused(recipe: Path) -> None:
    with pytest.raises(FactoryError, match=r"more than the 40 steps"):
        load_recipe(recipe, ["data=x", "schedule=wsd", "warmup_steps=30", "decay_share=0.5"])


def test_metrics_for_tensorboard(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    assert train.main([str(recipe), f"data={dataset}", "steps=12", f"out={out}", "train.tensorboard=true"]) == 0
    events = accumulator.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    rows = pq.read_table(out / "metrics.parquet").to_pylist()
    told = {event.step: event.value for event in events.Scalars("loss")}
    assert told == pytest.approx({row["step"]: row["loss"] for row in rows}, rel=1e-5)
    assert [event.step for event in events.Scalars("evaluation_loss")] == [12]

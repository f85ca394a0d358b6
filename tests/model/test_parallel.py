"""Several processes train as one does: the same losses, whole checkpoints, and a way on when one of them is lost."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from factory.engine.errors import FactoryError
from model import checkpoint
from model.checkpoint import load_hf, save_hf
from model.config import ModelConfig, OptimizerConfig, TrainConfig
from model.data import open_datasets
from model.moe import Routing, balance_loss, expert_load
from model.parallel import Context, World, build
from model.pretrain import Pretraining, optimizer_for
from model.recipe import load_recipe
from model.state import States
from model.train import fit
from model.transformer import Transformer

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
MOE = (
    "model_type=qwen2_moe",
    "num_experts=6",
    "num_experts_per_tok=2",
    "moe_intermediate_size=16",
    "shared_expert_intermediate_size=16",
    "router_aux_loss_coef=0.1",
)
SMALL = ModelConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)


def torchrun(processes: int, *words: object, restarts: int = 0) -> subprocess.Popen[str]:
    """`torchrun … words`, on this machine alone."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", f"--master-port={port}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--master-addr=127.0.0.1", *options, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def workers(launcher: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started."""
    return [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]


def wait_for_state(launcher: subprocess.Popen[str], folder: Path, after: int = 0) -> None:
    """Until there is a state of a later step."""
    deadline = time.monotonic() + 120
    while not any(int(path.name[5:]) > after for path in folder.glob("checkpoint/step-*")):
        assert time.monotonic() < deadline and launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.01)


def alone(recipe: Path, dataset: Path, folder: Path, *words: str) -> Pretraining:
    """The same training in this process."""
    loaded = load_recipe(recipe, [f"data={dataset}", *words])
    data = open_datasets(loaded.data)
    return Pretraining(fit(loaded, data), data, folder)


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder / "metrics.parquet").to_pylist()


def assert_same_curve(found: list[dict], expected: list[dict]) -> None:
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for name in ("loss", "evaluation_loss", "gradient_norm", "tokens", "balance_loss", "expert_load_max"):
        for one, other in zip(found, expected, strict=True):
            assert one[name] == (None if other[name] is None else pytest.approx(other[name], abs=1e-5)), name


def new() -> Transformer:
    model = Transformer(SMALL)
    model.initialise(3)
    return model


def step(model: Transformer, optimizer: torch.optim.Optimizer, seed: int) -> float:
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(seed))
    loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@pytest.fixture
def trained(tmp_path: Path) -> tuple[States, Transformer, torch.optim.AdamW]:
    """A model and its optimizer after a step, and where their states go."""
    model = new()
    optimizer = optimizer_for(model, OptimizerConfig())
    step(model, optimizer, 0)
    return States(tmp_path, World()), model, optimizer


@pytest.fixture
def grouped() -> Iterator[World]:
    world = World()
    yield world
    world.end()


def test_sequences_shared_by_the_ranks_give_the_gradients_of_one_process() -> None:
    """Full and dual chunk attention, documents joined, masked and restarted; here on 2 ranks."""
    process = torchrun(2, Path(__file__).with_name("ranks.py"), 2)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    *found, counts = json.loads(out)
    assert counts == {"errors": 2, "said": 1, "results": 1}
    assert len(found) == 6
    assert all(one["loss"] < 1e-5 and one["gradients"] < 1e-5 for one in found), found


def test_a_killed_process_a_signal_and_another_number_of_processes(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    """Experts on two processes: one is killed and torchrun starts them again; SIGTERM stops them after one step; one
    process does the rest. All of it is the curve of one process."""
    words = (*MOE, "batch_size=5", "steps=120", "save_every=10", "learning_rate=1e-3")  # the second has 2 sequences
    out = tmp_path / "two"
    given = (recipe, f"data={dataset}", f"out={out}", *words, "checkpoint_activations=true")
    launcher = torchrun(2, "-m", "model.train", *given, restarts=1)
    wait_for_state(launcher, out)
    killed = workers(launcher)
    os.kill(killed[1], signal.SIGKILL)
    deadline = time.monotonic() + 120
    while set(workers(launcher)) & set(killed) or len(workers(launcher)) < 2:
        assert time.monotonic() < deadline and launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.01)
    begun = States(out / "checkpoint", World()).description()["step"]
    wait_for_state(launcher, out, begun)
    launcher.terminate()
    printed, told = launcher.communicate(timeout=600)
    assert launcher.returncode != 0
    line = r"^error: another process of this training ended .* goes on after step-0*(\d+)$"
    assert re.findall(line, told, re.MULTILINE) == [str(begun)]
    assert re.findall(r"going on after step (\d+)", printed) == [str(begun)]
    (stopped,) = re.findall(r"^stopped after step (\d+); run the same command to go on$", told, re.MULTILINE)
    rest, one = alone(recipe, dataset, out, *words), alone(recipe, dataset, tmp_path / "one", *words)
    assert rest.step == int(stopped) < 120
    rest.run()
    one.run()
    assert_same_curve(rest.metrics, one.metrics)


def test_two_processes_share_each_sequence_in_training(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    """And leave the folder that one leaves: experts, documents apart, the batch in parts."""
    words = (*MOE, "steps=20", "documents=masked", "learning_rate=1e-3", "micro_batch_size=3")
    out = tmp_path / "two"
    given = (recipe, f"data={dataset}", f"out={out}", *words, "context_parallel=2")
    launcher = torchrun(2, "-m", "model.train", *given)
    _, told = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, told
    one = alone(recipe, dataset, tmp_path / "one", *words)
    one.run()
    assert_same_curve(rows(out), one.metrics)
    stored = load_hf(out / "checkpoint" / "hf")
    for expected, found in zip(one.model.parameters(), stored.parameters(), strict=True):
        assert (expected - found).abs().max() < 1e-3
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint",
        "loss.png",
        "metrics.parquet",
        "recipe.json",
        "sample.txt",
        "speed.png",
    ]


@pytest.mark.slow
def test_compiled_layers_train_alike(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    words = ("steps=20", "learning_rate=1e-3", "micro_batch_size=2")
    given = (
        recipe,
        f"data={dataset}",
        f"out={tmp_path / 'two'}",
        *words,
        "compile=true",
        "checkpoint_activations=true",
    )
    launcher = torchrun(2, "-m", "model.train", *given)
    _, told = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, told
    one = alone(recipe, dataset, tmp_path / "one", *words)
    one.run()
    assert_same_curve(rows(tmp_path / "two"), one.metrics)


@given(st.integers(1, 9), st.integers(1, 5))
def test_a_context_shares_each_sequence_evenly(size: int, unit: int) -> None:
    length = 2 * size * unit
    ranks = [Context(None, rank, size) for rank in range(size)]  # type: ignore[arg-type]
    own = [context.part(torch.arange(length)).tolist() for context in ranks]
    assert sorted(itertools.chain(*own)) == list(range(length))
    for context, places in zip(ranks, own, strict=True):
        assert places == [place for begin, end in context.spans(length) for place in range(begin, end)]
    assert len({sum(place + 1 for place in places) for places in own}) == 1, "as many keys are seen by each"


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 99))
def test_the_balance_losses_of_parts_sum_to_that_of_the_whole(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def routing(logits: torch.Tensor) -> Routing:
        probabilities = logits.softmax(dim=-1)
        weights, chosen = probabilities.topk(2)
        return Routing(logits, probabilities, chosen, weights)

    logits = torch.randn(2, sum(sizes), 5, generator=generator, requires_grad=True)
    whole = [routing(layer) for layer in logits]
    counts = torch.stack([layer.chosen.flatten().bincount(minlength=5).float() for layer in whole])
    parts = [[routing(layer) for layer in part] for part in logits.split(sizes, dim=1)]
    one = balance_loss(whole)
    many = sum(balance_loss(part, None, lambda _: counts) for part in parts)
    assert torch.allclose(one, many)
    (expected,), (found,) = torch.autograd.grad(one, logits), torch.autograd.grad(many, logits)
    assert torch.allclose(expected, found, atol=1e-7)
    assert torch.equal(expert_load(parts[0], None, lambda _: counts), expert_load(whole))


def test_a_state_is_that_of_the_moment_and_replaces_the_one_before(trained, tmp_path: Path) -> None:
    states, model, optimizer = trained
    assert states.last() is None and states.description() is None
    (tmp_path / ".step-0000001.tmp").mkdir()  # of a process that was killed
    states.save(1, model, optimizer, {"identity": {"a": 1}})
    expected = [step(model, optimizer, seed) for seed in (1, 2)]  # while it is written
    states.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    other = new()
    fresh = optimizer_for(other, OptimizerConfig(learning_rate=9.0))
    States(tmp_path, World()).load(other, fresh)
    assert [step(other, fresh, seed) for seed in (1, 2)] == expected, "bit for bit"
    states.save(3, model, optimizer, {})
    states.save(3, model, optimizer, {"identity": {}})
    states.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000003"]
    assert states.description() == {"identity": {}, "step": 3}


def test_a_full_disk_keeps_the_state_before(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states, model, optimizer = trained
    states.save(1, model, optimizer, {})
    states.wait()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    states.save(2, model, optimizer, {})
    with pytest.raises(FactoryError, match="the disk is full"):
        states.wait()
    states.wait()
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    states.load(model, optimizer)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "training.json"])
def test_a_damaged_state_is_named(trained, tmp_path: Path, name: str) -> None:
    states, model, optimizer = trained
    states.save(1, model, optimizer, {})
    states.wait()
    file = tmp_path / "step-0000001" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(FactoryError, match=r"step-0000001: cannot read the checkpoint .*: remove it"):
        states.description()
        states.load(model, optimizer)
    file.unlink()
    with pytest.raises(FactoryError, match=r"step-0000001: cannot read the checkpoint"):
        states.description()
        states.load(model, optimizer)


def test_bfloat16_keeps_float32_weights_and_their_state(grouped: World, tmp_path: Path) -> None:
    """One process in a group of its own."""
    how = TrainConfig(dtype="bfloat16", checkpoint_activations=True)
    model = build(SMALL, grouped, how, new)
    assert dist.get_world_size() == 1 and model.lm_head.weight is model.model.embed_tokens.weight
    optimizer = optimizer_for(model, OptimizerConfig())
    plain = new()
    first = step(model, optimizer, 0), step(plain, optimizer_for(plain, OptimizerConfig()), 0)
    assert 0 < abs(first[0] - first[1]) < 0.02, "computed in bfloat16"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    states = States(tmp_path, grouped)
    states.save(1, model, optimizer, {})
    states.wait()
    expected = step(model, optimizer, 1)
    again = build(SMALL, grouped, how)
    states.load(again, fresh := optimizer_for(again, OptimizerConfig()))
    assert step(again, fresh, 1) == expected
    # and one process without shards goes on from it
    states.load(plain, fresh := optimizer_for(plain, OptimizerConfig()))
    assert abs(step(plain, fresh, 1) - expected) < 0.02


def test_a_world_begins_and_ends_more_than_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for _ in range(2):
        world = World.begin()
        assert (world.rank, world.size, world.part, world.parts) == (0, 1, 0, 1)
        assert world.sums(1.5, 2.0) == [1.5, 2.0] and world.together(lambda: 3) == 3
        world.mesh()
        world.end()
        assert not dist.is_initialized()
    with pytest.raises(FactoryError, match="context_parallel = 2: 1 processes"):
        World().share(2)


@given(st.integers(1, 12), st.integers(2, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_a_batch_is_divided_among_the_parts(count: int, length: int, size: int, context: int, parts: int) -> None:
    """Each sequence is in one portion of one part, whose sequences are as many and as long as those of the others."""
    rows = np.arange(1, count * length + 1).reshape(count, length)
    shared = Context(None, 0, context) if context > 1 else None  # type: ignore[arg-type]
    portions = list(World(size=parts * context, context=shared).split(rows, size, -1))
    assert all(portion.shape[0] == parts and 1 <= portion.shape[1] <= size for portion in portions)
    assert all((portion.shape[2] - 1) % (2 * context) == 0 for portion in portions if shared)
    filled = np.concatenate([portion.transpose(1, 0, 2).reshape(-1, portion.shape[2]) for portion in portions])
    kept = filled[filled[:, 0] != -1]
    assert sorted(kept[:, :length].tolist()) == rows.tolist() and (kept[:, length:] == -1).all()


def test_large_models_are_stored_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 20_000)
    model, folder = new(), tmp_path / "hf"
    for _ in range(2):  # the second time in place of the first
        save_hf(model, folder, None, None)
        assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2 and all(path.stat().st_size < 25_000 for path in files)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * model.parameter_count()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(0, 64, (2, 9))
    assert torch.allclose(theirs(ids).logits, model(ids), atol=1e-5)
    assert torch.equal(load_hf(folder)(ids), model(ids))
    files[1].unlink()
    with pytest.raises(FactoryError, match=rf"{files[1].name}: named in model.safetensors.index.json but missing"):
        load_hf(folder)


def test_a_model_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_hf(new(), tmp_path / "hf", None, None)
    before = (tmp_path / "hf" / "model.safetensors").read_bytes()

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        save_hf(new(), tmp_path / "hf", None, None)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == before


def test_a_kill_while_a_model_is_written_leaves_nothing_for_good(tmp_path: Path) -> None:
    (tmp_path / ".hf.1234.tmp").mkdir()  # killed while it was written,
    (tmp_path / ".hf.5678.old.tmp").mkdir()  # and between the two names
    (tmp_path / ".hf2.1234.tmp").mkdir()
    save_hf(new(), tmp_path / "hf", None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hf2.1234.tmp", "hf"]


def test_a_disk_that_fills_up_with_weights_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_hf(new(), tmp_path / "hf", None, None)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def test_an_output_layer_is_not_lost(tmp_path: Path) -> None:
    model = Transformer(dataclasses.replace(SMALL, tie_word_embeddings=False))
    model.initialise(3)
    save_hf(model, tmp_path / "hf", None, None)
    with pytest.raises(FactoryError, match=r"lm_head\.weight is an output layer of its own"):
        load_hf(tmp_path / "hf", SMALL)

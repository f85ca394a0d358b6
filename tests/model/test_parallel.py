"""Several processes train as one does: the same losses, whole checkpoints, and a way on when one of them is lost."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from model.config import ModelConfig, OptimizerConfig, TrainConfig
from model.moe import Routing, balance_loss, expert_load
from model.parallel import Context, World, build
from model.pretrain import optimizer_for
from model.state import States
from model.transformer import Transformer

ROOT = Path(__file__).resolve().parents[2]
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
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert len(found) == 6
    assert all(one["loss"] < 1e-5 and one["gradients"] < 1e-5 for one in found), found


@given(st.integers(1, 9), st.integers(1, 5))
def test_a_context_shares_each_sequence_evenly(size: int, unit: int) -> None:
    length = 2 * size * unit
    ranks = [Context(None, rank, size) for rank in range(size)]  # type: ignore[arg-type]
    own = [context.part(torch.arange(length)).tolist() for context in ranks]
    assert sorted(sum(own, [])) == list(range(length))
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
    assert states.last() == tmp_path / "step-0000001"
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
        assert world.sums(1.5, 2) == [1.5, 2.0] and world.together(lambda: 3) == 3
        world.mesh()
        world.end()
        assert not dist.is_initialized()
    with pytest.raises(FactoryError, match="context_parallel = 2: 1 processes"):
        World().share(2)

"""Muon: the reference implementation's steps, orthogonal updates, experts as matrices, resumed bit for bit, sharded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from factory.engine.errors import FactoryError
from model.config import ModelConfig, OptimizerConfig
from model.muon import COEFFICIENTS, STEPS, Muon, orthogonal
from model.parallel import World
from model.pretrain import optimizer_for
from model.state import States
from model.transformer import Transformer
from tests.model.test_parallel import MOE, alone, assert_same_curve, rows, torchrun
from tests.model.test_pretrain import same, start, weights

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SHAPES = [(24, 24), (12, 24), (40, 24), (24, 40), (24, 40), (1, 24)]
EXPERTS = ModelConfig(
    model_type="qwen2_moe",
    vocab_size=40,
    hidden_size=24,
    num_experts=3,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
    num_hidden_layers=2,
)


def layers(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {f"model.layers.{n}.weight": nn.Parameter(torch.randn(s, generator=generator)) for n, s in enumerate(SHAPES)}


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for one in params:
        one.grad = torch.randn(one.shape, generator=generator)


def test_steps_are_those_of_torch() -> None:
    """Which computes in bfloat16: beside the whole change of eight steps the difference is small."""
    ours, theirs, before = layers(), layers(), layers()
    told = {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.95}
    one = Muon(ours.items(), **told)
    other = torch.optim.Muon(theirs.values(), **told, adjust_lr_fn="match_rms_adamw")
    for seed in range(8):
        for params, optimizer in ((ours, one), (theirs, other)):
            give_gradients(list(params.values()), seed)
            optimizer.step()
    for name, was in before.items():
        change = theirs[name] - was
        assert (ours[name] - theirs[name]).norm() < 0.02 * change.norm(), tuple(was.shape)


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12), (3, 16, 30), (3, 30, 16)])
def test_the_update_is_orthogonal_but_for_the_polynomial(shape: tuple[int, ...]) -> None:
    """The singular vectors are those of the matrix, and the singular values what the polynomial makes of them."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = orthogonal([matrix.float()])
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / torch.linalg.vector_norm(s, dim=-1, keepdim=True)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        s = a * s + b * s**3 + c * s**5
    assert torch.allclose(found.double(), u * s[..., None, :] @ v, atol=1e-4)
    if shape[-1] != shape[-2]:  # else the smallest may be nearly 0 yet
        assert s.min() > 0.6 and s.max() < 1.25


def test_matrices_computed_together_are_those_computed_alone() -> None:
    given = [torch.randn(s) for s in ((8, 20), (20, 8), (3, 8, 20), (2, 20, 8))]
    for together, (alone_,) in zip(orthogonal(given), [orthogonal([one]) for one in given], strict=True):
        assert torch.allclose(together, alone_, atol=1e-5)
    (experts,) = orthogonal([given[2]])
    for one, expected in zip(experts, given[2], strict=True):
        assert torch.allclose(one, orthogonal([expected])[0], atol=1e-5)


def test_the_rest_gets_adamws_steps_and_the_layers_changes_of_its_size() -> None:
    model, other = Transformer(EXPERTS), Transformer(EXPERTS)
    for one in (model, other):
        one.initialise(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = OptimizerConfig(learning_rate=1e-2)
    pairs = [
        (model, optimizer_for(model, dataclasses.replace(config, name="muon"))),
        (other, optimizer_for(other, config)),
    ]
    for seed in range(3):
        for one, optimizer in pairs:
            give_gradients(list(one.parameters()), seed)
            optimizer.step()
        if not seed:
            first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = dict(other.named_parameters())
    for name, tensor in model.named_parameters():
        if ".layers." not in name or tensor.ndim == 1:
            assert torch.equal(tensor, plain[name]), name
        else:
            change = (first[name] - before[name] * (1 - 1e-3)).square().mean().sqrt()
            assert 0.65 < change / (0.2 * 1e-2) < 1.2, name


@pytest.mark.parametrize("words", [(), MOE], ids=["dense", "experts"])
def test_a_stopped_training_goes_on_bit_for_bit(
    recipe: Path, dataset: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    words = ("optimizer.name=muon", "steps=24", *words)
    whole = start(recipe, dataset, tmp_path / "whole", *words)
    whole.run()
    assert isinstance(whole.optimizer, Muon)
    assert whole.metrics[-1]["loss"] < whole.metrics[0]["loss"] - 1
    cut = start(recipe, dataset, tmp_path / "cut", *words)

    def kill(row: dict) -> None:
        if row["step"] == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut.run(kill)
    again = start(recipe, dataset, tmp_path / "cut", *words)
    assert again.step == 10
    again.run()
    assert same(weights(whole), weights(again))


def test_a_state_dict_and_a_scheduler_as_of_any_optimizer(tmp_path: Path) -> None:
    """What trainers of post-training do: a scheduler sets the rates, state_dict() goes into a file and back."""
    model, other = Transformer(EXPERTS), Transformer(EXPERTS)
    model.initialise(0)
    optimizer = Muon(model.named_parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for seed in range(2):
        give_gradients(list(model.parameters()), seed)
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(1e-2 / 3)] * 3
    other.load_state_dict(model.state_dict())
    again = Muon(other.named_parameters(), 9.0)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    for one, it in ((model, optimizer), (other, again)):
        give_gradients(list(one.parameters()), 2)
        it.step()
    assert same(dict(model.state_dict()), dict(other.state_dict()))


def test_a_state_on_disk_holds_both_halves(tmp_path: Path) -> None:
    model, other = Transformer(EXPERTS), Transformer(EXPERTS)
    model.initialise(0)
    optimizer, fresh = Muon(model.named_parameters(), 1e-2), Muon(other.named_parameters(), 1e-2)
    give_gradients(list(model.parameters()), 0)
    optimizer.step()
    states = States(tmp_path, World())
    states.save(1, model, optimizer, {})
    states.wait()
    states.load(other, fresh)
    for one, it in ((model, optimizer), (other, fresh)):
        give_gradients(list(one.parameters()), 1)
        it.step()
    assert same(dict(model.state_dict()), dict(other.state_dict()))


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(FactoryError, match="no matrices below `layers`: use the optimizer adamw"):
        Muon(nn.Linear(3, 3).named_parameters())


def test_two_processes_train_as_one(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    """Sharded matrices are gathered, sharded experts not; the state of two is one process's to go on from."""
    words = ("optimizer.name=muon", "learning_rate=1e-3", "batch_size=5", "steps=12", *MOE)
    out = tmp_path / "two"
    launcher = torchrun(2, "-m", "model.train", recipe, f"data={dataset}", f"out={out}", *words)
    _, told = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, told
    one = alone(recipe, dataset, tmp_path / "one", *words)
    one.run()
    assert_same_curve(rows(out), one.metrics)
    two = alone(recipe, dataset, out, *words)
    for expected, found in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert (expected - found).abs().max() < 1e-3
    for expected, found in zip(one.model.parameters(), two.model.parameters(), strict=True):
        held, theirs = one.optimizer.state[expected], two.optimizer.state[found]
        assert held.keys() == theirs.keys()
        assert all(torch.allclose(held[key], theirs[key], atol=1e-4) for key in held)

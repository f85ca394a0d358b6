"""The Online Merging Optimizer: AdamW at α = 0 and p = 1; else the paper's equations; its state resumes."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from model.merging import OnlineMerging, elect, keep, largest

SHAPES = [(7, 5), (11,), (3, 2, 4), (1,)]


def tensors(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def parameters(seed: int) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(tensor) for tensor in tensors(seed)]


def train(optimizer: torch.optim.Optimizer, own: list[torch.nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        for parameter, gradient in zip(own, tensors(1000 + step), strict=True):
            parameter.grad = gradient
        optimizer.step()


@given(
    merge=st.sampled_from(["dare", "ties"]),
    lr=st.floats(1e-7, 1e-1),
    decay=st.sampled_from([0.0, 0.1]),
    betas=st.sampled_from([(0.9, 0.999), (0.8, 0.95), (0.0, 0.5)]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_without_merging_it_is_adamw_to_the_last_bit(merge, lr, decay, betas, seed):
    one, other = parameters(seed), parameters(seed)
    ours = OnlineMerging(one, tensors(seed + 1), merge=merge, alpha=0.0, p=1.0, lr=lr, betas=betas, weight_decay=decay)
    theirs = torch.optim.AdamW(other, lr=lr, betas=betas, weight_decay=decay, foreach=False)
    train(ours, one, 0, 12)
    train(theirs, other, 0, 12)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def adam(gradients: list[float], lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> list[float]:
    """Adam's steps for one number, as its paper writes them (arXiv 1412.6980, algorithm 1)."""
    m = v = 0.0
    steps = []
    for t, g in enumerate(gradients, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        steps.append(-lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)) ** 0.5 + eps))
    return steps


@given(alpha=st.floats(0, 1), kept=st.integers(1, 6), lr=st.floats(1e-3, 1e-1), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_onties_is_the_equation_number_by_number(alpha, kept, lr, seed):
    generator = torch.Generator().manual_seed(seed)
    start, base = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    gradients = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    ours = OnlineMerging([parameter], [base], merge="ties", alpha=alpha, p=kept / 6, lr=lr)
    steps = list(zip(*(adam(column.tolist(), lr) for column in gradients.T), strict=True))
    theta, tau = start.tolist(), (start - base).tolist()

    def trimmed(numbers):
        floor = sorted((abs(n) for n in numbers), reverse=True)[kept - 1]
        return [n if abs(n) >= floor else 0.0 for n in numbers]

    for gradient, change in zip(gradients, steps, strict=True):
        parameter.grad = gradient
        ours.step()
        for i, (a, b) in enumerate(zip(trimmed(change), trimmed(tau), strict=True)):
            a, b = (1 - alpha) * a, alpha * b
            theta[i] += a + b if a * b > 0 or a == b == 0 else (a if abs(a) >= abs(b) else b)
        torch.testing.assert_close(parameter.detach(), torch.tensor(theta, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@given(alpha=st.floats(0, 1), lr=st.floats(1e-3, 1e-1), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_ondare_is_the_equation_with_all_kept(alpha, lr, seed):
    generator = torch.Generator().manual_seed(seed)
    start, base = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    gradients = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    ours = OnlineMerging([parameter], [base], alpha=alpha, p=1.0, lr=lr)
    theta, tau = start.tolist(), (start - base).tolist()
    for step, gradient in enumerate(gradients):
        parameter.grad = gradient
        ours.step()
        for i, column in enumerate(gradients.T.tolist()):
            theta[i] += (1 - alpha) * adam(column[: step + 1], lr)[-1] + alpha * tau[i]
        torch.testing.assert_close(parameter.detach(), torch.tensor(theta, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_ondare_draws_each_step_and_each_tensor_apart_and_does_not_rescale():
    n, p, alpha, lr = 20_000, 0.3, 0.5, 0.1
    parameter = torch.nn.Parameter(torch.zeros(n))
    ours = OnlineMerging([parameter], [torch.full((n,), -1.0)], alpha=alpha, p=p, lr=lr)
    moved = []
    for _ in range(2):
        before = parameter.detach().clone()
        parameter.grad = torch.ones(n)
        ours.step()
        moved.append(parameter.detach() - before)
    # Adam's first step of a constant gradient is -lr; τ is 1. Four outcomes, by two independent draws.
    levels = {(0, 0): 0.0, (1, 0): -0.05, (0, 1): 0.5, (1, 1): 0.45}
    for step in moved:
        for (a, b), level in levels.items():
            share = ((step - level).abs() < 1e-4).float().mean().item()
            wanted = (p if a else 1 - p) * (p if b else 1 - p)
            assert abs(share - wanted) < 0.02, (a, b, share, wanted)
    same = ((moved[0] - moved[1]).abs() < 1e-4).float().mean().item()
    assert same < 0.5  # the same masks in both steps would give 1


@pytest.mark.parametrize("merge", ["dare", "ties"])
def test_the_state_resumes(merge):
    settings_ = {"merge": merge, "alpha": 0.01, "p": 0.4, "lr": 1e-2, "weight_decay": 0.1, "seed": 3}
    whole, half = parameters(1), parameters(1)
    train(OnlineMerging(whole, tensors(2), **settings_), whole, 0, 10)
    first = OnlineMerging(half, tensors(2), **settings_)
    train(first, half, 0, 4)
    saved, state = [p.detach().clone() for p in half], copy.deepcopy(first.state_dict())
    again = [torch.nn.Parameter(tensor) for tensor in saved]
    # The base is not needed again: what is given here is overwritten by the state.
    second = OnlineMerging(again, tensors(9), **settings_)
    second.load_state_dict(state)
    train(second, again, 4, 10)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_largest_keeps_the_share_and_elect_takes_the_stronger():
    tensor = torch.tensor([[0.1, -3.0], [2.0, -0.2]])
    assert largest(tensor, 0.5).tolist() == [[0.0, -3.0], [2.0, 0.0]]
    assert largest(tensor, 0.01).tolist() == [[0.0, -3.0], [0.0, 0.0]]
    assert largest(tensor, 0.0).abs().sum() == 0
    a, b = torch.tensor([1.0, 1.0, -2.0, 0.0, -1.0]), torch.tensor([2.0, -3.0, 1.0, 0.5, -1.0])
    assert elect(a, b).tolist() == [3.0, -3.0, -2.0, 0.5, -2.0]
    assert keep(tensor, 0.0, torch.Generator()).abs().sum() == 0


def test_what_does_not_fit_is_named():
    with pytest.raises(FactoryError, match="alpha = 2"):
        OnlineMerging(parameters(0), tensors(0), alpha=2)
    with pytest.raises(FactoryError, match="4 parameters, but 3"):
        OnlineMerging(parameters(0), tensors(0)[:3])
    with pytest.raises(FactoryError, match="shape"):
        OnlineMerging(parameters(0), [torch.zeros(1)] * 4)

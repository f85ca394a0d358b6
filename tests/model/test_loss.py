"""The loss in parts of the tokens is torch's cross-entropy, and so are its gradients."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from model import loss
from model.config import ModelConfig
from model.loss import cross_entropy
from model.objective import loss_of
from model.transformer import Transformer


def drawn(tokens: int, size: int, vocabulary: int, ignored: float, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, size, generator=generator)
    weight = torch.randn(vocabulary, size, generator=generator)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < ignored] = -1
    return x.requires_grad_(), weight.requires_grad_(), targets


@settings(max_examples=80, deadline=None)
@given(
    tokens=st.integers(1, 40), size=st.integers(1, 9), vocabulary=st.integers(1, 30), room=st.integers(1, 400),
    ignored=st.sampled_from([0.0, 0.3, 1.0]), factor=st.sampled_from([1.0, 0.25]), seed=st.integers(0, 9),
)  # fmt: skip
def test_it_is_torchs_loss(tokens, size, vocabulary, room, ignored, factor, seed) -> None:
    x, weight, targets = drawn(tokens, size, vocabulary, ignored, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CPU_LOGITS", room)
        found = cross_entropy(x, weight, targets) * factor
    exact = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = F.cross_entropy(F.linear(*exact), targets, ignore_index=-1, reduction="sum") * factor
    assert found.dtype == torch.float32 and found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    for one, other in zip(torch.autograd.grad(found, (x, weight)), torch.autograd.grad(expected, exact), strict=True):
        assert (one - other).abs().max() < 1e-5 * max(1.0, float(other.abs().max()))


def test_targets_that_are_nearly_impossible_cost_what_they_should() -> None:
    """Their probability is 0 in float32, the loss is finite; logits that are not finite stay seen."""
    weight = torch.tensor([[300.0], [0.0], [-300.0]])
    found = [cross_entropy(torch.ones(1, 1), weight, torch.tensor([target])).item() for target in range(3)]
    assert found == pytest.approx([0, 300, 600])
    assert cross_entropy(torch.full((1, 1), torch.inf), weight, torch.tensor([0])).isnan()


def test_without_gradients_it_makes_none() -> None:
    x, weight, targets = drawn(20, 5, 11, 0.2, 0)
    with torch.no_grad():
        found = cross_entropy(x, weight, targets)
    assert not found.requires_grad and found.item() == pytest.approx(cross_entropy(x, weight, targets).item())


def test_bfloat16_adds_its_parts_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, targets = drawn(512, 16, 30, 0.2, 1)
    half = x.detach().bfloat16().requires_grad_(), weight.detach().bfloat16().requires_grad_()
    exact = half[0].detach().float().requires_grad_(), half[1].detach().float().requires_grad_()
    monkeypatch.setattr(loss, "CPU_LOGITS", 30 * 8)
    cross_entropy(*half, targets).backward()
    cross_entropy(*exact, targets).backward()
    for one, other in zip(half, exact, strict=True):
        assert one.grad.dtype == torch.bfloat16
        assert (one.grad - other.grad).norm() < 0.01 * other.grad.norm()


@pytest.mark.parametrize("tied", [True, False])
def test_the_models_loss_and_gradients(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the logits give them; a short sequence counts only what it has; the same bits each time."""
    monkeypatch.setattr(loss, "CPU_LOGITS", 101 * 7)
    shape = {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 2, "tie_word_embeddings": tied}
    model = Transformer(ModelConfig(**shape))  # type: ignore[arg-type]
    model.initialise(1)
    batch = np.random.default_rng(0).integers(0, 101, (3, 20)).astype(np.int32)
    batch[1, 12:] = -1
    ids = torch.from_numpy(batch).long()
    logits = model(ids[:, :-1].clamp(min=0)).flatten(0, 1)
    expected = F.cross_entropy(logits, ids[:, 1:].flatten(), ignore_index=-1)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    runs = []
    for _ in range(2):
        model.zero_grad()
        found = loss_of(model, batch)
        found.backward()
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        runs.append([p.grad.clone() for p in model.parameters()])  # type: ignore[union-attr]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))
    for one, other in zip(runs[0], gradients, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
    assert loss_of(model, batch, "sum").item() == pytest.approx(expected.item() * 49, rel=1e-6)


MEASURE = """
import torch
import torch.nn.functional as F
from factory.engine.receipt import peak_memory
from model.loss import cross_entropy
torch.set_num_threads(1)
x, weight = torch.randn(2048, 8, requires_grad=True), torch.randn(32768, 8, requires_grad=True)
targets = torch.randint(0, 32768, (2048,))
before = peak_memory()
%s.backward()
print(peak_memory() - before)
"""


def test_memory_does_not_grow_with_all_the_logits() -> None:
    """They would be 256 MB."""
    peak = []
    for way in ("cross_entropy(x, weight, targets)", "F.cross_entropy(F.linear(x, weight), targets)"):
        done = subprocess.run([sys.executable, "-c", MEASURE % way], capture_output=True, text=True, check=True)
        peak.append(int(done.stdout) / 2**20)
    assert peak[0] < 100 and peak[1] > 500, peak

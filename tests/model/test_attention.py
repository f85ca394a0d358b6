"""Dual chunk attention against the paper's matrix of positions, written out; documents against each alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from factory.engine.errors import FactoryError
from model import attention
from model.attention import Documents, DualChunk, full_attention, plan, separated
from model.checkpoint import load_hf, save_hf
from model.config import ModelConfig
from model.data import TokenDataset
from model.flash import blocks
from model.objective import Separator, evaluate, loss_of
from model.pretrain import Pretraining
from model.recipe import load_recipe
from model.rope import RopeScaling, frequencies, rotate, turns
from model.train import fit
from model.transformer import Cache
from tests.model.conftest import greedy
from tests.model.test_transformer import build, ids

YARN = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)


def matrix(length: int, s: int, w: int) -> Tensor:
    """The paper's M[i][j] for j <= i, from its three index vectors for queries and the one for keys."""
    c = s + w
    keys = [j % s for j in range(length)]
    intra = [i % s for i in range(length)]
    successive = ([*range(s, s + w)] + [c - 1] * max(0, s - w))[:s]
    found = torch.zeros(length, length, dtype=torch.long)
    for i in range(length):
        for j in range(i + 1):
            apart = i // s - j // s
            query = intra[i] if apart == 0 else successive[i % s] if apart == 1 else c - 1
            found[i, j] = query - keys[j]
    return found


def dense(config: ModelConfig, q: Tensor, k: Tensor, v: Tensor, positions: Tensor | None = None) -> Tensor:
    """Attention in which each score is made with the rotation of its own distance: all in float64."""
    dual = config.dual_chunk_attention_config
    assert dual is not None
    length, seen = q.shape[2], k.shape[2]
    distance = matrix(seen, dual.chunk, dual.local_size) if positions is None else positions
    frequency, factor = frequencies(config.head_dim, config.rope_theta, config.rope_scaling, 1)
    k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.empty(q.shape[0], q.shape[1], seen, seen, dtype=torch.float64)
    q = torch.cat([q.new_zeros(*q.shape[:2], seen - length, q.shape[3]), q], dim=2).double()
    cosine, sine = turns(distance, frequency.double())
    # <R(m) q, R(n) k> = <R(m - n) q, k>, and with YaRN a factor on each.
    for i in range(seen):
        row = rotate(q[:, :, i : i + 1].expand(-1, -1, seen, -1), (cosine[i].double(), sine[i].double()))
        scores[:, :, i] = (row * k).sum(-1) * factor**2 / config.head_dim**0.5
        if dual.original_max_position_embeddings:
            scale = max(1.0, (i + 1) / dual.original_max_position_embeddings)
            scores[:, :, i] *= (0.1 * np.log(scale) + 1) ** 2
    scores = scores.masked_fill(torch.ones(seen, seen, dtype=torch.bool).triu(1), -torch.inf)
    return (scores.softmax(-1) @ v)[:, :, seen - length :]


def configured(s: int, w: int, original: int = 0, **options: object) -> ModelConfig:
    dual = DualChunk(chunk_size=s + w, local_size=w, original_max_position_embeddings=original)
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 100.0}
    return ModelConfig(dual_chunk_attention_config=dual, **shape | options)  # type: ignore[arg-type]


def drawn(
    config: ModelConfig, length: int, seen: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    shapes = ((heads, length), (groups, seen), (groups, seen))
    return [torch.randn(2, h, n, config.head_dim, generator=generator).to(dtype) for h, n in shapes]


def run(config: ModelConfig, q: Tensor, k: Tensor, v: Tensor, documents: Documents | None = None) -> Tensor:
    """Through the plans: the keys of the first tokens go in before, as with a cache."""
    length, seen = q.shape[2], k.shape[2]
    new = plan(config, length, seen - length, documents, q.device)
    if seen > length:
        old = plan(config, seen - length, 0, None, q.device).keys(k[:, :, : seen - length])
        return new(q, torch.cat([old, new.keys(k[:, :, seen - length :])], dim=2), v)
    return new(q, new.keys(k), v)


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(1, 40), before=st.integers(0, 30), s=st.integers(1, 24), w=st.integers(1, 24),
    original=st.sampled_from([0, 8, 100]), scaling=st.sampled_from([None, YARN]), seed=st.integers(0, 9),
)  # fmt: skip
def test_it_is_the_papers_matrix(length, before, s, w, original, scaling, seed) -> None:
    config = configured(s, w, original, rope_scaling=scaling)
    q, k, v = drawn(config, length, before + length, seed)
    assert (run(config, q, k, v) - dense(config, q, k, v)).abs().max() < 2e-5


def test_the_matrix_of_the_papers_figure() -> None:
    """12 tokens, s = 6, c = 10 (§3, figure 2): the last query."""
    found = matrix(12, 6, 4)
    assert found[5].tolist()[:6] == [5, 4, 3, 2, 1, 0]
    assert found[6].tolist()[:7] == [6, 5, 4, 3, 2, 1, 0]
    assert found[11].tolist() == [9, 8, 7, 6, 5, 4, 5, 4, 3, 2, 1, 0]
    far = matrix(40, 6, 4)
    assert far.max() == 9 and far[39, :6].tolist() == [9, 8, 7, 6, 5, 4]


@given(
    length=st.integers(1, 60), before=st.integers(0, 60), chunk=st.integers(1, 30), origin=st.integers(0, 50)
)  # fmt: skip
def test_every_pair_is_in_one_rectangle(length: int, before: int, chunk: int, origin: int) -> None:
    seen = before + length
    count = np.zeros((length, seen), int)
    for rows, parts in blocks(length, seen, chunk, origin):
        for kind, keys, causal in parts:
            places = [(row, key) for row in range(length)[rows] for key in range(seen)[keys]]
            for row, key in places:
                if not causal or key <= before + row:
                    count[row, key] += 1
                    assert min((origin + before + row) // chunk - (origin + key) // chunk, 2) == kind
    assert (count == np.tril(np.ones((length, seen), int), before)).all()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("length", "before"), [(37, 0), (11, 20), (8, 0)])
def test_gradients_are_those_of_the_matrix(length: int, before: int, groups: int) -> None:
    config = configured(7, 4, 16, num_key_value_heads=groups, rope_scaling=YARN)
    given_ = drawn(config, length, length + before, 3)
    weight = torch.randn(2, 4, length, 8, generator=torch.Generator().manual_seed(5))
    found = []
    for function in (run, dense):
        leaves = [x.clone().requires_grad_() for x in given_]
        (function(config, *leaves) * weight).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for ours, expected in zip(*found, strict=True):
        assert (ours - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1)


def test_bfloat16_is_near() -> None:
    config = configured(7, 4, 16)
    exact = drawn(config, 50, 50)
    leaves = [x.bfloat16().requires_grad_() for x in exact]
    out = run(config, *leaves)
    reference = [leaf.detach().float().requires_grad_() for leaf in leaves]
    expected = dense(config, *reference)
    assert out.dtype == torch.bfloat16 and (out - expected).abs().max() < 0.05
    out.float().square().sum().backward()
    expected.square().sum().backward()
    for leaf, other in zip(leaves, reference, strict=True):
        assert leaf.grad.dtype == torch.bfloat16
        assert (leaf.grad - other.grad).norm() < 0.02 * other.grad.norm()


@pytest.mark.parametrize("scaling", [None, YARN])
def test_within_one_chunk_it_is_full_attention(scaling: RopeScaling | None) -> None:
    dual = DualChunk(chunk_size=60, local_size=20, original_max_position_embeddings=60)
    full = build(rope_scaling=scaling)
    chunked = build(rope_scaling=scaling, dual_chunk_attention_config=dual)
    tokens = ids(2, 60)
    assert (chunked(tokens[:, :40]) - full(tokens[:, :40])).abs().max() < 1e-5
    # With w = 20 the next 20 tokens keep their exact distances too; from there on it differs.
    assert (chunked(tokens) - full(tokens)).abs().max() < 1e-5
    tokens = ids(2, 90)
    assert (chunked(tokens)[:, 61:] - full(tokens)[:, 61:]).abs().max() > 1e-3


@pytest.mark.parametrize("original", [0, 16])
def test_generation_with_a_cache_is_as_in_one_pass(original: int, tmp_path: Path) -> None:
    dual = DualChunk(chunk_size=16, local_size=5, original_max_position_embeddings=original)
    model = build(dual_chunk_attention_config=dual, num_attention_heads=4, num_key_value_heads=2)
    tokens = ids(2, 70)
    whole = model(tokens)
    for sizes in ([1] * 70, [30, *[1] * 40], [7, 1, 25, 11, 1, 25]):
        cache = Cache(model.config, 2, 70, like=model.lm_head.weight)
        parts = torch.cat([model(part, cache) for part in tokens.split(sizes, dim=1)], dim=1)
        assert (parts - whole).abs().max() < 1e-5
    save_hf(model, tmp_path / "hf", None, None)
    again = load_hf(tmp_path / "hf")
    assert again.config.dual_chunk_attention_config == dual
    new = greedy(again, tokens[:, :20], 30)
    for at in range(0, 30, 7):
        text = torch.cat([tokens[:, :20], new[:, :at]], dim=1)
        assert torch.equal(model(text)[:, -1].argmax(-1), new[:, at])


MEASURE = """
import sys, torch
from factory.engine.receipt import peak_memory
from tests.model.test_attention import configured, drawn, run
torch.set_num_threads(1)
config = configured(768, 256, hidden_size=64)
leaves = [x[:1].requires_grad_() for x in drawn(config, int(sys.argv[1]), int(sys.argv[1]))]
run(config, *leaves).sum().backward()
print(peak_memory())
"""


def test_memory_is_linear_in_length() -> None:
    """Forward and backward. One matrix of scores at 16,384 tokens would be 4 GB."""
    peak = {}
    for length in (1024, 4096, 16384):
        command = [sys.executable, "-c", MEASURE, str(length)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        peak[length] = int(done.stdout) / 2**20
    small, large = peak[4096] - peak[1024], peak[16384] - peak[1024]
    assert large < 400 and large < 8 * max(small, 40), peak  # 5 times, were there nothing else


def some_documents(seed: int = 0, batch: int = 3, length: int = 50) -> Documents:
    generator = torch.Generator().manual_seed(seed)
    return Documents(torch.rand(batch, length, generator=generator) < 0.1)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("dual", [None, DualChunk(chunk_size=9, local_size=3, original_max_position_embeddings=5)])
def test_documents_are_as_each_alone(restart: bool, dual: DualChunk | None) -> None:
    model = build(dual_chunk_attention_config=dual, num_attention_heads=4, num_key_value_heads=2)
    documents = Documents(some_documents().first, restart)
    tokens = ids(3, 50)
    logits = model(tokens, documents=documents)
    alone = torch.cat([model(tokens[row : row + 1, a:b])[0] for row, a, b in documents.spans()])
    difference = (logits.flatten(0, 1) - alone).abs().max()
    assert len(documents.spans()) > 12
    assert (model(tokens).flatten(0, 1) - alone).abs().max() > 1e-2, "joined is another thing"
    if dual is None or restart:
        assert difference < 1e-5
    else:  # where positions run on, chunks begin elsewhere
        assert difference > 1e-3


@settings(max_examples=15, deadline=None)
@given(s=st.integers(1, 12), w=st.integers(1, 12), seed=st.integers(0, 50))
def test_documents_whose_positions_run_on_keep_their_part_of_the_matrix(s: int, w: int, seed: int) -> None:
    config = configured(s, w)
    q, k, v = drawn(config, 40, 40, seed)
    documents = some_documents(seed, batch=2, length=40)
    found = run(config, q, k, v, documents)
    for row, a, b in documents.spans():
        part = (slice(row, row + 1), slice(None), slice(a, b))
        expected = dense(config, q[part], k[part], v[part], matrix(40, s, w)[a:b, a:b])
        assert (found[part] - expected).abs().max() < 2e-5


@settings(max_examples=25, deadline=None)
@given(length=st.integers(128, 300), groups=st.integers(1, 3), each=st.integers(1, 3), seed=st.integers(0, 9))
def test_training_on_cpu_attends_as_torch_does(length: int, groups: int, each: int, seed: int) -> None:
    """Values and gradients, in blocks of queries; queries lie in memory as the projection leaves them."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(2, length, heads, 8, generator=generator).transpose(1, 2).requires_grad_()
        for heads in (groups * each, groups, groups)
    )
    found = full_attention(q, k, v)
    repeated = (x.repeat_interleave(each, dim=1) for x in (k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, *repeated, is_causal=True)
    assert type(found.grad_fn).__name__ == "BlockedAttentionBackward"
    assert (found - expected).abs().max() < 1e-5
    direction = torch.randn(expected.shape, generator=generator)
    gradients = [torch.autograd.grad(result, (q, k, v), direction) for result in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max().clamp(min=1)


def test_flex_attention_is_the_loop_over_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """What GPUs run, here as torch's plain reference of it: values and gradients."""
    # torch refuses gradients on CPU, where it has no kernel; its reference knows them.
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *tensors: None)
    config = ModelConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    documents = some_documents()
    mask = documents.mask()
    inputs = [torch.randn(3, heads, 50, 8).requires_grad_() for heads in (4, 2, 2)]
    loop = plan(config, 50, 0, documents, torch.device("cpu"))
    flex = plan(config, 50, 0, documents, torch.device("cpu"))
    flex.mask = mask  # type: ignore[attr-defined]
    monkeypatch.setattr(attention, "_compiled", lambda function: function)
    results = [attend(inputs[0], attend.keys(inputs[1]), inputs[2]) for attend in (loop, flex)]
    assert "spans" not in vars(flex) and len(loop.spans) > 12
    assert (results[0] - results[1]).abs().max() < 1e-5
    direction = torch.randn(3, 4, 50, 8)
    gradients = [torch.autograd.grad(result, inputs, direction) for result in results]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() < 1e-5


def test_gradients_with_documents_are_those_of_each_alone() -> None:
    model = build()
    documents, tokens = some_documents(), ids(3, 50)
    model(tokens, documents=documents).square().mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logits = torch.cat([model(tokens[row : row + 1, a:b])[0] for row, a, b in documents.spans()])
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (found[name] - parameter.grad).abs().max() < 1e-4 * parameter.grad.abs().max(), name


def test_documents_are_those_of_the_shards(dataset: Path) -> None:
    """What the separator tells is what tokens.Pack wrote in `document_starts`."""
    data = TokenDataset(dataset)
    count = 0
    for path in sorted((dataset / "rows").glob("*.parquet")):
        for row in pq.read_table(path, columns=["input_ids", "document_starts"]).to_pylist():
            found = separated(torch.tensor([row["input_ids"]]), data.end, False).first[0]
            starts = set(row["document_starts"]) | {0}  # a sequence may begin within a document
            assert set(found.nonzero().flatten().tolist()) == starts
            count += len(starts)
    assert count > 100


def test_training_with_documents_apart(dataset: Path, recipe: Path, tmp_path: Path) -> None:
    data = {"data": TokenDataset(dataset)}
    losses = {}
    for mode in ("joined", "masked", "restarted"):
        read = load_recipe(recipe, [f"documents={mode}", "steps=3"])
        work = Pretraining(fit(read, data), data, tmp_path / mode)
        work.run()
        losses[mode] = [row["loss"] for row in work.metrics]
        separator = Separator(data["data"].end, False) if mode != "joined" else None
        expected = evaluate(work.model, work.held_out, 8, separator)
        assert work.metrics[-1]["evaluation_loss"] == pytest.approx(expected, abs=1e-5)
    assert losses["masked"] == pytest.approx(losses["restarted"], abs=1e-4)
    assert abs(losses["joined"][-1] - losses["masked"][-1]) > 1e-5
    with pytest.raises(FactoryError, match=r"data\.documents"):
        Pretraining(fit(load_recipe(recipe, ["documents=masked"]), data), data, tmp_path / "joined")
    data["data"].end = None
    with pytest.raises(FactoryError, match="cannot be told apart"):
        Pretraining(fit(load_recipe(recipe, ["documents=masked"]), data), data, tmp_path / "other")


def test_the_loss_looks_at_the_document_alone() -> None:
    model = build()
    end, batch = 7, ids(1, 30).numpy().astype(np.int32)
    batch[0, 13] = end
    changed = batch.copy()
    changed[0, :13] = np.where(changed[0, :13] == 5, 6, 5)
    batch[batch == end] = 8
    changed[changed == end] = 8
    batch[0, 13] = changed[0, 13] = end
    tokens = torch.from_numpy(batch[:, :-1]).long(), torch.from_numpy(changed[:, :-1]).long()
    one, other = (model(x, documents=separated(x, end, False))[:, 14:] for x in tokens)
    assert torch.equal(one, other)
    assert loss_of(model, batch).item() != loss_of(model, batch, "mean", Separator(end, False)).item()


def test_configurations_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dual.toml"
    path.write_text("[model.dual_chunk_attention_config]\nchunk_size = 64\nlocal_size = 16\n")
    found = load_recipe(path).model.dual_chunk_attention_config
    assert found == DualChunk(chunk_size=64, local_size=16) and found.chunk == 48
    path.write_text("[model.dual_chunk_attention_config]\nchunk_size = 64\nlocal_size = 64\n")
    with pytest.raises(FactoryError, match="local_size = 64 must lie between"):
        load_recipe(path)
    with pytest.raises(ValueError, match="cache"):
        plan(configured(4, 2), 5, 3, some_documents(), torch.device("cpu"))

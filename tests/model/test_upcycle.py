"""Upcycling: where each expert's parameters come from, and a training that starts so."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from factory.engine.errors import FactoryError
from model import train
from model.checkpoint import load_hf, save_hf
from model.config import ModelConfig
from model.transformer import Transformer
from model.upcycle import pieces, upcycle

DENSE = ModelConfig(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
MOE = replace(
    DENSE,
    model_type="qwen2_moe",
    num_experts=7,
    num_experts_per_tok=2,
    moe_intermediate_size=24,  # 7 * 24 = 168: three copies of 64, of which the last is cut
    shared_expert_intermediate_size=64,
)


def dense(config: ModelConfig = DENSE) -> Transformer:
    model = Transformer(config)
    model.initialise(3)
    return model


def test_experts_are_cut_from_shuffled_copies() -> None:
    """Rows are numbered, so that what is left of each says where it came from."""
    config = replace(MOE, hidden_size=200, num_attention_heads=4)
    rows = torch.arange(1.0, 65.0)
    columns = rows[:, None].expand(64, 200)
    gate, up, down = 1000 + columns, 2000 + columns, 3000 + columns.T
    found = list(pieces(gate, up, down, config, torch.Generator().manual_seed(0)))
    assert len(found) == 7
    order, kept, fresh = [], 0, []
    for gate, up, down in found:
        assert gate.shape == up.shape == (24, 200) and down.shape == (200, 24)
        for row in range(24):
            sources = [gate[row] - 1000, up[row] - 2000, down[:, row] - 3000]
            old = [part[part > 0] for part in sources]
            assert len({value for part in old for value in part.tolist()}) == 1, "the same row in all three"
            order.append(int(old[0][0]))
            kept += sum(map(len, old))
            fresh += [part[part <= 0] + base for part, base in zip(sources, (1000, 2000, 3000), strict=True)]
    copies = [order[:64], order[64:128], order[128:]]
    assert sorted(copies[0]) == sorted(copies[1]) == list(range(1, 65)), "each copy is whole"
    assert len(set(copies[2])) == 40 and max(Counter(order).values()) == 3
    assert copies[0] != copies[1] and copies[0] != sorted(copies[0]), "and shuffled in an order of its own"
    total = 7 * 24 * 200 * 3
    assert abs(kept / total - 0.5) < 0.01
    drawn = torch.cat(fresh)
    assert abs(drawn.mean()) < 1e-3 and abs(drawn.std() / config.initializer_range - 1) < 0.02


def test_what_both_have_is_copied() -> None:
    old = dense()
    with torch.no_grad():
        for parameter in old.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    untied = replace(MOE, tie_word_embeddings=False, mlp_only_layers=(1,))
    new, again, other = (upcycle(old, untied, seed) for seed in (5, 5, 6))
    one, before = new.state_dict(), old.state_dict()
    for name, tensor in before.items():
        if not name.startswith("model.layers.0.mlp."):
            assert torch.equal(one[name], tensor), name
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in one.items())
    name = "model.layers.0.mlp.experts.down_proj"
    assert not torch.equal(one[name], other.state_dict()[name])
    x = torch.randn(5, 32)
    assert torch.equal(new.model.layers[0].mlp.shared_expert(x), old.model.layers[0].mlp(x))  # type: ignore[operator,union-attr]
    wide = upcycle(old, replace(MOE, shared_expert_intermediate_size=100), 5).model.layers[0].mlp.shared_expert  # type: ignore[union-attr]
    inner = F.silu(wide.gate_proj(x)) * wide.up_proj(x)  # type: ignore[operator,union-attr]
    part = inner[:, :64] @ wide.down_proj.weight[:, :64].T  # type: ignore[union-attr,index]
    assert torch.allclose(part, old.model.layers[0].mlp(x), atol=1e-5)  # type: ignore[operator]
    assert wide.gate_proj.weight[64:].std().item() == pytest.approx(0.02, rel=0.2)  # type: ignore[union-attr,operator]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(FactoryError, match=r"model.hidden_size = 64, but the dense model has 32"):
        upcycle(dense(), replace(MOE, hidden_size=64), 0)
    with pytest.raises(FactoryError, match="makes a qwen2_moe model"):
        upcycle(dense(), DENSE, 0)
    with pytest.raises(FactoryError, match="not llama"):
        upcycle(dense(replace(DENSE, model_type="llama")), MOE, 0)
    with pytest.raises(FactoryError, match="tie_word_embeddings = false"):
        upcycle(dense(replace(DENSE, tie_word_embeddings=False)), MOE, 0)


RECIPE = """
[model]
model_type = "qwen2_moe"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_experts = 8
num_experts_per_tok = 2
moe_intermediate_size = 16
shared_expert_intermediate_size = 32
router_aux_loss_coef = 0.01

[optimizer]
learning_rate = 1e-2
warmup_steps = 5

[train]
steps = 60
batch_size = 8
evaluate_every = 30
threads = 1
sample_prompt = "Returns"
"""


def test_a_mixture_of_experts_trains_and_upcycling_starts_lower(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "moe.toml"
    path.write_text(RECIPE)
    words = [f"data={dataset}", "steps=120"]
    small = ["model_type=qwen2", "num_experts=0", f"out={tmp_path / 'dense'}"]
    assert train.main([str(path), *words, *small]) == 0
    assert train.main([str(path), f"data={dataset}", f"out={tmp_path / 'moe'}"]) == 0
    assert "of them used by a token" in capsys.readouterr().out
    rows = pq.read_table(tmp_path / "moe" / "metrics.parquet").to_pylist()
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    for row in rows:
        assert 0 <= row["expert_load_min"] <= 1 <= row["expert_load_max"] <= 4
        assert 1.5 < row["balance_loss"] < 8
    assert pq.read_table(tmp_path / "dense" / "metrics.parquet").column("balance_loss").null_count == 120

    start = [f"upcycle={tmp_path / 'dense' / 'checkpoint' / 'hf'}", f"out={tmp_path / 'up'}"]
    assert train.main([str(path), f"data={dataset}", *start]) == 0
    up = pq.read_table(tmp_path / "up" / "metrics.parquet").to_pylist()
    assert up[0]["loss"] < rows[0]["loss"] - 1, "it knows what the dense model knows"
    assert up[-1]["evaluation_loss"] < rows[-1]["evaluation_loss"]
    assert train.main([str(path), f"data={dataset}", *start]) == 0, "a finished one is only read again"
    model = load_hf(tmp_path / "up" / "checkpoint" / "hf")
    assert model.config.num_experts == 8
    save_hf(model, tmp_path / "again", None, None)
    capsys.readouterr()
    assert train.main([str(path), f"data={dataset}", f"upcycle={tmp_path / 'again'}", f"out={tmp_path / 'no'}"]) == 2
    assert "begins with a dense qwen2 model" in capsys.readouterr().err

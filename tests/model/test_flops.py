"""Floating-point operations as torch counts them, and as the parameters tell."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.flops import flops_per_token, peak, utilisation
from model.options import section
from model.recipe import preset
from model.transformer import Transformer

SHAPE = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
MOE = SHAPE | {"model_type": "qwen2_moe", "num_experts": 8, "moe_intermediate_size": 24, "mlp_only_layers": (1,)}


def scores(config: ModelConfig, length: int) -> int:
    """Queries by keys and weights by values for a sequence, pair by pair, forward and twice that backward."""
    pairs = sum(query + 1 for query in range(length))
    return config.num_hidden_layers * config.num_attention_heads * pairs * 2 * (2 * config.head_dim) * 3


def test_a_dense_step_does_what_torch_counts() -> None:
    config = ModelConfig(**SHAPE, num_key_value_heads=1)  # type: ignore[arg-type]
    model, ids = Transformer(config), torch.zeros(2, 24, dtype=torch.long)
    model.initialise(0)
    with FlopCounterMode(display=False) as counter:
        model(ids, targets=ids).backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(count for op, count in counted.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert products + 2 * scores(config, 24) == flops_per_token(config, 24) * ids.numel()


def test_experts_count_where_a_token_goes_to_them() -> None:
    config = ModelConfig(**MOE, tie_word_embeddings=False)  # type: ignore[arg-type]
    model = Transformer(config)
    idle = model.model.embed_tokens.weight.numel() + sum(p.numel() for p in model.parameters() if p.ndim == 1)
    products = 6 * (model.activated_count() - idle) * 24
    assert products + scores(config, 24) == flops_per_token(config, 24) * 24


def test_utilisation() -> None:
    """Six operations for a parameter and token, and attention, which weighs more the longer the sequence."""
    config = section("model", ModelConfig, preset("qwen2.5-0.5b"), "the preset")
    assert flops_per_token(config, 1) == pytest.approx(6 * 494e6, rel=0.01)
    assert 1.8 < flops_per_token(config, 32768) / flops_per_token(config, 4096) < 2.2
    speed = 0.5 * 989e12 / flops_per_token(config, 4096)
    name = "NVIDIA H100 80GB HBM3"
    assert utilisation(config, 4096, speed, name) == pytest.approx(0.5)
    assert utilisation(config, 4096, speed, name, devices=8) == pytest.approx(0.5 / 8)
    assert peak("NVIDIA H100 PCIe") == 756e12 and peak("NVIDIA L40S") == 362e12 and peak("NVIDIA A100-SXM4-80GB")
    assert peak("a toaster") is None and math.isnan(utilisation(config, 4096, speed, "a toaster"))

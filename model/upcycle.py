"""Upcycling: a mixture of experts that starts from a dense model (Qwen2 technical report, §2.2.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields

import torch
from torch import Tensor

from factory.engine.errors import FactoryError
from model.config import ModelConfig
from model.moe import MoE
from model.transformer import Transformer

SHARE = 0.5  # of each expert's parameters are drawn anew
EXPERTS = {"num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size"}
OWN = EXPERTS | {"norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", "router_aux_loss_coef"}
FREE = OWN | {"preset", "model_type", "tie_word_embeddings", "max_position_embeddings", "initializer_range"}


@torch.no_grad()
def upcycle(dense: Transformer, config: ModelConfig, seed: int) -> Transformer:
    """A model of form qwen2_moe made of a dense Qwen2; the same seed gives the same weights.

    What both have is copied. The routed experts of a layer are cut from copies of its feed-forward layer: `pieces`.
    The report does not say how the rest begins; here the shared expert takes over the feed-forward layer as far as
    the sizes go, and the router, the shared expert's gate and what is left are drawn as in a new model.
    """
    if config.model_type != "qwen2_moe":
        raise FactoryError(f"upcycling makes a qwen2_moe model: model.model_type = {config.model_type!r}")
    for name in sorted({field.name for field in fields(ModelConfig)} - FREE):
        was, now = getattr(dense.config, name), getattr(config, name)
        if was != now:
            raise FactoryError(f"upcycling: model.{name} = {now!r}, but the dense model has {was!r}")
    if dense.config.model_type != "qwen2":
        raise FactoryError(f"upcycling begins with a dense qwen2 model, not {dense.config.model_type}")
    if config.tie_word_embeddings and not dense.config.tie_word_embeddings:
        raise FactoryError("upcycling: the dense model has an output layer: set model.tie_word_embeddings = false")
    model = Transformer(config).to(dense.lm_head.weight.dtype)
    model.initialise(seed)
    old, mine = dense.state_dict(), model.state_dict()
    model.load_state_dict({name: tensor for name, tensor in old.items() if name in mine}, strict=False)
    generator = torch.Generator().manual_seed(seed)
    for number, layer in enumerate(model.model.layers):
        moe = layer.mlp
        if not isinstance(moe, MoE):
            continue
        gate, up, down = (old[f"model.layers.{number}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        for expert, (one, two, three) in enumerate(pieces(gate, up, down, config, generator)):
            moe.experts.gate_up_proj[expert] = torch.cat([one, two])
            moe.experts.down_proj[expert] = three
        size = min(config.shared_expert_intermediate_size, config.intermediate_size)
        moe.shared_expert.gate_proj.weight[:size] = gate[:size]
        moe.shared_expert.up_proj.weight[:size] = up[:size]
        moe.shared_expert.down_proj.weight[:, :size] = down[:, :size]
    return model


def pieces(
    gate: Tensor, up: Tensor, down: Tensor, config: ModelConfig, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The three matrices of each of n experts of size h_E, out of those of a feed-forward layer of size h_FFN.

    The layer is copied ceil(n h_E / h_FFN) times, each copy shuffled along the intermediate dimension, the copies laid
    end to end and cut into experts. Each parameter is drawn anew with probability 1/2.
    """
    count, inner, size = config.num_experts, config.moe_intermediate_size, config.intermediate_size
    copies = math.ceil(count * inner / size)
    order = torch.cat([torch.randperm(size, generator=generator) for _ in range(copies)])[: count * inner]

    def partly(matrix: Tensor) -> Tensor:
        fresh = torch.empty_like(matrix).normal_(0.0, config.initializer_range, generator=generator)
        return torch.where(torch.rand(matrix.shape, generator=generator) < SHARE, fresh, matrix)

    for rows in order.view(count, inner):
        yield partly(gate[rows]), partly(up[rows]), partly(down[:, rows])

"""Upcycling: a mixture of experts that starts from a dense model (Qwen2 technical report, §2.2.2)."""

from __future__ import annotations

import math
from dataclasses import fields

import torch
from torch import Tensor

from factory.engine.errors import FactoryError
from model.config import ModelConfig
from model.moe import MLP, MoE
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
    model = Transformer(config).to(dense.lm_head.weight.dtype)
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    for layer, old in zip(model.model.layers, dense.model.layers, strict=True):
        layer.self_attn.load_state_dict(old.self_attn.state_dict())
        layer.input_layernorm.load_state_dict(old.input_layernorm.state_dict())
        layer.post_attention_layernorm.load_state_dict(old.post_attention_layernorm.state_dict())
        if not isinstance(layer.mlp, MoE):
            layer.mlp.load_state_dict(old.mlp.state_dict())
            continue
        for expert, (gate, up, down) in enumerate(pieces(old.mlp, config, generator)):
            layer.mlp.experts.gate_up_proj[expert] = torch.cat([gate, up])
            layer.mlp.experts.down_proj[expert] = down
        shared = layer.mlp.shared_expert
        size = min(config.shared_expert_intermediate_size, config.intermediate_size)
        shared.gate_proj.weight[:size] = old.mlp.gate_proj.weight[:size]
        shared.up_proj.weight[:size] = old.mlp.up_proj.weight[:size]
        shared.down_proj.weight[:, :size] = old.mlp.down_proj.weight[:, :size]
    model.model.embed_tokens.load_state_dict(dense.model.embed_tokens.state_dict())
    model.model.norm.load_state_dict(dense.model.norm.state_dict())
    if not config.tie_word_embeddings:
        model.lm_head.load_state_dict(dense.lm_head.state_dict())
    return model


def pieces(mlp: MLP, config: ModelConfig, generator: torch.Generator) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The (gate, up, down) matrices of n experts of size h_E out of a feed-forward layer of size h_FFN.

    The layer is copied ceil(n h_E / h_FFN) times, each copy shuffled along the intermediate dimension, the copies laid
    end to end and cut into experts. Each parameter is drawn anew with probability 1/2.
    """
    count, inner, size = config.num_experts, config.moe_intermediate_size, config.intermediate_size
    copies = math.ceil(count * inner / size)
    order = torch.cat([torch.randperm(size, generator=generator) for _ in range(copies)])[: count * inner]

    def partly(matrix: Tensor) -> Tensor:
        fresh = torch.empty_like(matrix).normal_(0.0, config.initializer_range, generator=generator)
        return torch.where(torch.rand(matrix.shape, generator=generator) < SHARE, fresh, matrix)

    out = []
    for rows in order.view(count, inner):
        gate, up, down = mlp.gate_proj.weight[rows], mlp.up_proj.weight[rows], mlp.down_proj.weight[:, rows]
        out.append((partly(gate), partly(up), partly(down)))
    return out

"""A transformer in Qwen2's form: RMSNorm before each part, SwiGLU or experts, RoPE, grouped queries, bias on q, k, v.

Parameter names and shapes are those of Hugging Face's Qwen2ForCausalLM, Qwen2MoeForCausalLM and LlamaForCausalLM.
Shapes in comments: B sequences, T tokens, C hidden size, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Documents, Plan, plan
from model.config import ModelConfig
from model.loss import cross_entropy
from model.moe import MLP, Experts, MoE, Router, Routing

if TYPE_CHECKING:
    from model.parallel import Context


class Cache:
    """Keys and values of the tokens seen, for each layer: space for `length` tokens of `batch` sequences."""

    def __init__(self, config: ModelConfig, batch: int, length: int, like: Tensor) -> None:
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length, config.head_dim)
        # Zeros: a sequence shorter than its neighbours gives what lies behind its end the weight 0, and 0 * nan is nan.
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.length = 0
        """Tokens held by each sequence, or by the longest."""
        self.lengths: Tensor | None = None
        """[B] tokens held by each where they differ: from then on one token at a time is added to each."""

    def add(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [B, G, T, D] to the first B sequences and return all of the layer so far. `length` and `lengths` move
        on after the last layer."""
        rows, end = len(keys), self.length + keys.shape[2]
        for held, new in ((self.keys, keys), (self.values, values)):
            if self.lengths is None:
                held[layer, :rows, :, self.length : end] = new
            else:
                held[layer, torch.arange(rows, device=new.device), :, self.lengths] = new[:, :, 0]
        return self.keys[layer, :rows, :, :end], self.values[layer, :rows, :, :end]


class _RMSNorm(torch.autograd.Function):
    """For float32 on CPU, where torch has no kernel of its own: a third of the time of its single operations, and of
    all that they would keep for the gradients only the scale of each token stays."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(x, scale).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        products = dy * normed
        mean = (products @ weight)[..., None] / x.shape[-1]
        dweight = products.flatten(0, -2).sum(0)
        return torch.mul(dy, weight, out=products).sub_(normed.mul_(mean)).mul_(scale), dweight, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32:
            return _RMSNorm.apply(x, self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention; each key/value head serves H / G query heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        size, heads, groups, dim = (
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.layer, self.heads, self.groups, self.dim = layer, heads, groups, dim
        bias = config.model_type != "llama"
        self.q_proj = nn.Linear(size, heads * dim, bias=bias)
        self.k_proj = nn.Linear(size, groups * dim, bias=bias)
        self.v_proj = nn.Linear(size, groups * dim, bias=bias)
        self.o_proj = nn.Linear(heads * dim, size, bias=False)

    def forward(self, x: Tensor, attend: Plan, cache: Cache | None) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.dim).transpose(1, 2)
        k = attend.keys(self.k_proj(x).view(batch, length, self.groups, self.dim).transpose(1, 2))
        v = self.v_proj(x).view(batch, length, self.groups, self.dim).transpose(1, 2)
        if cache is not None:
            k, v = cache.add(self.layer, k, v)
        y = attend(q, k, v)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class Layer(nn.Module):
    """Attention, then a feed-forward layer or experts; also returns what the experts' router decided."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MoE(config) if config.sparse(layer) else MLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, attend: Plan, cache: Cache | None) -> tuple[Tensor, Routing | None]:
        x = x + self.self_attn(self.input_layernorm(x), attend, cache)
        inner = self.mlp(self.post_attention_layernorm(x))
        y, routing = inner if isinstance(self.mlp, MoE) else (inner, None)
        return x + y, routing


class Decoder(nn.Module):
    """Token ids to the last hidden states."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.context: Context | None = None
        """The ranks that share each sequence: ids are then this rank's part, `documents` those of the whole."""

    def forward(
        self,
        ids: Tensor,
        cache: Cache | None = None,
        documents: Documents | None = None,
        routings: list[Routing] | None = None,
    ) -> Tensor:
        """`routings` is given what each layer of experts decided."""
        before = 0 if cache is None else cache.length if cache.lengths is None else cache.lengths
        attend = plan(self.config, ids.shape[1], before, documents, ids.device, self.context)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x, routing = layer(x, attend, cache)
            if routings is not None and routing is not None:
                routings.append(routing)
        if cache is not None:
            cache.length += ids.shape[1]
            if cache.lengths is not None:
                cache.lengths = cache.lengths + ids.shape[1]
        return self.norm(x)


class Transformer(nn.Module):
    """Token ids [B, T] to logits [B, T, vocab], or given `targets` [B, T] to the sum of their losses (model/loss.py).

    A list given as `routings` gets what each layer's router decided.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        ids: Tensor,
        cache: Cache | None = None,
        documents: Documents | None = None,
        routings: list[Routing] | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        x = self.model(ids, cache, documents, routings)
        if targets is not None:
            return cross_entropy(x.flatten(0, 1), self.lm_head.weight, targets.flatten())
        return self.lm_head(x)

    def configure(self, config: ModelConfig) -> None:
        """Take over another reading of positions: rope_theta, rope_scaling, dual_chunk_attention_config."""
        self.config = self.model.config = config

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw the weights: normal(0, initializer_range), biases 0, norms 1. The same seed gives the same weights."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                if module is self.lm_head and self.config.tie_word_embeddings:
                    continue
                module.weight.normal_(0.0, self.config.initializer_range, generator=generator)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, Router | Experts):
                for parameter in module.parameters():
                    parameter.normal_(0.0, self.config.initializer_range, generator=generator)
            elif isinstance(module, RMSNorm):
                module.weight.fill_(1.0)

    def parameter_count(self) -> int:
        """Parameters, a shared matrix counted once."""
        return sum(p.numel() for p in self.parameters())

    def activated_count(self) -> int:
        """The parameters that one token uses: of the routed experts, those that it goes to."""
        experts = [p for m in self.modules() if isinstance(m, Experts) for p in m.parameters()]
        idle = sum(p.numel() // self.config.num_experts for p in experts)
        return self.parameter_count() - idle * (self.config.num_experts - self.config.num_experts_per_tok)

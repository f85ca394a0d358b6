"""Feed-forward layers: SwiGLU, and Qwen2-MoE's mixture of fine-grained experts with a shared one.

Shapes in comments: N tokens, C hidden size, E experts, K experts a token, I an expert's intermediate size, S = N K
pairs of a token and one of its experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up. silu(gate) is computed again for the gradients: writing it to memory, to be kept, costs more."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy * up, gate), F.silu(gate).mul_(dy)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(_SwiGLU.apply(self.gate_proj(x), self.up_proj(x)))


class Routing(NamedTuple):
    """What a router decided: logits and probabilities [N, E] (float32), the chosen experts and their weights [N, K]."""

    logits: Tensor
    probabilities: Tensor
    chosen: Tensor
    weights: Tensor


class Router(nn.Module):
    """p = softmax(G(x)), the K likeliest experts (Qwen2 technical report, equations 1 and 2).

    With `norm_topk_prob` the weights of the chosen experts sum to 1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.count, self.normalise = config.num_experts_per_tok, config.norm_topk_prob

    def forward(self, x: Tensor) -> Routing:
        logits = F.linear(x, self.weight)
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
        weights, chosen = probabilities.topk(self.count, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(logits, probabilities, chosen, weights.to(x.dtype))


class Experts(nn.Module):
    """E SwiGLU layers in two tensors: gate over up [E, 2 I, C], and down [E, C, I]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, size, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * inner, size))
        self.down_proj = nn.Parameter(torch.empty(count, size, inner))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Each token's sum over its experts [N, C]; `chosen` and `weights` are [N, K]."""
        ordered, order = chosen.flatten().sort(stable=True)
        experts = torch.arange(len(self.down_proj), device=x.device)
        ends = torch.searchsorted(ordered, experts, right=True, out_int32=True)  # bincount would wait for a GPU
        return _Experts.apply(x, order, ends, weights, self.gate_up_proj, self.down_proj)


class _Experts(torch.autograd.Function):
    """All experts at once: the pairs lie sorted by expert, and torch's grouped product takes each expert's slice.

    Only the first product [S, 2 I] is kept for the gradients; what else they need is gathered or computed again. The
    weight of a pair is applied before the last product: the sum is the same, and the weight's gradient needs no output
    of the experts. Rows come back to their tokens by a gather and a sum, the same bits each time.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, order: Tensor, ends: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        tokens = order // weights.shape[1]
        inner = F.grouped_mm(x.index_select(0, tokens), gate_up.transpose(1, 2), offs=ends)
        gate, up = inner.chunk(2, dim=1)
        h = F.silu(gate).mul_(up).mul_(weights.flatten()[order, None])
        y = F.grouped_mm(h, down.transpose(1, 2), offs=ends)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        ctx.save_for_backward(x, order, back, ends, weights, gate_up, down, inner)
        return _sum(y, back, weights.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, order, back, ends, weights, gate_up, down, inner = ctx.saved_tensors
        tokens, share = order // weights.shape[1], weights.flatten()[order, None]
        gate, up = inner.chunk(2, dim=1)
        dy = dy.contiguous().index_select(0, tokens)
        dh = F.grouped_mm(dy, down, offs=ends)
        h = F.silu(gate).mul_(up)
        dshare = torch.linalg.vecdot(dh, h)
        ddown = F.grouped_mm(dy.t(), h.mul_(share), offs=ends)
        del dy, h  # these tensors make the peak of memory
        dh.mul_(share)
        dinner = torch.empty_like(inner)
        dinner[:, gate.shape[1] :].copy_(dh).mul_(F.silu(gate))
        dinner[:, : gate.shape[1]] = torch.ops.aten.silu_backward(dh.mul_(up), gate)
        del dh
        dgate_up = F.grouped_mm(dinner.t(), x.index_select(0, tokens), offs=ends)
        dx = _sum(F.grouped_mm(dinner, gate_up, offs=ends), back, weights.shape[1])
        return dx, None, None, dshare[back].view_as(weights), dgate_up, ddown


def _sum(rows: Tensor, back: Tensor, count: int) -> Tensor:
    """The sum of each token's `count` rows, which lie at `back`."""
    if rows.is_cuda:
        return rows[back].view(-1, count, rows.shape[1]).sum(dim=1)
    return F.embedding_bag(back.view(-1, count), rows, mode="sum")  # gathers and adds in one pass


class MoE(nn.Module):
    """Routed experts, and a shared expert behind a gate of its own: y = sum p_i E_i(x) + sigmoid(g(x)) shared(x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_expert = MLP(config.hidden_size, config.shared_expert_intermediate_size)
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        flat = x.flatten(0, -2)
        routing = self.gate(flat)
        y = self.experts(flat, routing.chosen, routing.weights)
        y = y + torch.sigmoid(self.shared_expert_gate(flat)) * self.shared_expert(flat)
        return y.view_as(x), routing


def balance_loss(
    routings: list[Routing], real: Tensor | None = None, total: Callable[[Tensor], Tensor] = lambda counts: counts
) -> Tensor:
    """E times the sum over experts of (share of tokens that chose it) * (mean probability): K where all are used alike.

    Counts and probabilities are taken over the tokens of all layers together, as transformers does for Qwen2-MoE
    (Switch Transformer, arXiv 2101.03961, equations 4 to 6). `real` [N] is false for padding, which does not count.

    `total` makes counts of several processes' tokens of those of this one's: the losses of all then sum to that of all
    tokens together, and so do their gradients, which go through the probabilities alone.
    """
    counts, sums = _usage(routings, real)
    counts = total(counts)
    rows = counts.sum() / routings[0].chosen.shape[1]
    return counts.shape[1] * (counts.sum(0) / rows * (sums.sum(0) / rows)).sum()


@torch.no_grad()
def expert_load(
    routings: list[Routing], real: Tensor | None = None, total: Callable[[Tensor], Tensor] = lambda counts: counts
) -> Tensor:
    """[layers, E]: the tokens that each expert got, as multiples of an even share; `total` as for balance_loss."""
    counts = total(_usage(routings, real)[0])
    return counts / counts.mean(dim=1, keepdim=True)


def _usage(routings: list[Routing], real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Choices and summed probabilities of each expert: both [layers, E]."""
    counts, sums = [], []
    for routing in routings:
        ones = torch.ones_like(routing.probabilities[:, 0]) if real is None else real.to(routing.probabilities.dtype)
        zeros = torch.zeros_like(routing.probabilities[0])
        counts.append(zeros.index_add(0, routing.chosen.flatten(), ones.repeat_interleave(routing.chosen.shape[1])))
        sums.append(ones @ routing.probabilities)
    return torch.stack(counts), torch.stack(sums)

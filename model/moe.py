"""Feed-forward layers: SwiGLU, and Qwen2-MoE's mixture of fine-grained experts with a shared one.

Shapes in comments: N tokens, C hidden size, E experts, K experts a token, I an expert's intermediate size, S = N K
pairs of a token and one of its experts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


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
        order = chosen.flatten().argsort(stable=True)
        # bincount would wait for the device; the position after each expert's last token does as well.
        experts = torch.arange(len(self.down_proj), device=x.device)
        ends = torch.searchsorted(chosen.flatten()[order], experts, right=True)
        if x.is_cuda and x.dtype == torch.bfloat16:
            return grouped(x, order, ends, weights, self.gate_up_proj, self.down_proj)
        return _Sliced.apply(x, order, ends.tolist(), weights, self.gate_up_proj, self.down_proj)


def grouped(x: Tensor, order: Tensor, ends: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """All experts by torch's grouped product, which never waits for the device: for GPUs."""
    count = weights.shape[1]
    offsets = ends.to(torch.int32)
    gate, up = F.grouped_mm(x[order // count], gate_up.transpose(1, 2), offs=offsets).chunk(2, dim=-1)
    inner = F.silu(gate) * up * weights.flatten()[order, None]
    sorted_ = F.grouped_mm(inner, down.transpose(1, 2), offs=offsets)
    # Back to the order of the tokens and summed, which gives the same bits each time; adding by index would not.
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return sorted_[back].view(-1, count, x.shape[1]).sum(dim=1)


class _Sliced(torch.autograd.Function):
    """The experts one after another, each on its slice of the sorted pairs: for CPUs.

    It keeps only the two inner products [S, 2 I]; one expert's other values fit in the cache and are computed again
    for the gradients, which are written in place. The weight of a token is applied to the inner values, before the
    last product: this is the same sum, and its gradient needs no output of the experts.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, order: Tensor, ends: list[int], weights: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        tokens, share = order // weights.shape[1], weights.flatten()[order, None]
        inner = x.new_empty(len(order), gate_up.shape[1])
        y = torch.zeros_like(x)
        for expert, part in _parts(ends):
            torch.mm(x[tokens[part]], gate_up[expert].t(), out=inner[part])
            gate, up = inner[part].chunk(2, dim=1)
            y.index_add_(0, tokens[part], torch.mm(F.silu(gate).mul_(up).mul_(share[part]), down[expert].t()))
        ctx.save_for_backward(x, order, weights, gate_up, down, inner)
        ctx.ends = ends
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, order, weights, gate_up, down, inner = ctx.saved_tensors
        tokens, share = order // weights.shape[1], weights.flatten()[order, None]
        dx, dgate_up, ddown = torch.zeros_like(x), torch.empty_like(gate_up), torch.empty_like(down)
        dshare = torch.empty_like(share)
        busy = {expert for expert, _ in _parts(ctx.ends)}
        for expert in set(range(len(down))) - busy:
            dgate_up[expert], ddown[expert] = 0, 0
        for expert, part in _parts(ctx.ends):
            rows, p = tokens[part], share[part]
            dout = dy[rows]
            gate, up = inner[part].chunk(2, dim=1)
            silu = F.silu(gate)
            h = silu * up
            dh = torch.mm(dout, down[expert])
            dshare[part] = (dh * h).sum(dim=1, keepdim=True)
            torch.mm(dout.t(), h.mul_(p), out=ddown[expert])
            dh.mul_(p)
            dinner = torch.empty_like(inner[part])
            torch.mul(dh, silu, out=dinner[:, gate.shape[1] :])
            dinner[:, : gate.shape[1]] = torch.ops.aten.silu_backward(dh.mul_(up), gate)
            torch.mm(dinner.t(), x[rows], out=dgate_up[expert])
            dx.index_add_(0, rows, torch.mm(dinner, gate_up[expert]))
        dweights = torch.empty_like(share).scatter_(0, order[:, None], dshare).view_as(weights)
        return dx, None, None, dweights, dgate_up, ddown


def _parts(ends: list[int]) -> list[tuple[int, slice]]:
    """(expert, its slice of the sorted pairs) of each expert that has tokens."""
    starts = [0, *ends[:-1]]
    return [(e, slice(a, b)) for e, (a, b) in enumerate(zip(starts, ends, strict=True)) if a < b]


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


def balance_loss(routings: list[Routing], real: Tensor | None = None) -> Tensor:
    """E times the sum over experts of (share of tokens that chose it) * (mean probability): K where all are used alike.

    Counts and probabilities are taken over the tokens of all layers together, as transformers does for Qwen2-MoE
    (Switch Transformer, arXiv 2101.03961, equations 4 to 6). `real` [N] is false for padding, which does not count.
    """
    counts, sums = _usage(routings, real)
    rows = len(routings) * (len(routings[0].chosen) if real is None else real.sum())
    return counts.shape[1] * (counts.sum(0) / rows * (sums.sum(0) / rows)).sum()


@torch.no_grad()
def expert_load(routings: list[Routing], real: Tensor | None = None) -> Tensor:
    """[layers, E]: the tokens that each expert got, as multiples of an even share."""
    counts, _ = _usage(routings, real)
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

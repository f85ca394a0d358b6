"""The loss of next-token prediction, from hidden states to a number, without the logits of all tokens at once.

Shapes: N tokens, C hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# The logits held at a time. On CPU full speed is reached with 32 MB; a GPU multiplies so fast that each part's pass
# over the weight's gradient would be felt, so it gets 1 GB.
CPU_LOGITS, GPU_LOGITS = 1 << 23, 1 << 28


def cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The sum over tokens of -log softmax(x weight^T)[target], in nats and float32. Targets below 0 add nothing.

    x [N, C], weight [V, C], targets [N]: as F.cross_entropy of F.linear(x, weight), in a fraction of the memory.
    """
    return _CrossEntropy.apply(x, weight, targets, torch.is_grad_enabled())


class _CrossEntropy(torch.autograd.Function):
    """The gradient is known as soon as the logits are: softmax minus one at the target. So each part of the tokens is
    multiplied out, turned into its gradient in place and multiplied back, before the next part takes its room."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, train: bool) -> Tensor:
        room = GPU_LOGITS if x.is_cuda else CPU_LOGITS
        parts = -(-len(x) * len(weight) // room)
        buffer = x.new_empty(-(-len(x) // parts), len(weight))
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
        for rows, goal, out in zip(x.chunk(parts), targets.chunk(parts), dx.chunk(parts), strict=True):
            counts = (goal >= 0)[:, None]
            goal = goal.clamp(min=0)[:, None]
            logits = torch.mm(rows, weight.t(), out=buffer[: len(rows)]).float()
            likeliest, chosen = logits.amax(1, keepdim=True), logits.gather(1, goal)
            softmax = torch.softmax(logits, dim=1, out=logits)
            # The likeliest token's probability tells the sum of exponentials; the target's may be 0 in float32.
            sums = likeliest - softmax.amax(1, keepdim=True).log()
            total += torch.where(counts, sums - chosen, 0).sum()
            if train:
                softmax.scatter_add_(1, goal, softmax.new_full(goal.shape, -1.0))
                dlogits = softmax.to(x.dtype)
                torch.mm(dlogits, weight, out=out).mul_(counts)
                rows = rows * counts
                if dweight.dtype == x.dtype:
                    torch.addmm(dweight, dlogits.t(), rows, out=dweight)
                else:
                    dweight += dlogits.t() @ rows
        ctx.save_for_backward(dx, dweight)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight = ctx.saved_tensors
        return dx.mul_(gradient), dweight.mul_(gradient).to(dx.dtype), None, None

"""Attention as functions with gradients of their own: in blocks of queries, and over the rectangles of dual chunks.

Shapes: B sequences, T queries, S keys, H query heads, G key/value heads, R = H / G, N queries of a block, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from factory.engine.errors import FactoryError

aten = torch.ops.aten


class BlockedAttention(torch.autograd.Function):
    """Causal attention for training on CPU, so many queries at a time: two thirds of the time of torch's flash kernel
    there, which skips less of what is masked and wants keys and values repeated for each query head.

    Blocks of queries see the keys up to their end. Going back, the weights are computed again.
    """

    QUERIES = 64

    @classmethod
    def blocks(cls, q: Tensor, k: Tensor) -> Iterator[tuple[slice, int, Tensor, Tensor]]:
        """Of each block: the queries, the end of the keys, the scaled queries [BG, RN, D], the weights [BG, RN, S]."""
        for begin in range(0, q.shape[3], cls.QUERIES):
            rows = slice(begin, begin + cls.QUERIES)
            part = q[:, :, :, rows]
            count, end = part.shape[3], begin + part.shape[3]
            part = (part * q.shape[4] ** -0.5).reshape(len(k), -1, q.shape[4])
            scores = torch.bmm(part, k[:, :end].transpose(1, 2))
            later = torch.ones(count, count, dtype=torch.bool).triu(1)
            scores.view(len(k), -1, count, end)[..., begin:].masked_fill_(later, -torch.inf)
            yield rows, end, part, torch.softmax(scores, dim=-1, out=scores)

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        shape = (-1, k.shape[1], q.shape[1] // k.shape[1], *q.shape[2:])  # B, G, R query heads for each, T, D
        k, v = k.reshape(-1, *k.shape[2:]), v.reshape(-1, *v.shape[2:])
        places = out.view(shape)
        for rows, end, _, weights in BlockedAttention.blocks(q.view(shape), k):
            place = places[:, :, :, rows]
            place.copy_(torch.bmm(weights, v[:, :end]).view(place.shape))
        ctx.save_for_backward(q, k, v, out)
        ctx.shape = shape
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        mean = torch.linalg.vecdot(dy, out).view(
            ctx.shape[:-1]
        )  # of each query's weights' gradients, under its weights
        dy, places = dy.reshape(q.shape).view(ctx.shape), dq.view(ctx.shape)
        for rows, end, part, weights in BlockedAttention.blocks(q.view(ctx.shape), k):
            place = places[:, :, :, rows]
            dpart = dy[:, :, :, rows].reshape(part.shape)
            dv[:, :end].baddbmm_(weights.transpose(1, 2), dpart)
            dscores = torch.bmm(dpart, v[:, :end].transpose(1, 2))
            dscores.sub_(mean[:, :, :, rows].reshape(*part.shape[:2], 1)).mul_(weights)
            dk[:, :end].baddbmm_(dscores.transpose(1, 2), part)
            torch.mul(torch.bmm(dscores, k[:, :end]).view(place.shape), q.shape[3] ** -0.5, out=place)
        shape = (-1, ctx.shape[1], *k.shape[1:])
        return dq, dk.view(shape), dv.view(shape)


def blocks(length: int, seen: int, chunk: int, origin: int) -> Iterator[tuple[slice, list[tuple[int, slice, bool]]]]:
    """The rectangles of dual chunk attention: for the queries of each chunk, (kind, keys, causal) of each part.

    Kind 0 is intra, 1 successive, 2 inter. Key 0 is at position `origin`; the queries are the last `length` of `seen`.
    """
    at = before = seen - length
    while at < seen:
        number = (origin + at) // chunk
        begin, previous = (max(0, place * chunk - origin) for place in (number, number - 1))
        end = min(seen, (number + 1) * chunk - origin)
        parts = [(0, slice(at, end), True)]
        rest = [(0, slice(begin, at)), (1, slice(previous, begin)), (2, slice(0, previous))]
        parts += [(kind, keys, False) for kind, keys in rest if keys.stop > keys.start]
        yield slice(at - before, end - before), parts
        at = end


class ChunkedAttention(torch.autograd.Function):
    """Attention of three forms of the queries, each to its own keys, under one softmax: memory linear in length.

    The parts are computed by flash attention and merged by their log-sum-exps. Going back, the kernel is given the
    merged result and log-sum-exp: the weights that it computes again are then those under the whole softmax.
    """

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        """intra, successive, inter [B, H, T, D], k, v [B, G, S, D], the size of a chunk, the position of key 0."""
        *queries, k, v, chunk, origin = given
        length = queries[0].shape[2]
        out = torch.empty_like(queries[0], memory_format=torch.contiguous_format)
        total = torch.empty(out.shape[:3], dtype=torch.float32, device=out.device)
        for rows, parts in blocks(length, k.shape[2], chunk, origin):
            found = [
                _flash(queries[kind][:, :, rows], k[:, :, keys], v[:, :, keys], causal) for kind, keys, causal in parts
            ]
            sums = torch.logsumexp(torch.stack([weight for _, weight in found]), dim=0)
            merged = sum(part * (weight - sums).exp()[..., None] for part, weight in found)
            out[:, :, rows], total[:, :, rows] = merged, sums
        ctx.save_for_backward(*queries, k, v, out, total)
        ctx.chunk, ctx.origin = chunk, origin
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *queries, k, v, out, total = ctx.saved_tensors
        (gradient,) = gradients
        # In float32: a key gets its gradient in many parts.
        turned = [torch.zeros_like(q, dtype=torch.float32) for q in queries]
        to_k, to_v = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for rows, parts in blocks(out.shape[2], k.shape[2], ctx.chunk, ctx.origin):
            whole = gradient[:, :, rows], out[:, :, rows], total[:, :, rows].contiguous()
            for kind, keys, causal in parts:
                found = _flash_back(*whole, queries[kind][:, :, rows], k[:, :, keys], v[:, :, keys], causal)
                turned[kind][:, :, rows] += found[0]
                to_k[:, :, keys] += found[1]
                to_v[:, :, keys] += found[2]
        return (*(x.to(k.dtype) for x in (*turned, to_k, to_v)), None, None)


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Flash attention and the log-sum-exp of each query's scores [B, H, T] in float32."""
    if q.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    if q.dtype == torch.float32:
        raise FactoryError(
            "dual chunks and shared sequences take flash attention, which a GPU has for 16 bits alone: set "
            "train.dtype = 'bfloat16', or read a checkpoint that is stored so"
        )
    return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[:2]


def _flash_back(
    gradient: Tensor, out: Tensor, total: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, where `out` and `total` may be those of a softmax over more keys than these."""
    if q.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(gradient, q, k, v, out, total, 0.0, causal)
    none = torch.empty(0, dtype=torch.int64, device=q.device)
    return aten._scaled_dot_product_flash_attention_backward(
        gradient, q, k, v, out, total, None, None, q.shape[2], k.shape[2], 0.0, causal, none, none
    )

"""Causal attention over rotary positions: full, dual chunk, and within documents.

For each forward pass `plan` makes one object that all layers share: `plan.keys(k)` gives keys as the cache stores
them, `plan(q, k, v)` attends. Shapes: B sequences, T new tokens, S tokens seen, H query heads, G key/value heads, D
head size; the queries are those of the last T of the S tokens.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from factory.engine.errors import FactoryError
from model.rope import frequencies, rotate, turns

if TYPE_CHECKING:
    from model.config import ModelConfig

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class DualChunk:
    """Dual chunk attention (arXiv 2402.17463): no relative position beyond chunk_size is ever used, so that a model
    reads far beyond the length that it was trained for. The names are those of Qwen2.5-1M's configuration."""

    chunk_size: int
    """The paper's c: relative positions stay below it; the trained length, or less."""
    local_size: int
    """The paper's w: at least so many tokens before each one keep their exact distance. Chunks have s = c - w tokens.
    Qwen2.5-1M has 262144 and 8192; the paper s = 3/4 c."""
    original_max_position_embeddings: int = 0
    """YaRN's attention scaling beyond this length: a query that sees n tokens is scaled by (0.1 ln(n / this) + 1)^2,
    the paper's 1/t. 0 for none. n counts what the query itself sees, so that generation with a cache gives what one
    pass gives. (vLLM's former backend took the square root of this, and the length of the whole prompt.)"""

    @property
    def chunk(self) -> int:
        return self.chunk_size - self.local_size

    def check(self) -> None:
        """Raises FactoryError where the numbers do not fit together."""
        if not 0 < self.local_size < self.chunk_size:
            raise FactoryError(
                f"model.dual_chunk_attention_config: local_size = {self.local_size} must lie between 0 and "
                f"chunk_size = {self.chunk_size}"
            )


@dataclass(frozen=True)
class Documents:
    """Where documents begin in packed sequences: each token sees those of its own document only.

    `first` [B, T] is true at the first token of each; what stands before the first of these is a document too.
    Positions run on through the sequence, or with `restart` begin at 0 in each document. Rotary attention sees
    distances alone and so gives the same either way; for dual chunks it decides where chunks begin.
    """

    first: Tensor
    restart: bool = False

    def spans(self) -> list[tuple[int, int, int]]:
        """(sequence, begin, end) of each document, in order."""
        length = self.first.shape[1]
        found = []
        for row, marks in enumerate(self.first.cpu()):
            edges = [0, *(place for place in marks.nonzero().flatten().tolist() if place), length]
            found += [(row, begin, end) for begin, end in itertools.pairwise(edges)]
        return found

    def mask(self, create: Callable[..., BlockMask] = create_block_mask) -> BlockMask:
        """The same for FlexAttention, without waiting for a GPU: causal, and within a document."""
        rows, length = self.first.shape
        numbers = self.first.cumsum(1)

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (numbers[row, query] == numbers[row, key])

        return create(sees, rows, None, length, length, device=self.first.device)

    def positions(self) -> Tensor:
        """The position of each token: [B, T]."""
        run = torch.arange(self.first.shape[1], device=self.first.device)
        return run - torch.where(self.first, run, 0).cummax(dim=1).values if self.restart else run[None]


def separated(ids: Tensor, end: int, restart: bool) -> Documents:
    """The documents of sequences [B, T] in which each is ended by the id `end`, as tokens.Pack leaves them."""
    return Documents(F.pad(ids[:, :-1] == end, (1, 0), value=True), restart)


def plan(config: ModelConfig, length: int, before: int, documents: Documents | None, device: torch.device) -> Plan:
    """How the `length` tokens that follow `before` cached ones attend."""
    if documents is not None and before:
        raise ValueError("documents and a cache cannot be used together")
    class_ = Full if config.dual_chunk_attention_config is None else DualChunks
    return class_(config, torch.arange(before, before + length, device=device), documents)


class Plan(ABC):
    """Positions and spans of one forward pass. Subclasses rotate and attend."""

    def __init__(self, config: ModelConfig, run: Tensor, documents: Documents | None) -> None:
        self.config, self.documents = config, documents
        self.positions = run if documents is None else documents.positions()[:, None]  # [T], or [B or 1, 1, T]
        self.frequency, self.factor = frequencies(
            config.head_dim, config.rope_theta, config.rope_scaling, config.max_position_embeddings
        )

    @functools.cached_property
    def spans(self) -> list[tuple[int, int, int]]:
        return self.documents.spans() if self.documents is not None else []

    @abstractmethod
    def keys(self, k: Tensor) -> Tensor:
        """Keys [B, G, T, D] of the new tokens as the cache holds them."""

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, H, T, D], not yet turned, to k and v [B, G, S, D]: [B, H, T, D]."""

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return turns(positions, self.frequency, self.factor)

    def origin(self, begin: int) -> int:
        """The position of the first token of a document that begins at token `begin`."""
        return 0 if self.documents is None or self.documents.restart else begin

    def each(self, attend: Callable[..., Tensor], *parts: Tensor) -> Tensor:
        """attend(*parts, origin) over whole sequences, or over each document: [B, H, T, D]."""
        if self.documents is None:
            return attend(*parts, self.origin(0))
        rows: dict[int, list[Tensor]] = {}
        for row, begin, end in self.spans:
            pieces = (part[row : row + 1, :, begin:end] for part in parts)
            rows.setdefault(row, []).append(attend(*pieces, self.origin(begin)))
        return torch.cat([torch.cat(row, dim=2) for row in rows.values()])


class Full(Plan):
    """Each token sees all before it. Documents are attended to one after another on CPU, where that is the fastest; on
    a GPU by FlexAttention, which leaves out what no token sees."""

    def __init__(self, config: ModelConfig, run: Tensor, documents: Documents | None) -> None:
        super().__init__(config, run, documents)
        self.turn = self.turns(self.positions)
        self.mask = documents.mask(_compiled(create_block_mask)) if documents is not None and run.is_cuda else None

    def keys(self, k: Tensor) -> Tensor:
        return rotate(k, self.turn)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = rotate(q, self.turn)
        if self.mask is not None:
            return _compiled(flex_attention)(q, k, v, block_mask=self.mask, enable_gqa=True)
        return self.each(full_attention, q, k, v)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """FlexAttention makes its kernels when it is compiled; not compiled it would hold all scores at once."""
    return torch.compile(function, dynamic=False)


def full_attention(q: Tensor, k: Tensor, v: Tensor, origin: int = 0) -> Tensor:
    """Causal attention of q [B, H, T, D] to k and v [B, G, S, D]."""
    training = torch.is_grad_enabled() and q.requires_grad
    if training and q.device.type == "cpu" and q.dtype == torch.float32 and 128 <= q.shape[2] == k.shape[2]:
        return _Blocks.apply(q, k, v)  # fewer tokens are not worth its many small products
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    length, seen = q.shape[2], k.shape[2]
    mask = None
    if seen > length > 1:  # new tokens see all before them, and each other causally
        mask = torch.ones(length, seen, dtype=torch.bool, device=q.device).tril(seen - length)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=seen == length)


class _Blocks(torch.autograd.Function):
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
        for rows, end, _, weights in _Blocks.blocks(q.view(shape), k):
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
        for rows, end, part, weights in _Blocks.blocks(q.view(ctx.shape), k):
            place = places[:, :, :, rows]
            dpart = dy[:, :, :, rows].reshape(part.shape)
            dv[:, :end].baddbmm_(weights.transpose(1, 2), dpart)
            dscores = torch.bmm(dpart, v[:, :end].transpose(1, 2))
            dscores.sub_(mean[:, :, :, rows].reshape(*part.shape[:2], 1)).mul_(weights)
            dk[:, :end].baddbmm_(dscores.transpose(1, 2), part)
            torch.mul(torch.bmm(dscores, k[:, :end]).view(place.shape), q.shape[3] ** -0.5, out=place)
        shape = (-1, ctx.shape[1], *k.shape[1:])
        return dq, dk.view(shape), dv.view(shape)


class DualChunks(Plan):
    """Dual chunk attention: keys are turned by their place in the chunk, queries in three ways.

    With s tokens in a chunk and c = chunk_size, the query at i and the key at j <= i are at the distance (the paper,
    §3.2-3.4)
        i mod s - j mod s                  in the same chunk (intra),
        min(s + i mod s, c - 1) - j mod s  in the chunk after the key's (successive),
        c - 1 - j mod s                    beyond (inter).
    (The authors' code and vLLM's had c for c - 1.)
    """

    def __init__(self, config: ModelConfig, run: Tensor, documents: Documents | None) -> None:
        super().__init__(config, run, documents)
        dual = config.dual_chunk_attention_config
        assert dual is not None
        self.chunk = dual.chunk
        inside = self.positions % dual.chunk
        last = torch.tensor([dual.chunk_size - 1], device=run.device)
        self.intra = self.turns(inside)
        self.successive = self.turns((inside + dual.chunk).minimum(last))
        self.inter = self.turns(last)
        self.sharpness: Tensor | None = None
        if dual.original_max_position_embeddings:
            seen = (run if documents is None else Documents(documents.first, True).positions()[:, None]) + 1
            scale = (seen / dual.original_max_position_embeddings).clamp(min=1)
            self.sharpness = (0.1 * scale.log() + 1).square()[..., None]

    def keys(self, k: Tensor) -> Tensor:
        return rotate(k, self.intra)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.sharpness is not None:
            q = q * self.sharpness.to(q.dtype)
        turned = (rotate(q, turn) for turn in (self.intra, self.successive, self.inter))
        return self.each(self._attend, *turned, k, v)

    def _attend(self, intra: Tensor, successive: Tensor, inter: Tensor, k: Tensor, v: Tensor, origin: int) -> Tensor:
        return ChunkedAttention.apply(intra, successive, inter, k, v, self.chunk, origin)


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

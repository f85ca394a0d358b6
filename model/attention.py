"""Causal attention over rotary positions: full, dual chunk, and within documents.

For each forward pass `plan` makes one object that all layers share: `plan.keys(k)` gives keys as the cache stores
them, `plan(q, k, v)` attends. Shapes: B sequences, T new tokens, S tokens seen, H query heads, G key/value heads, D
head size; the queries are those of the last T of the S tokens.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from factory.engine.errors import FactoryError
from model.flash import BlockedAttention, ChunkedAttention
from model.rope import frequencies, rotate, turns

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.parallel import Context


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
        if self.original_max_position_embeddings < 0:
            raise FactoryError(
                "model.dual_chunk_attention_config: original_max_position_embeddings = "
                f"{self.original_max_position_embeddings} must not be negative"
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


def plan(
    config: ModelConfig,
    length: int,
    before: int | Tensor,
    documents: Documents | None,
    device: torch.device,
    context: Context | None = None,
) -> Plan:
    """How the `length` tokens that follow `before` cached ones attend. `before` [B]: one token follows as many in each
    sequence.

    With a `context` these are this rank's part of sequences that several ranks share; `documents` are the whole
    sequences'.
    """
    class_ = Full if config.dual_chunk_attention_config is None else DualChunks
    if isinstance(before, Tensor):
        return class_(config, before[:, None, None], None)
    if before and (documents is not None or context is not None):
        raise ValueError("a cache cannot be used together with documents or a context of several ranks")
    length *= context.size if context is not None else 1
    return class_(config, torch.arange(before, before + length, device=device), documents, context)


SHORT = 256  # tokens: documents up to here gain by being in a batch


class Batches:
    """Documents of similar length as the rows of a batch each, padded behind: many short ones in few products."""

    def __init__(self, spans: list[tuple[int, int, int]], length: int, device: torch.device) -> None:
        alike: dict[Any, list[tuple[int, int]]] = {}
        for number, (row, begin, end) in enumerate(spans):
            kind = (end - begin - 1).bit_length() if end - begin <= SHORT else -number
            alike.setdefault(max(kind, 6) if kind > 0 else kind, []).append((row * length + begin, end - begin))
        self.shapes: list[tuple[int, int]] = []
        places = []
        for some in alike.values():
            begins, lengths = torch.tensor(some).t()
            run = torch.arange(int(lengths.max()))
            places.append(torch.where(run < lengths[:, None], begins[:, None] + run, -1).flatten())
            self.shapes.append((len(some), len(run)))
        self.places = torch.cat(places).to(device)  # of each place of the batches the token that stands there, or -1
        there = (self.places >= 0).nonzero()[:, 0]
        self.back = torch.empty_like(there).index_put((self.places[there],), there)  # where each token stands

    def __call__(self, attend: Callable[..., Tensor], *parts: Tensor) -> Tensor:
        """As Plan.each, with the origin 0."""
        rows, _, length, _ = parts[0].shape
        padded = []
        for part in parts:
            tokens = part.transpose(1, 2).reshape(rows * length, -1)
            padded.append((_Moved.apply(tokens, self.places, self.back), part.shape[1], part.shape[3]))
        out, begin = [], 0
        for count, longest in self.shapes:
            end = begin + count * longest
            pieces = (x[begin:end].view(count, longest, heads, -1).transpose(1, 2) for x, heads, _ in padded)
            out.append(attend(*pieces, 0).transpose(1, 2).reshape(count * longest, -1))
            begin = end
        together = _Moved.apply(torch.cat(out), self.back, self.places)
        return together.view(rows, length, parts[0].shape[1], -1).transpose(1, 2)


class _Moved(torch.autograd.Function):
    """Rows x [N, C] to other places [M]: each of N stands at one of M, `back` [N], or the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, places.clamp(min=0))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        found = gradient.index_select(0, back.clamp(min=0))
        return found.mul_((back >= 0)[:, None]), None, None


class Plan(ABC):
    """Positions and spans of one forward pass. Subclasses rotate and attend."""

    def __init__(
        self, config: ModelConfig, run: Tensor, documents: Documents | None, context: Context | None = None
    ) -> None:
        self.config, self.documents, self.context = config, documents, context
        self.last = run[:, 0] if run.ndim == 3 else None  # [B, 1], where each sequence has one token at its own place
        self.length = len(run)
        self.positions = self.mine(run if documents is None else documents.positions()[:, None])  # [T], [B or 1, 1, T]
        self.frequency, self.factor = frequencies(
            config.head_dim, config.rope_theta, config.rope_scaling, config.max_position_embeddings
        )

    @functools.cached_property
    def spans(self) -> list[tuple[int, int, int]]:
        return self.documents.spans() if self.documents is not None else []

    @functools.cached_property
    def _batches(self) -> Batches | None:
        """Short documents are attended to together, where where they begin does not matter."""
        assert self.documents is not None
        if not self.documents.restart and self.config.dual_chunk_attention_config is not None:
            return None
        found = Batches(self.spans, self.documents.first.shape[1], self.documents.first.device)
        return found if len(found.shapes) < len(self.spans) else None

    @abstractmethod
    def keys(self, k: Tensor) -> Tensor:
        """Keys [B, G, T, D] of the new tokens as the cache holds them."""

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, H, T, D], not yet turned, to k and v [B, G, S, D]: [B, H, T, D]."""

    def mine(self, x: Tensor) -> Tensor:
        """This rank's part of what has a value for each place of the sequences [..., T]."""
        return x if self.context is None else self.context.part(x)

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return turns(positions, self.frequency, self.factor)

    def origin(self, begin: int) -> int:
        """The position of the first token of a document that begins at token `begin`."""
        return 0 if self.documents is None or self.documents.restart else begin

    def each(self, attend: Callable[..., Tensor], *parts: Tensor) -> Tensor:
        """attend(*parts, origin) over whole sequences, or over each document: [B, H, T, D]. k and v come last."""
        if self.context is not None:
            return self._shared(self.context, attend, *parts)
        if self.documents is None:
            return attend(*parts, self.origin(0))
        if self._batches is not None:
            return self._batches(attend, *parts)
        rows: dict[int, list[Tensor]] = {}
        for row, begin, end in self.spans:
            pieces = (part[row : row + 1, :, begin:end] for part in parts)
            rows.setdefault(row, []).append(attend(*pieces, self.origin(begin)))
        return torch.cat([torch.cat(row, dim=2) for row in rows.values()])

    def _shared(self, context: Context, attend: Callable[..., Tensor], *parts: Tensor) -> Tensor:
        """As `each`, of this rank's queries to the keys and values of all ranks."""
        *queries, k, v = parts
        k, v = context.whole(k, 2), context.whole(v, 2)
        out = torch.empty_like(queries[0])
        spans = [(slice(row, row + 1), begin, end) for row, begin, end in self.spans]
        at = 0
        for first, last in context.spans(self.length):
            for rows, begin, end in spans or [(slice(None), 0, self.length)]:
                low, high = max(begin, first), min(end, last)
                if low >= high:
                    continue
                mine, seen = slice(at + low - first, at + high - first), slice(begin, high)
                pieces = (q[rows, :, mine] for q in queries)
                out[rows, :, mine] = attend(*pieces, k[rows, :, seen], v[rows, :, seen], self.origin(begin))
            at += last - first
        return out


class Full(Plan):
    """Each token sees all before it. Documents are attended to one after another on CPU, where that is the fastest; on
    a GPU by FlexAttention, which leaves out what no token sees."""

    def __init__(
        self, config: ModelConfig, run: Tensor, documents: Documents | None, context: Context | None = None
    ) -> None:
        super().__init__(config, run, documents, context)
        self.turn = self.turns(self.positions)
        self.mask: BlockMask | None = None
        if documents is not None and context is None and run.is_cuda:
            self.mask = documents.mask(_compiled(create_block_mask))

    def keys(self, k: Tensor) -> Tensor:
        return rotate(k, self.turn)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = rotate(q, self.turn)
        if self.last is not None:
            places = torch.arange(k.shape[2], device=k.device)
            return attend_one(q, torch.where(places <= self.last, 0, -1), k, v)
        if self.mask is not None:
            return _compiled(flex_attention)(q, k, v, block_mask=self.mask, enable_gqa=True)
        return self.each(full_attention if self.context is None else later_attention, q, k, v)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """FlexAttention makes its kernels when it is compiled; not compiled it would hold all scores at once."""
    return torch.compile(function, dynamic=False)


def later_attention(q: Tensor, k: Tensor, v: Tensor, origin: int) -> Tensor:
    """full_attention of the last queries to many more keys, in memory that grows with their number alone."""
    return ChunkedAttention.apply(q, q, q, k, v, origin + k.shape[2], origin)  # all in one chunk


def attend_one(forms: Tensor, kinds: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The attention of one query in each sequence, turned in F ways: forms [B, H, F, D], k and v [B, G, S, D].

    `kinds` [B, S] says which form each key takes, -1 for a key that is not seen. Returns [B, H, 1, D].
    """
    batch, heads, count, size = forms.shape
    groups = k.shape[1]
    # The heads of a group lie one after another: its keys are read once for all of them.
    scores = forms.reshape(batch, groups, -1, size) @ k.transpose(2, 3)
    scores = scores.view(batch, heads, count, -1).float() * size**-0.5
    taken = kinds.clamp(min=0)[:, None, None].expand(-1, heads, 1, -1)
    scores = scores.gather(2, taken)[:, :, 0].masked_fill(kinds[:, None] < 0, -torch.inf)
    weights = scores.softmax(-1).to(v.dtype).view(batch, groups, heads // groups, -1)
    return (weights @ v).view(batch, heads, 1, size)


def full_attention(q: Tensor, k: Tensor, v: Tensor, origin: int = 0) -> Tensor:
    """Causal attention of q [B, H, T, D] to k and v [B, G, S, D]."""
    length, seen = q.shape[2], k.shape[2]
    if seen > length and not q.is_cuda:
        return later_attention(q, k, v, origin)  # a mask would take T S of memory
    training = torch.is_grad_enabled() and q.requires_grad
    if training and q.device.type == "cpu" and q.dtype == torch.float32 and 128 <= q.shape[2] == k.shape[2]:
        return BlockedAttention.apply(q, k, v)  # fewer tokens are not worth its many small products
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    mask = causal_lower_right(length, seen) if seen > length else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


class DualChunks(Plan):
    """Dual chunk attention: keys are turned by their place in the chunk, queries in three ways.

    With s tokens in a chunk and c = chunk_size, the query at i and the key at j <= i are at the distance (the paper,
    §3.2-3.4)
        i mod s - j mod s                  in the same chunk (intra),
        min(s + i mod s, c - 1) - j mod s  in the chunk after the key's (successive),
        c - 1 - j mod s                    beyond (inter).
    (The authors' code and vLLM's had c for c - 1.)
    """

    def __init__(
        self, config: ModelConfig, run: Tensor, documents: Documents | None, context: Context | None = None
    ) -> None:
        super().__init__(config, run, documents, context)
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
            scale = (self.mine(seen) / dual.original_max_position_embeddings).clamp(min=1)
            self.sharpness = (0.1 * scale.log() + 1).square()[..., None]

    def keys(self, k: Tensor) -> Tensor:
        return rotate(k, self.intra)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.sharpness is not None:
            q = q * self.sharpness.to(q.dtype)
        turned = [rotate(q, turn) for turn in (self.intra, self.successive, self.inter)]
        if self.last is not None:
            places = torch.arange(k.shape[2], device=k.device)
            kinds = (self.last // self.chunk - places // self.chunk).clamp(max=2)
            return attend_one(torch.cat(turned, dim=2), kinds.masked_fill(places > self.last, -1), k, v)
        return self.each(self._attend, *turned, k, v)

    def _attend(self, intra: Tensor, successive: Tensor, inter: Tensor, k: Tensor, v: Tensor, origin: int) -> Tensor:
        return ChunkedAttention.apply(intra, successive, inter, k, v, self.chunk, origin)

"""Sampling ids with a key/value cache: many prompts of different lengths at once.

Prompts lie in the cache from its first place on, shorter ones with a gap behind them: no token sees what comes after
it, so a prompt is read as if it were alone, and its positions begin at 0. From there each sequence grows at its own
place. What a sequence gets depends on its neighbours in nothing but the last bits of float arithmetic, which a product
of another size may round otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from factory.engine.errors import FactoryError
from model.transformer import Cache, Transformer

PREFILL = 1 << 13  # tokens of all prompts that go through the model at once: more are read piece by piece
LOGITS = 1 << 25  # logits that are sampled from at once: more are several batches

Reason = Literal["end", "stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to continue a prompt."""

    tokens: int = 64
    """New tokens at most."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together reach this probability (nucleus sampling, arXiv 1904.09751)."""
    samples: int = 1
    """Continuations of each prompt; the prompt is read once."""
    stop: tuple[str, ...] = ()
    """Strings before which the text ends."""
    seed: int = 0
    """The same seed and prompt give the same samples, whatever else is asked with it."""

    def check(self) -> None:
        """Raises FactoryError for a value that cannot be."""
        if self.tokens < 1 or self.samples < 1:
            raise FactoryError(f"tokens = {self.tokens}, samples = {self.samples}: each must be at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise FactoryError(
                f"temperature = {self.temperature}, top_p = {self.top_p}: the first must not be negative, the second "
                "above 0 and at most 1"
            )
        if "" in self.stop:
            raise FactoryError("an empty stop string would end every text at its beginning")


@dataclass
class Row:
    """One continuation in the making."""

    prompt: int
    """The prompt's place in the list that was given."""
    sample: int
    done: Callable[[int], bool]
    """Whether the text has come to a stop string with this id."""
    ids: list[int] = field(default_factory=list)
    reason: Reason = "length"


def batches(
    lengths: Sequence[int], sampling: Sampling, batch_tokens: int, vocabulary: int
) -> Iterator[list[tuple[int, int]]]:
    """(prompt, sample) of each batch, longest prompts first, at most `batch_tokens` of cache in each."""
    order = sorted(range(len(lengths)), key=lambda prompt: -lengths[prompt])
    batch: list[tuple[int, int]] = []
    room = 0
    for one in ((prompt, sample) for prompt in order for sample in range(sampling.samples)):
        if batch and len(batch) >= room:
            yield batch
            batch = []
        if not batch:
            room = max(1, min(batch_tokens // (lengths[one[0]] + sampling.tokens), LOGITS // vocabulary))
        batch.append(one)
    if batch:
        yield batch


def hidden_states(model: Transformer, prompts: Sequence[Sequence[int]], cache: Cache) -> Iterator[tuple[int, Tensor]]:
    """The prompts through the model, piece by piece: (number of the first token, hidden states [B, piece, C]).

    The cache then holds them all; behind the end of a shorter prompt is nothing of meaning.
    """
    device = model.lm_head.weight.device
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    piece = max(1, PREFILL // len(prompts))
    for begin in range(0, longest, piece):
        yield begin, model.model(ids[:, begin : begin + piece].to(device), cache)


@torch.inference_mode()
def continue_rows(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    rows: list[Row],
    sampling: Sampling,
    end: frozenset[int],
    noise: np.ndarray,
) -> None:
    """Sample the continuations of one batch; the rows' `ids` and `reason` are the result.

    `noise` [rows, tokens] are uniform numbers below 1. A row that has come to its end leaves the batch.
    """
    device = model.lm_head.weight.device
    alone: dict[int, int] = {}
    for row in rows:
        alone.setdefault(row.prompt, len(alone))
    sources = torch.tensor([alone[row.prompt] for row in rows], device=device)
    given = [prompts[prompt] for prompt in alone]
    longest = max(map(len, given))
    cache = Cache(model.config, len(rows), longest + sampling.tokens, like=model.lm_head.weight)
    lengths = torch.tensor([len(prompt) for prompt in given], device=device)
    last = torch.empty(len(given), model.config.hidden_size, dtype=model.lm_head.weight.dtype, device=device)
    for begin, hidden in hidden_states(model, given, cache):
        here = (lengths > begin) & (lengths <= begin + hidden.shape[1])
        last[here] = hidden[here, lengths[here] - 1 - begin]
    # From the back: no row is taken from a place that was already written to, for a row's source is not behind it.
    for place in range(len(rows) - 1, -1, -1):
        copy(cache, alone[rows[place].prompt], place)
    last, cache.lengths = last[sources], lengths[sources]
    uniform = torch.from_numpy(noise).to(device)
    active = list(rows)
    for step in range(sampling.tokens):
        chosen = pick(model.lm_head(last), sampling.temperature, sampling.top_p, uniform[:, step])
        stay = []
        for place, (row, token) in enumerate(zip(active, chosen.tolist(), strict=True)):
            row.ids.append(token)
            if token in end:
                row.reason = "end"
            elif row.done(token):
                row.reason = "stop"
            else:
                stay.append(place)
        if not stay or step + 1 == sampling.tokens:
            return
        if len(stay) < len(active):
            order = keep(cache, stay)
            active = [active[place] for place in order]
            uniform, chosen = uniform[order], chosen[order]
        last = model.model(chosen[:, None], cache)[:, -1]


def copy(cache: Cache, source: int, target: int) -> None:
    """One sequence's keys and values to the place of another."""
    if source != target:
        for held in (cache.keys, cache.values):
            held[:, target, :, : cache.length] = held[:, source, :, : cache.length]


def keep(cache: Cache, stay: list[int]) -> list[int]:
    """Move the sequences at the places `stay` to the front: the former place of each."""
    order = list(range(len(stay)))
    gaps = sorted(set(order) - set(stay))
    for gap, mover in zip(gaps, stay[len(stay) - len(gaps) :], strict=True):
        order[gap] = mover
        copy(cache, mover, gap)
    assert cache.lengths is not None
    cache.lengths = cache.lengths[order]
    cache.length = int(cache.lengths.max())
    return order


def pick(logits: Tensor, temperature: float, top_p: float, uniform: Tensor) -> Tensor:
    """One id for each row of logits [B, vocab], by the inverse of the distribution function at `uniform` [B] < 1."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
    sums = ordered.cumsum(-1, dtype=torch.float64)
    # A token stays while those before it have not reached top_p; the first always does.
    kept = (sums - ordered < top_p).sum(-1, keepdim=True).clamp(min=1)
    total = sums.gather(-1, kept - 1)
    found = torch.searchsorted(sums, uniform[:, None].double() * total, right=True)
    return places.gather(-1, torch.minimum(found, kept - 1))[:, 0]


def noise_of(prompt: Sequence[int], repeated: int, sample: int, sampling: Sampling) -> np.ndarray:
    """The uniform numbers [tokens] of a sample of a prompt; `repeated` is how often the same prompt came before."""
    digest = hashlib.blake2b(np.asarray(prompt, np.int64).tobytes(), digest_size=8).digest()
    key = [sampling.seed & (1 << 64) - 1, int.from_bytes(digest, "little"), repeated, sample]
    return np.random.default_rng(key).random(sampling.tokens)


@torch.inference_mode()
def log_probabilities(
    model: Transformer, sequences: Sequence[Sequence[int]], first: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """For each sequence, of its tokens from number `first` (at least 1) on: the log-probability of each given those
    before it, in nats (float32), and whether it is the likeliest.

    The logits are made piece by piece: memory grows with the length of the sequences alone.
    """
    device = model.lm_head.weight.device
    found = [torch.zeros(len(ids) - begin) for ids, begin in zip(sequences, first, strict=True)]
    likeliest = [torch.zeros(len(ids) - begin, dtype=torch.bool) for ids, begin in zip(sequences, first, strict=True)]
    cache = Cache(model.config, len(sequences), max(map(len, sequences)), like=model.lm_head.weight)
    at_once = max(1, LOGITS // model.config.vocab_size)
    for begin, hidden in hidden_states(model, sequences, cache):
        places = [
            (row, at, ids[at])
            for row, ids in enumerate(sequences)
            for at in range(max(begin + 1, first[row]), min(begin + 1 + hidden.shape[1], len(ids)))
        ]
        for part in (places[at : at + at_once] for at in range(0, len(places), at_once)):
            rows, at, ids = torch.tensor(part, device=device).T
            logits = model.lm_head(hidden[rows, at - 1 - begin]).float()
            each = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].tolist()
            best = (logits.argmax(-1) == ids).tolist()
            for (row, place, _), value, is_best in zip(part, each, best, strict=True):
                found[row][place - first[row]] = value
                likeliest[row][place - first[row]] = is_best
    return found, likeliest

"""What pre-training minimises: the loss of the next token, on a batch and on held-out sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from factory.engine.errors import FactoryError
from model.attention import separated
from model.data import IGNORE, Span, TokenDataset, read
from model.moe import Routing
from model.parallel import World
from model.stream import blocks
from model.transformer import Transformer

EVALUATION_BLOCKS = 64  # held-out sequences are taken from at most so many places


@dataclass(frozen=True)
class Separator:
    """Documents are kept apart: `end` is the id that ends each, `restart` whether positions begin anew."""

    end: int
    restart: bool


def separator_of(documents: str, data: TokenDataset) -> Separator | None:
    """What `documents` means for this dataset; None where documents are joined."""
    if documents == "joined":
        return None
    if data.end is None:
        raise FactoryError(
            f"documents = {documents!r}: the tokenizer of {data.folder} lacks the separator, "
            'so that documents cannot be told apart: use "joined"'
        )
    return Separator(data.end, documents == "restarted")


def loss_of(
    model: Transformer,
    batch: np.ndarray,
    reduction: str = "mean",
    separator: Separator | None = None,
    routings: list[Routing] | None = None,
) -> Tensor:
    """Cross-entropy in nats of each token given those before it; IGNORE in the batch is no token.

    Where ranks share the sequences, of this rank's tokens.
    """
    ids = torch.from_numpy(batch).to(model.lm_head.weight.device, torch.long)
    given, targets = ids[:, :-1].clamp(min=0), ids[:, 1:]
    documents = separated(given, separator.end, separator.restart) if separator else None
    context = model.model.context
    if context is not None:
        given, targets = context.part(given), context.part(targets)
    total = model(given, documents=documents, routings=routings, targets=targets)
    # A batch may hold no target at all: a shard's last sequence can be one token long.
    return total if reduction == "sum" else total / (targets != IGNORE).sum().clamp(min=1)


def held_out(spans: list[Span], length: int, count: int, seed: int) -> np.ndarray:
    """At most `count` held-out sequences, spread evenly over the places that were held out."""
    places = [block for span in spans for block in blocks(span, length)]
    order = np.random.default_rng([seed, 4]).permutation(len(places))[:EVALUATION_BLOCKS]
    share = math.ceil(count / max(1, len(order)))
    parts = [np.empty((0, length), np.int32)]
    for number in sorted(order.tolist()):
        rows = read([places[number]], length)
        parts.append(rows[np.unique(np.linspace(0, len(rows) - 1, min(share, len(rows))).astype(np.int64))])
    return np.concatenate(parts)[:count]


@torch.no_grad()
def evaluate(
    model: Transformer,
    sequences: np.ndarray,
    batch_size: int,
    separator: Separator | None = None,
    world: World | None = None,
) -> float:
    """The mean loss a token over held-out sequences, `batch_size` at a time on each rank."""
    world = world or World()
    total = 0.0
    for batch in world.split(sequences, batch_size, IGNORE):
        total += loss_of(model, batch[world.part], "sum", separator).item()
    return world.sums(total)[0] / max(1, int((sequences[:, 1:] != IGNORE).sum()))

"""Run by torchrun in test_parallel.py: what ranks that share each sequence compute, beside one process; what is done
and said by one of them."""

from __future__ import annotations

import itertools
import json
import sys

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from factory.engine.errors import FactoryError
from model.attention import Documents, DualChunk
from model.config import ModelConfig, TrainConfig
from model.parallel import World, build
from model.transformer import Transformer

DUAL = DualChunk(chunk_size=12, local_size=4, original_max_position_embeddings=12)
SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compare(world: World, dual: DualChunk | None, restart: bool | None) -> dict[str, float]:
    """The relative difference of the loss and of the gradients."""
    config = ModelConfig(**SHAPE, dual_chunk_attention_config=dual)

    def new() -> Transformer:
        model = Transformer(config)
        model.initialise(0)
        return model

    alone, shared = new(), build(config, world, TrainConfig(checkpoint_activations=True), new)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (4, 33), generator=generator)
    first = torch.rand(4, 32, generator=generator) < 0.15

    def loss(model: Transformer, rows: slice, part=lambda x: x) -> Tensor:
        documents = None if restart is None else Documents(first[rows], restart)
        given, targets = part(ids[rows, :-1]), part(ids[rows, 1:])
        return F.cross_entropy(model(given, documents=documents).flatten(0, 1), targets.flatten(), reduction="sum")

    one = loss(alone, slice(None))
    one.backward()
    size = 4 // world.parts
    mine = loss(shared, slice(world.part * size, (world.part + 1) * size), world.context.part)
    mine.backward()
    pairs = zip(alone.parameters(), shared.parameters(), strict=True)
    gradients = max(((whole(b.grad) - a.grad).abs().max() / a.grad.abs().max()).item() for a, b in pairs)
    return {"loss": abs(world.sums(mine.item())[0] / one.item() - 1), "gradients": gradients}


def refused() -> None:
    raise FactoryError("not on rank 0")


def together(world: World) -> dict[str, float]:
    """How many ranks get an error of rank 0 alone; how many say a line; how many have the result of rank 0."""
    try:
        world.together(refused)
        got = False
    except FactoryError as error:
        got = str(error) == "not on rank 0"
    result = world.together(lambda: world.rank + 1)
    return {
        "errors": world.sums(got)[0],
        "said": world.sums(world.says("a line"))[0],
        "results": world.sums(result or 0)[0],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    world = World.begin()
    world.share(int(sys.argv[1]))
    found = [compare(world, *choice) for choice in itertools.product((None, DUAL), (None, False, True))]
    counts = together(world)
    if world.first:
        print(json.dumps([*found, counts]))
    world.end()

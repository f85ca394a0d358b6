"""A step of Muon: ours, torch.optim.Muon and AdamW, beside the training step that they belong to.

    python benchmarks/muon.py [--hidden 128] [--layers 3] [--intermediate 352] [--threads 1]

The default shape is that of the closed loop, with batches of 16 x 64 tokens. CPU milliseconds, the median of the
rounds; each round takes all of them in turn. What torch's costs hangs on the CPU's bfloat16: ONEDNN_MAX_CPU_ISA=AVX2
shows it on one that has none. Below, how far eight steps of both lie apart.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.config import ModelConfig
from model.muon import Muon
from model.transformer import Transformer

BATCH, LENGTH, VOCABULARY = 16, 64, 58


def new(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    model.initialise(0)
    return model


def back(model: Transformer) -> None:
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    (model(ids[:, :-1], targets=ids[:, 1:]) / (BATCH * LENGTH)).backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("hidden", 128), ("layers", 3), ("intermediate", 352), ("threads", 1), ("rounds", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config = ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=given.hidden,
        num_hidden_layers=given.layers,
        intermediate_size=given.intermediate,
    )
    ours, theirs, adam = new(config), new(config), new(config)
    for model in (ours, theirs, adam):
        back(model)
    matrices = [p for p in theirs.model.layers.parameters() if p.ndim == 2]
    steps: dict[str, Callable[[], object]] = {
        "forward and backward": lambda: back(new_gradients),
        "Muon, ours, with AdamW on the rest": Muon(ours.named_parameters(), 1e-3).step,
        "torch.optim.Muon, matrices alone": torch.optim.Muon(matrices, 1e-3, adjust_lr_fn="match_rms_adamw").step,
        "AdamW on everything": torch.optim.AdamW(adam.parameters(), 1e-3, weight_decay=0.1, fused=True).step,
    }
    new_gradients = new(config)
    before = [p.detach().clone() for p in matrices]
    for step in steps.values():
        for _ in range(8):
            step()
    own = [p for p in ours.model.layers.parameters() if p.ndim == 2]
    apart = [((a - b).norm() / (b - was).norm()).item() for a, b, was in zip(own, matrices, before, strict=True)]
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(given.rounds):
        for name, step in steps.items():
            begin = time.process_time()
            step()
            found[name].append(1e3 * (time.process_time() - begin))
    for name, times in found.items():
        print(f"{name:<36} {statistics.median(times):8.2f} ms")
    print(f"eight steps of ours and torch's are apart by {max(apart):.2%} of their change at most")


if __name__ == "__main__":
    main()

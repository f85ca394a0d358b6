"""Lengths beyond the trained one, without training: plain RoPE, interpolation, YaRN, dual chunk attention.

A tiny model is trained at length L = 64 and asked at up to 8 L. Two tasks:

- `needles`: tokens that stand for a pair of key and value lie in filler; then keys are asked, the answers are values.
  A token is found by what it is: coarse positions do.
- `copy`: a text of distinct tokens is repeated; the answer to each token is what followed it the first time. The model
  must know which token came just before which: fine positions are needed, and these interpolation blurs.

For each way of reading positions the table has the accuracy by length, and at 4 L by how far back the answer lies; with
--out FOLDER a heat map of each way shows both.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import DualChunk
from model.config import ModelConfig
from model.evaluate.results import heatmap
from model.rope import RopeScaling
from model.transformer import Transformer

LENGTH = 64
WORDS = 512  # copy: different tokens
KEYS, VALUES, FILLER, ASKED = 32, 8, 8, 8  # needles
NONE = -100  # no answer here
TIMES = (1, 2, 4, 8)  # lengths asked at, in trained lengths
DISTANCES = 5  # parts by which answers are sorted

# A batch of one length: ids, the answer to each token or NONE, and how far back it lies as a share of the length.
Batch = tuple[Tensor, Tensor, Tensor]
Task = Callable[[int, int, torch.Generator], Batch]


def copy(batch: int, length: int, generator: torch.Generator) -> Batch:
    period = torch.randint(length // 4, length * 3 // 4 + 1, (batch, 1), generator=generator)
    text = torch.rand(batch, WORDS, generator=generator).argsort(1)
    at = torch.arange(length + 1)[None]
    ids = text.gather(1, at % period)
    answers = ids[:, 1:].masked_fill(at[:, 1:] <= period, NONE)
    return ids[:, :-1], answers, ((period - 1) / length).expand(-1, length)


def needles(batch: int, length: int, generator: torch.Generator) -> Batch:
    pairs = KEYS * VALUES
    ids = pairs + KEYS + torch.randint(0, FILLER, (batch, length), generator=generator)
    keys = torch.rand(batch, KEYS, generator=generator).argsort(1)[:, :ASKED]
    values = torch.randint(0, VALUES, (batch, ASKED), generator=generator)
    places = torch.rand(batch, length - ASKED, generator=generator).argsort(1)[:, :ASKED]
    ids.scatter_(1, places, keys * VALUES + values)
    ids[:, length - ASKED :] = pairs + keys
    answers = torch.full_like(ids, NONE)
    answers[:, length - ASKED :] = pairs + KEYS + FILLER + values
    back = torch.zeros(batch, length)
    back[:, length - ASKED :] = (torch.arange(length - ASKED, length) - places) / length
    return ids, answers, back


TASKS: dict[str, tuple[Task, int, int]] = {  # the task, its vocabulary, steps to learn it
    "needles": (needles, KEYS * VALUES + KEYS + FILLER + VALUES, 300),
    "copy": (copy, WORDS, 400),
}


def ways(length: int) -> dict[str, dict[str, object]]:
    """The ways to read positions, each as what it changes in the configuration; all made for 4 times the length."""
    yarn = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=length)
    dual = DualChunk(chunk_size=length, local_size=length // 4)
    return {
        "plain RoPE": {},
        "interpolation": {"rope_scaling": RopeScaling(rope_type="linear", factor=4.0)},
        "YaRN": {"rope_scaling": yarn},
        "YaRN, no temperature": {"rope_scaling": dataclasses.replace(yarn, attention_factor=1.0)},
        "DCA": {"dual_chunk_attention_config": dual},
        "DCA + YaRN's scaling": {
            "dual_chunk_attention_config": dataclasses.replace(dual, original_max_position_embeddings=length)
        },
        "DCA + YaRN": {"dual_chunk_attention_config": dual, "rope_scaling": yarn},
    }


def train(task: Task, vocabulary: int, steps: int, seed: int) -> Transformer:
    config = ModelConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        rope_theta=1000.0,
    )
    model = Transformer(config)
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    # Muon learns both tasks in a third of AdamW's steps.
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=5e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=5e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for step in range(steps):
        ids, answers, _ = task(32, LENGTH, generator)
        F.cross_entropy(model(ids).flatten(0, 1), answers.flatten()).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 5e-3 * min(1, (step + 1) / 20, (steps - step) / (0.3 * steps))
            optimizer.step()
            optimizer.zero_grad()
    return model


@torch.inference_mode()
def accuracy(model: Transformer, task: Task, length: int, seed: int, sequences: int) -> tuple[float, list[float]]:
    """The share of right answers: of all, and by distance in equal parts of the length."""
    generator = torch.Generator().manual_seed(seed + 1)
    right, total = torch.zeros(DISTANCES), torch.zeros(DISTANCES)
    for _ in range(sequences // 20):
        ids, answers, back = task(20, length, generator)
        asked = answers != NONE
        part = (back[asked] * DISTANCES).long()
        right.index_add_(0, part, (model(ids).argmax(-1)[asked] == answers[asked]).float())
        total.index_add_(0, part, torch.ones(len(part)))
    return float(right.sum() / total.sum()), (right / total).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sequences", type=int, default=200, help="to ask at each length")
    parser.add_argument("--out", type=Path, help="a folder for the heat maps, TASK.png")
    options = parser.parse_args()
    torch.set_num_threads(1)  # at this size a second thread helps little, and waits where the cores are shared
    for name in options.tasks:
        task, vocabulary, steps = TASKS[name]
        begin = time.perf_counter()
        model = train(task, vocabulary, steps, options.seed)
        print(f"{name}: {model.parameter_count():,} parameters, {steps} steps at length {LENGTH}, ", end="")
        print(f"{time.perf_counter() - begin:.0f} s, seed {options.seed}")
        lengths = "".join(f"{n:>5} L" for n in TIMES)
        print(f"{'':22}{lengths}    at 4 L, answer back by  " + "".join(f"{20 * n:>5}%" for n in range(DISTANCES)))
        plain = model.config
        maps = {}
        for way, changes in ways(LENGTH).items():
            model.config = model.model.config = dataclasses.replace(plain, **changes)  # type: ignore[arg-type]
            found = [accuracy(model, task, LENGTH * n, options.seed, options.sequences) for n in TIMES]
            print(f"{way:22}" + "".join(f"{whole:7.3f}" for whole, _ in found) + " " * 28, end="")
            print("".join("     -" if share != share else f"{share:6.2f}" for share in found[2][1]))
            maps[way] = np.array([share for _, share in found]).T
        if options.out:
            columns = [f"{n} L" for n in TIMES]
            back = [f"{20 * n}-{20 * (n + 1)}%" for n in range(DISTANCES)]
            heatmap(options.out / f"{name}.png", maps, columns, back, "answer back by", f"{name}: length, L = {LENGTH}")
            print(f"heat maps: {options.out / name}.png")
        print()


if __name__ == "__main__":
    main()

"""Lengths beyond the trained one, without training: plain RoPE, interpolation, YaRN, dual chunk attention.

A tiny model is trained at length L = 64 and asked at up to 8 L, on the tasks `needles` and `copy` of
model/evaluate/extrapolation.py. For each way of reading positions, made for 4 L, the table has the accuracy by length,
and at 4 L by how far back the answer lies; with --out FOLDER a heat map of each way shows both.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from model.evaluate.extrapolation import TASKS, draw, measure, table, train, ways

LENGTH = 64
FACTOR = 4.0
ANNEAL = 100  # steps


def more_ways() -> dict[str, dict[str, Any]]:
    """Those of the demo, and YaRN's temperature and dual chunks taken apart and put together."""
    found = ways(LENGTH, FACTOR)
    yarn, dual = found["YaRN"]["rope_scaling"], found.pop("DCA")["dual_chunk_attention_config"]
    return found | {
        "YaRN, no temperature": {"rope_scaling": dataclasses.replace(yarn, attention_factor=1.0)},
        "DCA": {"dual_chunk_attention_config": dual},
        "DCA + YaRN's scaling": {
            "dual_chunk_attention_config": dataclasses.replace(dual, original_max_position_embeddings=LENGTH)
        },
        "DCA + YaRN": {"dual_chunk_attention_config": dual, "rope_scaling": yarn},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sequences", type=int, default=200, help="to ask at each length")
    parser.add_argument("--out", type=Path, help="a folder for the heat maps, TASK.png")
    options = parser.parse_args()
    torch.set_num_threads(1)  # at this size a second thread helps little, and waits where the cores are shared
    for name in options.tasks:
        task = dataclasses.replace(TASKS[name], curriculum=TASKS[name].curriculum[:1])
        begin = time.perf_counter()
        print(f"{name}, seed {options.seed}:")
        model = train(task, options.seed, ANNEAL, tell=lambda _: None)
        print(f"  {model.parameter_count():,} parameters, {time.perf_counter() - begin:.0f} s")
        found = {way: measure(model, task, told, options.seed, options.sequences) for way, told in more_ways().items()}
        print(table(found))
        if options.out:
            draw(options.out / f"{name}.png", found)
            print(f"heat maps: {options.out / name}.png")
        print()


if __name__ == "__main__":
    main()

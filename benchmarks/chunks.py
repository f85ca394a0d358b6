"""Dual chunk attention beside full attention on CPU: time and memory, forward and backward, by length.

Each length is measured in a process of its own, on one thread: CPU seconds, and what the peak of memory grew by. On a
GPU benchmarks/gpu.py does the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time

import torch

from factory.engine.receipt import peak_memory
from model.attention import DualChunk, plan
from model.config import ModelConfig


def measure(length: int, dual: DualChunk | None) -> tuple[float, float]:
    """CPU seconds and MB of one layer's attention: 4 heads of 64, 2 for keys and values, float32."""
    torch.set_num_threads(1)
    config = ModelConfig(
        hidden_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=length,
        dual_chunk_attention_config=dual,
    )
    q, k, v = (torch.randn(1, heads, length, 64, requires_grad=True) for heads in (4, 2, 2))
    attend = plan(config, length, 0, None, q.device)
    before, begin = peak_memory(), time.process_time()
    attend(q, attend.keys(k), v).sum().backward()
    return time.process_time() - begin, (peak_memory() - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--chunk-size", type=int, default=4096)
    parser.add_argument("--local-size", type=int, default=1024)
    options = parser.parse_args()
    dual = DualChunk(chunk_size=options.chunk_size, local_size=options.local_size)
    print(f"dual chunks of c = {dual.chunk_size:,}, w = {dual.local_size:,}\n")
    print("| tokens | full, CPU s | MB | dual chunks, CPU s | MB |\n| --- | --- | --- | --- | --- |")
    fresh = multiprocessing.get_context("spawn")
    for length in options.lengths:
        figures = []
        for way in (None, dual):
            with fresh.Pool(1) as pool:
                figures.append(pool.apply(measure, (length, way)))
        print(
            f"| {length:,} | " + " | ".join(f"{seconds:.2f} | {size:.0f}" for seconds, size in figures) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()

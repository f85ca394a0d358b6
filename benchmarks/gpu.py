"""A training step and dual chunk attention on a GPU: tokens a second, model FLOPs utilisation, peak memory.

Prints a section of benchmarks/gpu.md. The model is that of a training with `dtype = "bfloat16"` and `compile = true`:
layers compute in bfloat16, weights, gradients and the optimizer's state are in float32. A step is forward, backward,
clipping and the fused AdamW on random tokens, as many documents to a sequence as said.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from model.attention import Documents, DualChunk, plan
from model.config import ModelConfig, OptimizerConfig, TrainConfig
from model.flops import flops_per_token, utilisation
from model.moe import Routing, balance_loss
from model.options import section
from model.parallel import World, build, clip
from model.pretrain import optimizer_for
from model.recipe import preset
from model.transformer import Transformer

MOE: dict[str, Any] = preset("qwen2.5-0.5b") | {
    "model_type": "qwen2_moe",
    "hidden_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 1024,
}
MODELS: dict[str, dict[str, Any]] = {"qwen2.5-0.5b": preset("qwen2.5-0.5b"), "moe": MOE}
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 500}  # --tiny
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large all is: on a GPU, or tiny to see that the script runs."""

    device: str
    compile: bool  # takes a C++ compiler on CPU
    model: dict[str, Any]  # what changes in each model
    lengths: tuple[int, ...]  # of sequences
    tokens: int  # of a step
    chunks: DualChunk
    reach: tuple[int, ...]  # lengths for dual chunk attention
    steps: int


GPU = Scale(
    device="cuda",
    compile=True,
    model={},
    lengths=(4096, 32768),
    tokens=32768,
    chunks=DualChunk(chunk_size=32768, local_size=8192),
    reach=(32768, 65536, 131072, 262144),
    steps=10,
)
TINY = Scale(
    device="cpu",
    compile=False,
    model=SMALL,
    lengths=(32, 64),
    tokens=64,
    chunks=DualChunk(chunk_size=32, local_size=8),
    reach=(32, 64),
    steps=2,
)


def timed(work: Callable[[], object], scale: Scale) -> tuple[float, float]:
    """Median seconds, and peak memory in GB (0 on CPU)."""
    cuda = scale.device == "cuda"
    taken = []
    for number in range(3 + scale.steps):
        if number == 3 and cuda:  # compiled, warm
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[3:]), torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0


def training(name: str, length: int, documents: int, scale: Scale) -> str:
    """A row: one model trained on sequences of one length, each of so many documents."""
    config = section("model", ModelConfig, MODELS[name] | scale.model | {"max_position_embeddings": length}, name)

    def whole() -> Transformer:
        model = Transformer(config)
        model.initialise(0)
        return model

    world = World(device=torch.device(scale.device))
    model = build(config, world, TrainConfig(dtype="bfloat16", compile=scale.compile), whole)
    optimizer = optimizer_for(model, OptimizerConfig())
    ids = torch.randint(0, config.vocab_size, (scale.tokens // length, length + 1), device=scale.device)
    first = torch.zeros(scale.tokens // length, length, dtype=torch.bool, device=scale.device)
    first[:, :: length // documents] = True
    apart = Documents(first) if documents > 1 else None

    def step() -> None:
        routings: list[Routing] = []
        loss = model(ids[:, :-1], documents=apart, routings=routings, targets=ids[:, 1:]) / scale.tokens
        if routings:
            loss = loss + config.router_aux_loss_coef * balance_loss(routings)
        loss.backward()
        clip(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    seconds, memory = timed(step, scale)
    speed = scale.tokens / seconds
    # Documents of one length: each token sees its own alone, and only that counts as work.
    share = utilisation(config, length // documents, speed, device_name(scale))
    work = flops_per_token(config, length // documents) / 1e9
    return f"| {name} | {length:,} | {documents} | {speed:,.0f} | {work:.2f} | {100 * share:.1f}% | {memory:.1f} |"


def attention(length: int, dual: DualChunk | None, scale: Scale) -> tuple[float, float]:
    """Seconds forward and backward of one layer's attention, and GB at the peak; heads of Qwen2.5-0.5B."""
    given = {"dual_chunk_attention_config": dual, "max_position_embeddings": length}
    config = dataclasses.replace(section("model", ModelConfig, preset("qwen2.5-0.5b"), "the preset"), **given)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    q, k, v = (
        torch.randn(1, n, length, config.head_dim, device=scale.device, dtype=torch.bfloat16, requires_grad=True)
        for n in heads
    )

    def work() -> None:
        attend = plan(config, length, 0, None, q.device)
        attend(q, attend.keys(k), v).sum().backward()

    return timed(work, scale)


def device_name(scale: Scale) -> str:
    return torch.cuda.get_device_name() if scale.device == "cuda" else "CPU"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on CPU: shows that the script runs, no figures")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA device here; --tiny runs the script on CPU, for no figures", file=sys.stderr)
        return 2
    scale = TINY if options.tiny else GPU
    version = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    print(f"\n## {datetime.date.today()}, {device_name(scale)}, {version}\n\n`python {' '.join(sys.argv)}`\n")
    print("| model | sequence | documents | tokens/s | GFLOP a token | MFU | peak GB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.models:
        for length in scale.lengths:
            for documents in (1, 8):
                print(training(name, length, documents, scale), flush=True)
                gc.collect()
                torch._dynamo.reset()
    c, w = scale.chunks.chunk_size, scale.chunks.local_size
    print(f"\nAttention alone, forward and backward, dual chunks of c = {c:,}, w = {w:,}:\n")
    print("| tokens | full ms | full GB | dual chunk ms | dual chunk GB |\n| --- | --- | --- | --- | --- |")
    for length in scale.reach:
        figures = [attention(length, dual, scale) for dual in (None, scale.chunks)]
        print(f"| {length:,} | " + " | ".join(f"{1e3 * time:.1f} | {memory:.1f}" for time, memory in figures) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""SFT, DPO and GRPO of a model of Qwen2.5-0.5B's shape on a GPU: tokens a second and peak memory.

Prints a section of benchmarks/gpu.md. The weights are drawn by chance, so that GRPO's answers are as long as they may
be; each stage is a training of `model.posttrain` with `dtype = "bfloat16"`. Tokens are those that a step learns from,
prompts included; in GRPO the time is that of sampling and learning together. `--tiny` shows on a CPU that it runs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.posttrain import SAMPLES, SIZES, Size, prepare, varied
from model.posttrain import run
from model.posttrain.config import load_recipe
from model.recipe import preset

GPU = Size(8192, 32, 128, 256, preset("qwen2.5-0.5b") | {"max_position_embeddings": 4096}, long=16)
WARM_UP = 3


class Clock(TrainerCallback):
    """The seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begun)


def measure(stage: str, size: Size, folder: Path, steps: int) -> str:
    """A row of the table."""
    rows = size.completions if stage == "grpo" else size.pairs
    recipe = folder / f"{stage}.toml"
    recipe.write_text(f'stage = "{stage}"\n[model]\nstart = "{folder}/base"\n[data]\npath = "{folder}/{stage}"\n')
    words = [
        *(f"out={folder}/out-{stage}", f"batch_size={rows}", f"steps={WARM_UP + steps}", "evaluation_share=0"),
        *('dtype="bfloat16"' if torch.cuda.is_available() else 'dtype="float32"', "save_every=100000"),
        *('rewards=["tests.verify.verifiers:has_a_one"]', f"samples={SAMPLES}", f"max_new_tokens={size.tokens}"),
    ]
    work = run.begin(load_recipe(recipe, words))
    trainer: Any = run.STAGES[stage](work)
    if stage == "grpo":
        trainer.reward_funcs[0] = varied
    clock = Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    tokens = rows * learnt(stage, size, folder)
    seconds = statistics.median(clock.seconds[WARM_UP:])
    return f"| {stage} | {rows} | {tokens:,.0f} | {tokens / seconds:,.0f} | {seconds:.2f} | {memory:.1f} |"


def learnt(stage: str, size: Size, folder: Path) -> float:
    """Mean tokens of a row: prompt and answer, both of a pair, or the prompt and as many new ones as there may be."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    table = pq.read_table(folder / stage / "rows" / "0.parquet").slice(0, 100)

    def mean(name: str) -> float:
        return statistics.mean(len(ids) for ids in tokenizer(table.column(name).to_pylist())["input_ids"])

    if stage == "grpo":
        return mean("prompt") + size.tokens
    answers = ("response",) if stage == "sft" else ("chosen", "rejected")
    return sum(mean("prompt") + mean(name) for name in answers)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="counted ones")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on CPU: shows that the script runs, no figures")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        print("gpu_posttrain.py: torch sees no CUDA device here; --tiny runs the script on CPU", file=sys.stderr)
        return 2
    size, steps = (SIZES["tiny"], 2) if options.tiny else (GPU, options.steps)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"\n## {datetime.date.today()}, {name}, torch {torch.__version__}\n\n`python {' '.join(sys.argv)}`\n")
    print(
        "| stage | rows a step | tokens a step | tokens/s | s a step | peak GB |\n| --- | --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, size, WARM_UP + steps)
        for stage in ("sft", "dpo", "grpo"):
            dataset(folder, stage)
            print(measure(stage, size, folder, steps), flush=True)
    return 0


def dataset(folder: Path, stage: str) -> None:
    """The pairs as the stage reads them; for SFT the chosen answer is the response."""
    table = pq.read_table(folder / "data" / "rows" / "0.parquet")
    if stage == "sft":
        table = table.drop_columns(["rejected"]).rename_columns(["prompt", "response"])
    (folder / stage / "rows").mkdir(parents=True)
    pq.write_table(table, folder / stage / "rows" / "0.parquet")
    manifest = json.loads((folder / "data" / "manifest.json").read_text()) | {"columns": table.column_names}
    (folder / stage / "manifest.json").write_text(json.dumps(manifest))


if __name__ == "__main__":
    sys.exit(main())

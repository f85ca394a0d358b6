"""A step of DPO and of GRPO beside plain TRL with transformers' Qwen2 of the same shape: one run, step by step in turn.

    python benchmarks/posttrain.py [--sizes tiny small] [--stages dpo grpo] [--steps 15] [--threads 1]

Each contender trains in a process of its own and the processes take turns, a step each (benchmarks/train.py). Ours is
`python -m model.train` without what it shows. Theirs is DPOTrainer or GRPOTrainer with Qwen2ForCausalLM, sdpa and the
fused AdamW: the same weights, rows, arguments and tokenizer. All in float32. DPO's mean losses must agree. In GRPO each
samples for itself, with transformers' generate or with model/generate.py, from a new model, which seldom ends early;
the reward is never the same for all of a group, so that ours leaves nothing out. `grpo half` is the reward that is, for
half of the prompts.

The table has the median CPU and wall seconds of a step, and the peak memory beyond that of the libraries.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train import WARM_UP, Turn, settle
from factory.corpus.tokens import train_bpe
from factory.engine.receipt import peak_memory
from model.checkpoint import save_hf
from model.config import ModelConfig
from model.data import read_tokenizer
from model.transformer import Transformer

RATE = 1e-4
SAMPLES = 8


@dataclass(frozen=True)
class Size:
    """A model, the pairs and completions in a step, new tokens of a completion, and how much longer texts are."""

    vocabulary: int
    pairs: int
    completions: int
    tokens: int
    model: dict[str, Any]
    long: int = 1


SIZES = {
    # the model of the closed loop
    "tiny": Size(
        512,
        32,
        128,
        32,
        {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "small": Size(
        4096,
        4,
        16,
        32,
        {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
    ),
}


def varied(completions: list[str], prompts: list[str], **_: Any) -> list[float]:
    """A number that differs within a group."""
    return [sum(map(ord, text)) % 97 + place / 1e3 for place, text in enumerate(completions)]


def half(completions: list[str], prompts: list[str], **more: Any) -> list[float]:
    """The same, but for half of the prompts one number for all."""
    told = varied(completions, prompts, **more)
    return [0.0 if len(prompt) % 2 else one for prompt, one in zip(prompts, told, strict=True)]


def prepare(folder: Path, size: Size, steps: int) -> None:
    """A checkpoint with its tokenizer, and a dataset of pairs."""
    chance = random.Random(0)
    words = ["".join(chance.choices("aeioubcdfghlmnprst", k=chance.randint(3, 8))) for _ in range(size.vocabulary * 2)]
    text = [" ".join(chance.choices(words, k=20)) for _ in range(size.vocabulary * 2)]
    train_bpe(iter(text), size.vocabulary, folder / "tok")
    ids = read_tokenizer(folder / "tok")[1]
    model = Transformer(
        ModelConfig(
            **({"vocab_size": len(ids), "num_key_value_heads": 2, "max_position_embeddings": 1024} | size.model)
        )
    )
    model.initialise(0)
    save_hf(model, folder / "base", folder / "tok", ids["<|im_end|>"])

    def said(low: int, high: int) -> str:
        return " ".join(chance.choices(words, k=size.long * chance.randint(low, high)))

    count = (steps + 1) * max(size.pairs, size.completions // SAMPLES)
    rows = [{"prompt": said(4, 8), "chosen": " " + said(6, 12), "rejected": " " + said(6, 12)} for _ in range(count)]
    for row in rows:
        row["prompt"] += "." * ((len(row["prompt"]) + rows.index(row)) % 2)
    (folder / "data/rows").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data/rows/0.parquet")
    manifest = {"name": "pairs", "version": "1", "key": "", "columns": list(rows[0])}
    manifest["rows"] = [{"path": "rows/0.parquet", "rows": count}]  # type: ignore[assignment]
    (folder / "data/manifest.json").write_text(json.dumps(manifest))


def ours(stage: str, size: Size, folder: Path, steps: int, threads: int) -> Any:
    from model.posttrain import run
    from model.posttrain.config import load_recipe

    kind, _, reward = stage.partition(" ")
    recipe = folder / f"{kind}.toml"
    recipe.write_text(f'stage = "{kind}"\n[model]\nstart = "{folder}/base"\n[data]\npath = "{folder}/data"\n')
    words = [
        f"out={folder}/ours",
        f"batch_size={size.pairs if kind == 'dpo' else size.completions}",
        f"threads={threads}",
        f"steps={steps}",
        f"learning_rate={RATE}",
        f"save_every={steps + 1}",
        "weight_decay=0.0",
        "evaluation_share=0",
        'schedule="constant"',
        "warmup_share=0",
        'rewards=["tests.verify.verifiers:has_a_one"]',  # in whose place the same function as theirs comes
        f"samples={SAMPLES}",
        f"max_new_tokens={size.tokens}",
    ]
    work = run.begin(load_recipe(recipe, words))
    trainer = run.STAGES[kind](work)
    if kind == "grpo":
        trainer.reward_funcs[0] = globals()[reward or "varied"]  # type: ignore[attr-defined]
    return trainer


def theirs(stage: str, size: Size, folder: Path, steps: int, threads: int) -> Any:
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

    set_seed(0)
    datasets.disable_progress_bar()
    kind, _, reward = stage.partition(" ")
    arguments: dict[str, Any] = {
        "output_dir": str(folder / "theirs"),
        "per_device_train_batch_size": size.pairs if kind == "dpo" else size.completions,
        "max_steps": steps,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": 0,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
    }

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32, attn_implementation="sdpa")

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = datasets.Dataset(pq.read_table(folder / "data/rows/0.parquet"))
    shared: dict[str, Any] = {"model": load(), "processing_class": tokenizer}
    if kind == "dpo":
        told = DPOConfig(**arguments, beta=0.1, max_length=2048)
        return DPOTrainer(ref_model=load(), args=told, train_dataset=rows, **shared)
    sampling: dict[str, Any] = {"num_generations": SAMPLES, "max_completion_length": size.tokens, "top_k": 0}
    told = GRPOConfig(**arguments, **sampling, temperature=1.0, beta=0.0, shuffle_dataset=False)
    rows = rows.select_columns(["prompt"])
    return GRPOTrainer(reward_funcs=[globals()[reward or "varied"]], args=told, train_dataset=rows, **shared)


def work(pipe: Connection, name: str, stage: str, size: Size, folder: Path, steps: int, threads: int) -> None:
    """A contender's process: turns, then its mean loss and peak memory."""
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    torch.set_num_threads(threads)
    disable_progress_bar()
    set_verbosity_error()
    turn = Turn(pipe)

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turn()

    trainer = (ours if name == "ours" else theirs)(stage, size, folder, steps, threads)
    settle(turn)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Turns())
    trainer.train()
    turn()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    pipe.send((statistics.mean(losses), peak_memory() / 2**20 - turn.base))


def measure(stage: str, size: Size, steps: int, threads: int) -> dict[str, dict[str, float]]:
    """Each contender's median seconds of a step, peak memory and mean loss."""
    names = ["ours", "trl"]
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    taken: dict[str, list[Any]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), size, WARM_UP + steps)
        for name in names:
            pipes[name], other = context.Pipe()
            given = (other, name, stage, size, Path(folder), WARM_UP + steps, threads)
            context.Process(target=work, args=given, daemon=True).start()
            other.close()  # so that a process that dies is an EOFError here
            pipes[name].recv()
        for number in range(WARM_UP + steps):
            for name in names[:: 1 if number % 2 else -1]:
                pipes[name].send("go")
                figures = pipes[name].recv()
                if number >= WARM_UP:
                    taken[name].append(figures)
        found = {}
        for name, pipe in pipes.items():
            pipe.send("end")
            loss, memory = pipe.recv()
            cpu, wall = (statistics.median(column) for column in zip(*taken[name], strict=True))
            found[name] = {"cpu": cpu, "wall": wall, "memory": memory, "loss": loss}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--stages", nargs="+", choices=["dpo", "grpo", "grpo half"], default=["dpo", "grpo"])
    parser.add_argument("--steps", type=int, default=15, help="counted ones")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {options.threads} thread(s), torch {torch.__version__}, float32, {options.steps} steps"
    )
    print(f"{'':16}{'':8}{'CPU ms':>9}{'wall ms':>9}{'ours faster':>13}{'peak MB':>9}{'loss':>9}")
    for name in options.sizes:
        for stage in options.stages:
            found = measure(stage, SIZES[name], options.steps, options.threads)
            for who, row in found.items():
                print(f"{f'{name} {stage}':16}{who:8}{row['cpu'] * 1e3:9.1f}{row['wall'] * 1e3:9.1f}", end="")
                print(f"{row['cpu'] / found['ours']['cpu']:12.2f}x{row['memory']:9.0f}{row['loss']:9.4f}", flush=True)
            if stage == "dpo" and abs(found["ours"]["loss"] - found["trl"]["loss"]) > 2e-3:
                raise SystemExit("the losses differ: not the same work")


if __name__ == "__main__":
    main()

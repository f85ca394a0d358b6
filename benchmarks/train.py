"""One training step beside transformers' model and Trainer: the same weights, batches and optimizer, one run.

Each contender trains in a process of its own and the processes take turns, a step each, so that a machine that grows
slower does so for all. Ours is the step of model/pretrain.py. Theirs is Trainer's own loop with nothing to log, to save
or to evaluate: Qwen2ForCausalLM with sdpa, or Qwen2MoeForCausalLM with each of its ways to compute experts. All in
float32, with clipping and the fused AdamW. That the mean losses agree shows that the work is the same.

The table has the median CPU and wall seconds of a step, the tokens per CPU second, and the peak memory of the process
beyond what it took to import its libraries.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from factory.engine.receipt import peak_memory
from model.checkpoint import load_hf, save_hf
from model.config import ModelConfig, OptimizerConfig
from model.moe import Routing, balance_loss, expert_load
from model.objective import loss_of
from model.pretrain import optimizer_for
from model.transformer import Transformer

OPTIMIZER = OptimizerConfig(learning_rate=1e-3)
WARM_UP = 2  # steps that are not counted
LARGEST = 2e9  # bytes of weights that batched_mm may copy


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and the batch it is trained on."""

    batch: int
    length: int
    model: dict[str, Any]


TINY = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
DENSE = {
    "vocab_size": 43_520,
    "hidden_size": 256,
    "intermediate_size": 1392,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
}
SIZES = {
    # recipes/train/dense_tiny.toml and moe_tiny.toml
    "dense_tiny": Size(4, 256, TINY),
    "moe_tiny": Size(
        4,
        256,
        TINY
        | {
            "model_type": "qwen2_moe",
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 128,
            "router_aux_loss_coef": 0.01,
        },
    ),
    # Qwen2.5-0.5B at 2/7 of its width and a third of its depth: vocabulary and feed-forward in proportion to the width.
    "dense": Size(2, 512, DENSE),
    # The same at its full depth.
    "dense_deep": Size(2, 512, DENSE | {"num_hidden_layers": 24}),
    # Qwen1.5-MoE-A2.7B at 1/8 of its width and a third of its depth.
    "moe": Size(
        2,
        512,
        {
            "model_type": "qwen2_moe",
            "vocab_size": 18_992,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 176,
            "shared_expert_intermediate_size": 704,
            "tie_word_embeddings": False,
        },
    ),
}


class Turn:
    """A process's end of the pipe: calling it ends a step, tells what it took, and waits to be asked for the next."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.base = 0.0
        self.began: tuple[float, float] | None = None

    def __call__(self) -> None:
        if self.began:
            cpu, wall = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
            self.pipe.send((cpu, wall))
        else:
            self.pipe.send("ready")
        self.pipe.recv()
        self.began = time.process_time(), time.perf_counter()


def batches(size: Size, count: int) -> Iterator[np.ndarray]:
    """Token ids as frequent as words are: the n-th in proportion to 1 / n."""
    draw = np.random.default_rng(0)
    for _ in range(count):
        yield (size.model["vocab_size"] ** draw.random((size.batch, size.length))).astype(np.int64) - 1


def settle(turn: Turn) -> None:
    """What is resident now is the libraries', with those that torch loads when they are first needed."""
    one = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([one], fused=True)
    one.sum().backward()
    optimizer.step()
    turn.base = peak_memory() / 2**20


def ours(size: Size, folder: Path, steps: int, turn: Turn) -> float:
    """The mean loss; a step as in model/pretrain.py."""
    settle(turn)
    model = load_hf(folder)
    optimizer = optimizer_for(model, OPTIMIZER)
    losses = []
    for batch in batches(size, steps):
        turn()
        routings: list[Routing] = []
        loss = loss_of(model, batch, routings=routings)
        if routings:
            loss = loss + model.config.router_aux_loss_coef * balance_loss(routings)
            expert_load(routings)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip)
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    turn()
    return statistics.mean(losses)


def theirs(size: Size, folder: Path, steps: int, turn: Turn, experts: str) -> float:
    """The mean loss; Trainer's loop."""
    from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils.logging import disable_progress_bar

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turn()

    disable_progress_bar()
    settle(turn)
    options = {"experts_implementation": experts, "output_router_logits": True} if experts else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", **options)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=size.batch,
        max_steps=steps,
        learning_rate=OPTIMIZER.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=OPTIMIZER.beta1,
        adam_beta2=OPTIMIZER.beta2,
        adam_epsilon=OPTIMIZER.epsilon,
        weight_decay=OPTIMIZER.weight_decay,
        max_grad_norm=OPTIMIZER.clip,
        train_sampling_strategy="sequential",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    rows = [torch.from_numpy(row) for batch in batches(size, steps) for row in batch]

    def collate(given: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = torch.stack(given)
        return {"input_ids": ids, "labels": ids}

    trainer = Trainer(model, arguments, collate, rows, callbacks=[Turns()])  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    loss = trainer.train().training_loss
    turn()
    return loss


def work(pipe: Connection, name: str, size: Size, folder: Path, steps: int, threads: int) -> None:
    """A contender's process: turns, then its mean loss and peak memory."""
    torch.set_num_threads(threads)
    turn = Turn(pipe)
    if name == "ours":
        loss = ours(size, folder, steps, turn)
    else:
        loss = theirs(size, folder, steps, turn, name if "num_experts" in size.model else "")
    pipe.send((loss, peak_memory() / 2**20 - turn.base))


def contenders(size: Size) -> list[str]:
    """transformers' ways to compute the model."""
    model = size.model
    if "num_experts" not in model:
        return ["transformers"]
    pairs = size.batch * size.length * model["num_experts_per_tok"] * model["num_hidden_layers"]
    gathered = pairs * 3 * model["hidden_size"] * model["moe_intermediate_size"] * 4
    if gathered > LARGEST:
        print(f"batched_mm is left out: it copies the weights for each token, {gathered / 1e9:.0f} GB here")
        return ["eager", "grouped_mm"]
    return ["eager", "batched_mm", "grouped_mm"]


def measure(size: Size, steps: int, threads: int) -> dict[str, dict[str, float]]:
    """Each contender's median seconds of a step, peak memory and mean loss."""
    names = ["ours", *contenders(size)]
    context = multiprocessing.get_context("spawn")
    pipes, taken = {}, {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        model = Transformer(ModelConfig(**size.model))
        model.initialise(0)
        save_hf(model, Path(folder), None, None)
        del model
        for name in names:
            pipes[name], other = context.Pipe()
            given = (other, name, size, Path(folder), WARM_UP + steps, threads)
            context.Process(target=work, args=given, daemon=True).start()
            other.close()  # so that a process that dies is an EOFError here
            pipes[name].recv()
        for number in range(WARM_UP + steps):
            for name in names[number % len(names) :] + names[: number % len(names)]:
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


def table(size: Size, found: dict[str, dict[str, float]]) -> None:
    mine, tokens = found["ours"], size.batch * size.length
    print(f"{'':14}{'CPU ms':>9}{'wall ms':>9}{'tokens/CPU s':>14}{'ours faster':>13}{'peak MB':>9}{'loss':>9}")
    for name, row in found.items():
        print(f"{name:14}{row['cpu'] * 1e3:9.1f}{row['wall'] * 1e3:9.1f}{tokens / row['cpu']:14,.0f}", end="")
        print(f"{row['cpu'] / mine['cpu']:12.2f}x{row['memory']:9.0f}{row['loss']:9.4f}")
        if abs(row["loss"] - mine["loss"]) > 1e-3 * mine["loss"]:
            raise SystemExit("the losses differ: not the same work")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=15, help="counted ones")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(f"{platform.machine()}, {options.threads} thread(s), torch {torch.__version__}, float32\n")
    for name in options.sizes:
        size = SIZES[name]
        config = ModelConfig(**size.model)
        with torch.device("meta"):
            count = Transformer(config).parameter_count()
        print(f"{name}: {count / 1e6:.1f}M parameters, vocabulary {config.vocab_size:,}, ", end="")
        print(f"{size.batch} sequences of {size.length}, {options.steps} steps", flush=True)
        table(size, measure(size, options.steps, options.threads))


if __name__ == "__main__":
    main()

"""`python -m model.evaluate.extrapolation out=FOLDER [fast=true] [seed=0]`: lengths beyond the trained one.

A tiny model learns at a length and is asked at up to 8 times it, without more training, with plain RoPE and with what
is to help: position interpolation, YaRN, dual chunk attention. Leaves `extrapolation.png`, the accuracy by length and
by how far back the answer lies, and `extrapolation.json`; what lies there already is not learned again.

- `needles`: tokens that stand for a pair of key and value lie in filler; then keys are asked, the answers are values.
  Learned at length 64 with base 1,000, then at 256 with base 10,000. A token is found by what it is: coarse positions
  do, and plain interpolation does as well as YaRN.
- `copy`: a text of distinct tokens is repeated; the answer to each token is what followed it the first time. Learned at
  length 64. The model must know which token came just before which: interpolation blurs that, YaRN and dual chunks
  hold.

`fast` is the needles alone, up to 4 times the length. A model of 0.1M parameters, trained for this alone, says nothing
of what language models do with long texts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from factory.engine.errors import FactoryError, nearest
from factory.engine.files import make_folder, write_json
from model.attention import DualChunk
from model.config import ModelConfig
from model.evaluate.results import heatmap
from model.muon import Muon
from model.options import value
from model.rope import RopeScaling
from model.transformer import Transformer

WORDS = 512  # copy: different tokens
KEYS, VALUES, FILLER, ASKED = 32, 8, 8, 8  # needles
NONE = -100  # no answer here
TIMES = (1, 2, 4, 8)  # lengths asked at, in trained lengths
DISTANCES = 5  # parts by which answers are sorted
LEARNED = 0.2  # nats: a mean loss of a few steps below which a length is learned
PATIENCE = 600  # steps at a length, at most
RATE = 7e-3  # of five seeds all learned; with 1e-2 one did not
AT_ONCE = 20  # sequences

# A batch of one length: ids, the answer to each token or NONE, and how far back it lies as a share of the length.
Batch = tuple[Tensor, Tensor, Tensor]
Accuracy = tuple[float, list[float]]
"""The share of right answers: of all, and by how far back they lie, nan where there are none."""


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


@dataclass(frozen=True)
class Task:
    """What is learned: how batches are made, of which vocabulary, in batches of how many tokens, at which lengths with
    which base of RoPE."""

    make: Callable[[int, int, torch.Generator], Batch]
    vocabulary: int
    batch_tokens: int
    curriculum: tuple[tuple[int, float], ...]


TASKS = {
    "needles": Task(needles, KEYS * VALUES + KEYS + FILLER + VALUES, 2048, ((64, 1e3), (256, 1e4))),
    "copy": Task(copy, WORDS, 1024, ((64, 1e3),)),
}


def ways(length: int, factor: float) -> dict[str, dict[str, Any]]:
    """The ways to read positions beyond a trained length, each as what it changes in the configuration."""
    chunk = length * 3 // 4 if factor > 4 else length
    return {
        "plain RoPE": {},
        "interpolation": {"rope_scaling": RopeScaling(rope_type="linear", factor=factor)},
        "YaRN": {"rope_scaling": RopeScaling(rope_type="yarn", factor=factor, original_max_position_embeddings=length)},
        "DCA": {"dual_chunk_attention_config": DualChunk(chunk_size=chunk, local_size=chunk // 4)},
    }


def train(task: Task, seed: int, anneal: int, tell: Callable[[str], None] = print) -> Transformer:
    """A model that has learned the task at each length of its curriculum; in the last the rate then falls to 0 over
    `anneal` steps.

    When the skill emerges depends on the seed: a length ends when the loss is below LEARNED, not after so many steps.
    """
    model = Transformer(
        ModelConfig(
            vocab_size=task.vocabulary,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=task.curriculum[0][0],
            rope_theta=task.curriculum[0][1],
        )
    )
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = Muon(model.named_parameters(), lr=RATE, weight_decay=0.0)

    def step(length: int, rate: float) -> float:
        ids, answers, _ = task.make(task.batch_tokens // length, length, generator)
        asked = answers != NONE
        loss = F.cross_entropy(model.lm_head(model.model(ids)[asked]), answers[asked])
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    for length, base in task.curriculum:
        begin = time.perf_counter()
        model.configure(dataclasses.replace(model.config, rope_theta=base, max_position_embeddings=length))
        losses: list[float] = []
        while len(losses) < PATIENCE and not (len(losses) > 10 and np.mean(losses[-5:]) < LEARNED):
            losses.append(step(length, RATE * min(1, (len(losses) + 1) / 20)))
        tell(
            f"  length {length}, base {base:,.0f}: loss {np.mean(losses[-5:]):.2f} after {len(losses)} steps, "
            f"{time.perf_counter() - begin:.0f} s"
        )
    for number in range(anneal):
        step(length, RATE * (1 - number / anneal))
    return model


@torch.inference_mode()
def accuracy(model: Transformer, task: Task, length: int, seed: int, sequences: int) -> Accuracy:
    generator = torch.Generator().manual_seed(seed + 1)
    right, total = torch.zeros(DISTANCES), torch.zeros(DISTANCES)
    for _ in range(sequences // AT_ONCE):
        ids, answers, back = task.make(AT_ONCE, length, generator)
        asked = answers != NONE
        part = (back[asked] * DISTANCES).long()
        found = model.lm_head(model.model(ids)[asked]).argmax(-1)
        right.index_add_(0, part, (found == answers[asked]).float())
        total.index_add_(0, part, torch.ones(len(part)))
    return float(right.sum() / total.sum()), (right / total).tolist()


def measure(
    model: Transformer, task: Task, way: Mapping[str, Any], seed: int, sequences: int, times: Sequence[int] = TIMES
) -> list[Accuracy]:
    """The accuracies at several times the trained length, the model read in one way."""
    trained = model.config
    model.configure(dataclasses.replace(trained, **way))
    try:
        return [accuracy(model, task, trained.max_position_embeddings * n, seed, sequences) for n in times]
    finally:
        model.configure(trained)


def table(found: Mapping[str, Sequence[Accuracy]], times: Sequence[int] = TIMES) -> str:
    """A line for each way: the accuracy at each length, and at 4 times it by how far back the answer lies."""
    head = "".join(f"{n:>5} L" for n in times)
    lines = [f"{'':22}{head}    at 4 L, answer back by  " + "".join(f"{20 * n:>5}%" for n in range(DISTANCES))]
    for way, each in found.items():
        parts = "".join("     -" if math.isnan(share) else f"{share:6.2f}" for share in each[times.index(4)][1])
        lines.append(f"{way:22}" + "".join(f"{whole:7.3f}" for whole, _ in each) + " " * 28 + parts)
    return "\n".join(lines)


def draw(path: Path, panels: Mapping[str, Sequence[Accuracy]], times: Sequence[int] = TIMES) -> None:
    """A heat map for each panel: lengths from left to right, answers that lie further back below."""
    maps = {title: np.array([parts for _, parts in each]).T for title, each in panels.items()}
    back = [f"{20 * n}-{20 * (n + 1)}%" for n in range(DISTANCES)]
    heatmap(path, maps, [f"{n} L" for n in times], back, "answer back by", "length; L is the longest trained")


def run(out: Path, tasks: Sequence[str], seed: int, fast: bool) -> None:
    """Learn and measure what does not lie in `out`, print the tables, and draw."""
    make_folder(str(out))
    times = TIMES[:3] if fast else TIMES
    said = {"seed": seed, "fast": fast, "times": list(times), "versions": {"torch": torch.__version__}}
    path = out / "extrapolation.json"
    before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    results: dict[str, Any] = before.get("tasks", {}) if all(before.get(k) == v for k, v in said.items()) else {}
    for name in tasks:
        task = TASKS[name]
        length = task.curriculum[-1][0]
        print(f"{name}, L = {length}:", flush=True)
        if name not in results:
            model = train(task, seed, anneal=20 if fast else 60, tell=lambda line: print(line, flush=True))
            results[name] = {
                way: measure(model, task, changes, seed, AT_ONCE if fast else 2 * AT_ONCE, times)
                for way, changes in ways(length, float(times[-1])).items()
            }
            write_json(str(path), said | {"tasks": results})
        print(f"{table(results[name], times)}\n", flush=True)
    panels = {
        f"{name}, L = {TASKS[name].curriculum[-1][0]}: {way}": results[name][way]
        for name in tasks
        for way in ("plain RoPE", "YaRN", "DCA")
    }
    draw(out / "extrapolation.png", panels, times)
    print("Not shown: that YaRN beats interpolation on needles, where coarse positions do; or any language.")
    print(f"in {out}: extrapolation.png, extrapolation.json")


def main(words: list[str] | None = None) -> int:
    given = sys.argv[1:] if words is None else words
    options: dict[str, Any] = {"out": "", "fast": False, "seed": 0, "tasks": []}
    try:
        for word in given:
            name, equals, text = word.partition("=")
            if not equals or name not in options:
                raise FactoryError(f"unknown word {word!r}{nearest(name, options)}; known: {', '.join(options)}")
            kind = type(options[name])
            options[name] = text if kind is str else value(text)
            if type(options[name]) is not kind:
                raise FactoryError(f"{word!r}: {name} must be of type {kind.__name__}")
        tasks = options["tasks"] or (["needles"] if options["fast"] else list(TASKS))
        for name in tasks:
            if name not in TASKS:
                raise FactoryError(f"tasks: no {name!r}; there are {', '.join(TASKS)}")
        if not options["out"]:
            raise FactoryError("usage: python -m model.evaluate.extrapolation out=FOLDER [fast=true] [seed=0]")
        torch.set_num_threads(1)  # at this size a second thread helps little, and waits where the cores are shared
        run(Path(options["out"]), tasks, options["seed"], options["fast"])
    except FactoryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

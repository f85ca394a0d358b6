"""Asking a checkpoint the questions of tasks, and the folder of results that this leaves."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from factory.engine.errors import FactoryError
from factory.engine.files import digest, make_folder, write_atomic
from model.checkpoint import file_hashes
from model.config import ModelConfig
from model.evaluate import results
from model.evaluate.task import Question, Task, build
from model.generate import BATCH_TOKENS, Generator
from model.options import section
from model.sample import Sampling

RUN = {"out": "", "name": "", "batch_tokens": BATCH_TOKENS, "questions": 0}
GROUP = 1 << 23  # characters of the prompts that are held in memory at once: a few hundred MB
SAVE_EVERY = 60.0  # seconds


def ask(generator: Generator, task: Task, name: str, limit: int = 0) -> Iterator[dict[str, Any]]:
    """The rows of results of a task, as its answers come; a bar shows how far it is. `limit` is of questions."""
    questions = itertools.islice(task.questions(generator.tokenizer), limit or None)
    with tqdm(unit="answer", disable=None, leave=False) as bar:
        for group, last in groups(questions):
            if last:
                bar.total = bar.n + sum(question.samples for question in group)
            parts: dict[Sampling, list[Question]] = {}
            for one in group:
                sampling = Sampling(tokens=one.tokens, temperature=one.temperature, samples=one.samples, seed=one.seed)
                parts.setdefault(sampling, []).append(one)
            for sampling, part in sorted(parts.items(), key=lambda item: item[0].tokens):
                prompts = [_encoded(generator, question) for question in part]
                begin = time.perf_counter()
                for batch in generator.batches(prompts, sampling):
                    seconds = (time.perf_counter() - begin) / len(batch)
                    for number, sample, completion in batch:
                        row = _row(name, part[number], len(prompts[number]), completion.text, seconds)
                        score = task.score(completion.text, part[number])
                        yield row | {"sample": sample, "score": score}
                    bar.update(len(batch))
                    begin = time.perf_counter()


def groups(questions: Iterable[Question]) -> Iterator[tuple[list[Question], bool]]:
    """The questions in parts of at most GROUP characters (or one), and whether it is the last: memory stays bounded."""
    held: list[Question] = []
    size = 0
    for question in questions:
        new = len(question.prompt if isinstance(question.prompt, str) else json.dumps(question.prompt))
        if held and size + new > GROUP:
            yield held, False
            held, size = [], 0
        held.append(question)
        size += new
    if held:
        yield held, True


def _encoded(generator: Generator, question: Question) -> list[int]:
    if isinstance(question.prompt, str):
        return generator.encode(question.prompt)
    return generator.encode_messages(question.prompt)


def _row(name: str, question: Question, tokens: int, answer: str, seconds: float) -> dict[str, Any]:
    same = {key: getattr(question, key) for key in ("task", "subtask", "id", "length", "depth")}
    expected = list(question.answers)
    return {"model": name, **same, "prompt_tokens": tokens, "answer": answer, "expected": expected, "seconds": seconds}


def key(checkpoint: Path, tasks: Mapping[str, Any], changes: Mapping[str, Any], questions: int) -> str:
    """Who an evaluation is: the checkpoint's files, the tasks with what they read, and the reading of positions.

    Equal keys, equal answers. `tasks` are the built tasks by name; of what a task reads it says itself (`inputs`).
    """
    options = {name: dataclasses.asdict(task) for name, task in tasks.items()}
    inputs = {name: task.inputs() for name, task in tasks.items() if hasattr(task, "inputs")}
    return digest([file_hashes(checkpoint), options, inputs, repr(sorted(changes.items())), questions])


def evaluate(
    checkpoint: Path,
    tasks: dict[str, dict[str, Any]],
    changes: dict[str, Any],
    run: dict[str, Any],
    tell: Callable[[str], None] = print,
) -> Path:
    """Run tasks (their options by name) on a checkpoint and return the folder. `tell` is given what it finds."""
    made = {name: build(name, options) for name, options in tasks.items()}
    whole = checkpoint.absolute()
    name = run["name"] or (whole.parents[1] if whole.name == "hf" else whole).resolve().name
    out = Path(run["out"] or Path(os.environ.get("FACTORY_RUNS", "runs")) / "evaluate" / name)
    generator = Generator.load(checkpoint, run["batch_tokens"], **_changed(changes))
    make_folder(str(out))
    resolved: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "name": name,
        "key": key(checkpoint, made, changes, run["questions"]),
        "model": dataclasses.asdict(generator.model.config),
        "tasks": {one: dataclasses.asdict(task) for one, task in made.items()},
        "questions": run["questions"],
        "versions": {"torch": torch.__version__},
        "finished": [],
    }
    rows: list[dict[str, Any]] = []

    def save() -> None:
        """Both together: the results of an earlier run in this folder stay whole until there are new ones. What tells
        of them goes first and comes last, so that a kill leaves none that tells of others."""
        (out / "evaluation.json").unlink(missing_ok=True)
        if rows:
            results.write(rows, out / "results.parquet")
        write_atomic(str(out / "evaluation.json"), json.dumps(resolved, indent=2) + "\n")

    for one, task in made.items():
        first, saved = len(rows), time.monotonic()
        if hasattr(task, "measure"):
            tell(f"{one}:\n{task.measure(generator, name, out)}\n")
        else:
            for row in ask(generator, task, name, run["questions"]):
                rows.append(row)
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
            if len(rows) == first:
                raise FactoryError(f"{one}: no questions")
        resolved["finished"].append(one)
        save()
        if rows[first:]:
            results.heatmaps(rows[first:], out)
            tell(f"{results.summary(rows[first:])}\n")
    tell(f"in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return out


def _changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The fields of ModelConfig that are given, each checked."""
    whole = section("model", ModelConfig, changes, "the command line")
    return {key: getattr(whole, key) for key in changes}

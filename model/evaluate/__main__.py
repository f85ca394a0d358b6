"""`python -m model.evaluate CHECKPOINT TASK... [out=FOLDER] [key=value ...]`: asks, scores, and leaves a folder.

    results.parquet    a row for each answer (the likeliest tokens), for DuckDB; an earlier one there is replaced
    *.png              scores by length and depth
    evaluation.json    what was asked of what, as resolved, and the tasks that are finished

A run that is killed leaves the answers up to a minute before.

Keys: `out`, `name` (of the model in the results), `batch_tokens` (of key/value cache), `questions` (at most, of
each task that asks questions); `model.KEY` changes how the checkpoint reads positions, such as
`model.rope_scaling='{rope_type = "yarn", factor = 4.0}'` with `model.max_position_embeddings=131072`; `TASK.KEY` is an
option of a task, and `KEY` alone of all tasks that have it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from factory.engine.errors import FactoryError, nearest
from factory.engine.files import make_folder, write_atomic
from model.config import ModelConfig
from model.evaluate import results
from model.evaluate.task import Question, Task, build, find, names
from model.generate import BATCH_TOKENS, Generator
from model.options import section
from model.sample import Sampling

USAGE = "usage: python -m model.evaluate CHECKPOINT TASK... [out=FOLDER] [key=value ...]"
RUN = {"out": "", "name": "", "batch_tokens": BATCH_TOKENS, "questions": 0}
GROUP = 1 << 23  # characters of the prompts that are held in memory at once: a few hundred MB
SAVE_EVERY = 60.0  # seconds


def ask(generator: Generator, task: Task, name: str, limit: int = 0) -> Iterator[dict[str, Any]]:
    """The rows of results of a task, as its answers come; a bar shows how far it is."""
    questions = itertools.islice(task.questions(generator.tokenizer), limit or None)
    with tqdm(unit="question", disable=None, leave=False) as bar:
        for group, last in groups(questions):
            if last:
                bar.total = bar.n + len(group)
            for tokens in sorted({question.tokens for question in group}):
                part = [question for question in group if question.tokens == tokens]
                prompts = [generator.encode(question.prompt) for question in part]
                begin = time.perf_counter()
                for batch in generator.batches(prompts, Sampling(tokens=tokens, temperature=0)):
                    seconds = (time.perf_counter() - begin) / len(batch)
                    for number, _, completion in batch:
                        row = _row(name, part[number], len(prompts[number]), completion.text, seconds)
                        yield row | {"score": task.score(completion.text, part[number])}
                    bar.update(len(batch))
                    begin = time.perf_counter()


def groups(questions: Iterable[Question]) -> Iterator[tuple[list[Question], bool]]:
    """The questions in parts of at most GROUP characters (or one), and whether it is the last: memory stays bounded."""
    held: list[Question] = []
    size = 0
    for question in questions:
        if held and size + len(question.prompt) > GROUP:
            yield held, False
            held, size = [], 0
        held.append(question)
        size += len(question.prompt)
    if held:
        yield held, True


def _row(name: str, question: Question, tokens: int, answer: str, seconds: float) -> dict[str, Any]:
    same = {key: getattr(question, key) for key in ("task", "subtask", "id", "length", "depth")}
    expected = list(question.answers)
    return {"model": name, **same, "prompt_tokens": tokens, "answer": answer, "expected": expected, "seconds": seconds}


def evaluate(checkpoint: Path, tasks: dict[str, dict[str, Any]], changes: dict[str, Any], run: dict[str, Any]) -> Path:
    """Run tasks (their options by name) on a checkpoint and return the folder. Prints what it finds."""
    made = {name: build(name, options) for name, options in tasks.items()}
    whole = checkpoint.absolute()
    name = run["name"] or (whole.parents[1] if whole.name == "hf" else whole).resolve().name
    out = Path(run["out"] or Path(os.environ.get("FACTORY_RUNS", "runs")) / "evaluate" / name)
    generator = Generator.load(checkpoint, run["batch_tokens"], **_changed(changes))
    make_folder(str(out))
    resolved: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "name": name,
        "model": dataclasses.asdict(generator.model.config),
        "tasks": {one: dataclasses.asdict(task) for one, task in made.items()},
        "versions": {"torch": torch.__version__},
        "finished": [],
    }
    rows: list[dict[str, Any]] = []

    def save() -> None:
        """Both together: the results of an earlier run in this folder stay whole until there are new ones."""
        write_atomic(str(out / "evaluation.json"), json.dumps(resolved, indent=2) + "\n")
        if rows:
            results.write(rows, out / "results.parquet")

    for one, task in made.items():
        first, saved = len(rows), time.monotonic()
        if hasattr(task, "measure"):
            print(f"{one}:\n{task.measure(generator, name, out)}\n", flush=True)
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
            print(f"{results.summary(rows[first:])}\n", flush=True)
    print(f"in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return out


def _changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The fields of ModelConfig that are given, each checked."""
    whole = section("model", ModelConfig, changes, "the command line")
    return {key: getattr(whole, key) for key in changes}


def parse(words: list[str]) -> tuple[Path, dict[str, dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """The checkpoint, the options of each task, changes of the model's configuration, and those of the run."""
    plain = [word for word in words if "=" not in word]
    if len(plain) < 2:
        raise FactoryError(f"{USAGE}; tasks: {', '.join(names())}")
    checkpoint, *tasks = plain
    known = {task: [field.name for field in dataclasses.fields(find(task))] for task in tasks}
    options: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    changes: dict[str, Any] = {}
    run = dict(RUN)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            continue
        owner, _, name = key.rpartition(".")
        places = [task for task in tasks if name in known[task]]
        if owner == "model":
            changes[name] = _value(text)
        elif owner in options:
            options[owner][name] = _value(text)
        elif not owner and name in RUN:
            run[name] = text if isinstance(RUN[name], str) else _value(text)
            if type(run[name]) is not type(RUN[name]):
                raise FactoryError(f"{word!r}: {name} must be a whole number")
            if run["questions"] < 0:  # type: ignore[operator]
                raise FactoryError(f"{word!r}: must not be negative; 0 asks all")
        elif not owner and places:
            for task in places:
                options[task][name] = _value(text)
        else:
            every = [*RUN, *(f"{task}.{one}" for task in tasks for one in known[task])]
            raise FactoryError(f"unknown key {key!r}{nearest(key, every)}; known: {', '.join(every)}, model.KEY")
    return Path(checkpoint), options, changes, run


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a string without quotes


def main(words: list[str] | None = None) -> int:
    given = sys.argv[1:] if words is None else words
    if not given or given[0] in ("-h", "--help"):
        print(f"{USAGE}\n{(__doc__ or '').partition(':')[2]}\ntasks: {', '.join(names())}")
        return 0 if given else 2
    try:
        evaluate(*parse(given))
    except FactoryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

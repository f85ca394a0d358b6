"""`python -m model.evaluate CHECKPOINT TASK... [out=FOLDER] [key=value ...]`: asks, scores, and leaves a folder.

    results.parquet    a row for each answer, for DuckDB; an earlier one there is replaced
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
import sys
from pathlib import Path
from typing import Any

from factory.engine.errors import FactoryError, nearest
from model.evaluate.run import RUN, evaluate
from model.evaluate.task import find, names
from model.options import value

USAGE = "usage: python -m model.evaluate CHECKPOINT TASK... [out=FOLDER] [key=value ...]"


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
            changes[name] = value(text)
        elif owner in options:
            options[owner][name] = value(text)
        elif not owner and name in RUN:
            run[name] = text if isinstance(RUN[name], str) else value(text)
            if type(run[name]) is not type(RUN[name]):
                raise FactoryError(f"{word!r}: {name} must be a whole number")
            if run["questions"] < 0:  # type: ignore[operator]
                raise FactoryError(f"{word!r}: must not be negative; 0 asks all")
        elif not owner and places:
            for task in places:
                options[task][name] = value(text)
        else:
            every = [*RUN, *(f"{task}.{one}" for task in tasks for one in known[task])]
            raise FactoryError(f"unknown key {key!r}{nearest(key, every)}; known: {', '.join(every)}, model.KEY")
    return Path(checkpoint), options, changes, run


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

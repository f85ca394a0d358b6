"""`python -m model.evaluate.compare LABEL=FOLDER ... data=DATASET verifier=NAME [key=value ...]`: models, compared.

    python -m model.evaluate.compare base=runs/train/base/checkpoint/hf sft=runs/train/sft/checkpoint/hf \\
        noisy=runs/train/noisy/checkpoint/hf controls=noisy data=runs/problems@2026.11.20 \\
        verifier=mathematics:correct 'columns={answer = "gold"}' 'assert=sft>=base+0.1, sft>noisy'

A FOLDER is a checkpoint, which is asked the problems of the task `verified`, or one that an evaluation left. Stages
stand in the order given; each is held against the one before, and those named by `controls` against the stage before
them. In `out` lie `accuracy.parquet`, `accuracy.png` and a folder for each label: a checkpoint that was asked the same
there is not asked again.

`assert` has conditions, with commas between them: `LABEL>=LABEL+NUMBER` or `LABEL>NUMBER`, of the sampled answers, or
`greedy:LABEL>LABEL`. Exit code 1 where one does not hold. Other keys: the options of `verified`, and
`batch_tokens`.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.engine.errors import FactoryError, nearest
from factory.engine.files import aside, make_folder
from model.evaluate import stages
from model.evaluate.run import RUN, evaluate, key
from model.evaluate.stages import Model, Row
from model.evaluate.task import build
from model.evaluate.verified import Verified
from model.generate import BATCH_TOKENS
from model.options import value

USAGE = "usage: python -m model.evaluate.compare LABEL=FOLDER ... data=DATASET verifier=NAME [key=value ...]"
OPTIONS = tuple(one.name for one in dataclasses.fields(Verified))
LABEL = re.compile(r"[A-Za-z]\w*")
NUMBER = r"\d*\.?\d+"
CONDITION = re.compile(
    r"(?:(?P<measure>[^:<>]+):)?(?P<left>\w+)(?P<sign>>=|<=|>|<)"
    rf"(?:(?P<right>[A-Za-z]\w*)(?P<more>[+-]{NUMBER})?|(?P<number>{NUMBER}))"
)
SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
ROUNDING = 1e-9  # .1 + .2 is not .3


@dataclass
class Asked:
    """What the command line says."""

    folders: dict[str, Path] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    batch_tokens: int = BATCH_TOKENS
    out: Path = Path()


def parse(words: Iterable[str]) -> Asked:
    """FactoryError for a key, a label or a condition that cannot be."""
    asked, out = Asked(), ""
    for word in words:
        name, equals, text = word.partition("=")
        if name == "out":
            out = text
        elif name == "controls":
            asked.controls = tuple(one.strip() for one in text.split(","))
        elif name == "assert":
            asked.conditions += tuple(one.replace(" ", "") for one in text.split(","))
        elif name in OPTIONS:
            asked.options[name] = value(text)
        elif name == "batch_tokens":
            asked.batch_tokens = value(text)
            if type(asked.batch_tokens) is not int or asked.batch_tokens < 1:
                raise FactoryError(f"{word!r}: {name} must be a whole number above 0")
        elif not equals or not LABEL.fullmatch(name):
            raise FactoryError(f"{word!r}: write LABEL=FOLDER, the label of letters, digits and _; {USAGE}")
        elif name in asked.folders:
            raise FactoryError(f"{word!r}: there is another {name}: give each its own label")
        else:
            asked.folders[name] = Path(text)
            if not any((Path(text) / file).is_file() for file in ("config.json", "results.parquet")):
                known = nearest(name, ["out", "controls", "assert", "batch_tokens", *OPTIONS])
                raise FactoryError(f"{word!r}: neither a checkpoint nor a folder of results is there{known}")
    if not asked.folders:
        raise FactoryError(USAGE)
    first = next(iter(asked.folders))
    for label in asked.controls:
        if label not in asked.folders:
            raise FactoryError(f"controls: no {label!r}{nearest(label, asked.folders)}")
    if first in asked.controls:
        raise FactoryError(f"controls: {first!r} comes first: name it after the stage that it is a control of")
    for condition in asked.conditions:
        _condition(condition, asked.folders)
    asked.out = Path(out or Path(os.environ.get("FACTORY_RUNS", "runs")) / "evaluate" / "-".join(asked.folders))
    return asked


def _condition(text: str, labels: Iterable[str]) -> re.Match[str]:
    found = CONDITION.fullmatch(text)
    if not found:
        raise FactoryError(f"assert: {text!r}: write LABEL>=LABEL+0.1, LABEL>0.5 or greedy:LABEL>LABEL")
    for label in (found["left"], found["right"]):
        if label and label not in labels:
            raise FactoryError(f"assert: {text!r}: no {label!r}{nearest(label, labels)}")
    return found


def compare(asked: Asked) -> list[Row]:
    """The rows of accuracy.parquet. Evaluates what is not evaluated yet, and prints a line for each."""
    make_folder(str(asked.out))
    models: list[Model] = []
    for label, folder in asked.folders.items():
        if (folder / "config.json").is_file():
            folder = _evaluated(label, folder, asked)
        models.append(stages.read(label, folder, label in asked.controls))
    rows = stages.rows(models)
    with aside(str(asked.out / "accuracy.parquet")) as scratch:
        pq.write_table(pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], stages.COLUMNS), scratch)
    stages.draw(rows, asked.out / "accuracy.png")
    return rows


def _evaluated(label: str, checkpoint: Path, asked: Asked) -> Path:
    """The folder of results of a checkpoint, made unless the same was asked of the same before."""
    out = asked.out / label
    task = build("verified", asked.options)
    path = out / "evaluation.json"
    if path.is_file():
        before = json.loads(path.read_text("utf-8"))
        same = before.get("key") == key(checkpoint, {"verified": task}, {}, 0)
        if same and before.get("finished") == ["verified"]:
            print(f"{label}: asked before", flush=True)
            return out
    begin = time.perf_counter()
    run = RUN | {"out": str(out), "name": label, "batch_tokens": asked.batch_tokens}
    evaluate(checkpoint, {"verified": asked.options}, {}, run, tell=lambda _: None)
    count = pq.ParquetFile(out / "results.parquet").metadata.num_rows
    print(f"{label}: {count:,} answers in {time.perf_counter() - begin:.1f} s", flush=True)
    return out


def failures(conditions: Iterable[str], rows: list[Row]) -> list[str]:
    """What does not hold, a line each."""
    found = []
    for condition in conditions:
        parts = _condition(condition, {row.label for row in rows})
        measure = parts["measure"] or stages.leading(rows)
        shares = {row.label: row.accuracy for row in rows if row.measure == measure}
        for label in (parts["left"], parts["right"]):
            if label and label not in shares:
                known = ", ".join(dict.fromkeys(row.measure for row in rows))
                raise FactoryError(f"assert: {condition!r}: {label} has no {measure!r}; there is {known}")
        left = shares[parts["left"]]
        right = float(parts["number"] or 0) if not parts["right"] else shares[parts["right"]]
        limit = right + float(parts["more"] or 0)
        slack = ROUNDING if parts["sign"] == ">=" else -ROUNDING if parts["sign"] == "<=" else 0
        if not SIGNS[parts["sign"]](left + slack, limit):
            made = f" ({parts['right']} {right:.3f}{parts['more'] or ''})" if parts["right"] else ""
            found.append(
                f"{condition} does not hold at {measure}: {parts['left']} is {left:.3f}, the limit {limit:.3f}{made}"
            )
    return found


def main(words: list[str] | None = None) -> int:
    given = sys.argv[1:] if words is None else words
    if not given or given[0] in ("-h", "--help"):
        print(f"{USAGE}\n{(__doc__ or '').partition(': models, compared.')[2]}")
        return 0 if given else 2
    try:
        asked = parse(given)
        rows = compare(asked)
        print(f"\n{stages.table(rows)}\n\n{stages.bars(rows)}\n\nin {asked.out}: accuracy.parquet, accuracy.png")
        failed = failures(asked.conditions, rows)
    except FactoryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    if asked.conditions and not failed:
        print(f"holds: {', '.join(asked.conditions)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The accuracies of a row of models on the same problems: read, held against each other, as a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from factory.engine.errors import FactoryError
from model.evaluate.intervals import by_problem, difference, estimate
from model.picture import picture

GREEDY = "greedy"
STAGE, CONTROL = "#0072b2", "#d55e00"  # told apart with any colour vision (Okabe and Ito)
WIDTH = 60  # characters of a bar
COLUMNS = pa.schema(
    [
        ("label", pa.string()),
        ("control", pa.bool_()),
        ("measure", pa.string()),
        ("problems", pa.int64()),
        ("answers", pa.int64()),
        ("accuracy", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("better", pa.string()),
        ("than", pa.string()),
        ("difference", pa.float64()),
        ("difference_low", pa.float64()),
        ("difference_high", pa.float64()),
        ("p", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Model:
    """A model's scores by measure: the problem of each answer, and its score."""

    label: str
    control: bool
    scores: dict[str, tuple[list[Hashable], list[float]]]


@dataclass(frozen=True)
class Row:
    """One model by one measure, `greedy` or `T=1`, with 95% intervals.

    `difference` is the accuracy of `better` minus that of `than`: of a stage and the one before it, or of a stage and
    its control; null in the first stage. `p` is one-sided.
    """

    label: str
    control: bool
    measure: str
    problems: int
    answers: int
    accuracy: float
    low: float
    high: float
    better: str | None = None
    than: str | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None


def read(label: str, folder: Path, control: bool = False) -> Model:
    """The scores of a folder that an evaluation left: a measure is a subtask, or a task that has none.

    FactoryError where the evaluation has not ended: some of its problems are not there.
    """
    try:
        asked = json.loads((folder / "evaluation.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FactoryError(f"{folder}: no evaluation.json that can be read ({error}): evaluate it again") from error
    if left := sorted(asked["tasks"].keys() - asked["finished"]):
        raise FactoryError(f"{folder}: its evaluation has not ended ({', '.join(left)}): run it again")
    try:
        table = pq.read_table(folder / "results.parquet", columns=["task", "subtask", "id", "score"])
    except (OSError, ValueError) as error:
        raise FactoryError(f"{folder}: no results.parquet that can be read ({error}): evaluate it again") from error
    scores: dict[str, tuple[list[Hashable], list[float]]] = {}
    for row in table.to_pylist():
        ids, values = scores.setdefault(row["subtask"] or row["task"], ([], []))
        ids.append((row["task"], row["id"]))
        values.append(row["score"])
    if not scores:
        raise FactoryError(f"{folder}: its results have no answers: evaluate it again")
    return Model(label, control, scores)


def rows(models: Sequence[Model]) -> list[Row]:
    """A row for each model and measure. FactoryError where two that are held together had other problems."""
    found = []
    stage: Model | None = None
    for model in models:
        for measure, (ids, scores) in model.scores.items():
            row = Row(model.label, model.control, measure, len(set(ids)), len(ids), *estimate(scores, ids))
            if stage is not None and measure in stage.scores:
                better, than = (stage, model) if model.control else (model, stage)
                row = _with_difference(row, better, than)
            found.append(row)
        stage = stage if model.control else model
    return found


def _with_difference(row: Row, better: Model, than: Model) -> Row:
    sides = []
    for side in (better, than):
        ids, scores = side.scores[row.measure]
        sides.append(by_problem(scores, ids))
    try:
        gain = difference(*sides)
    except FactoryError as error:
        raise FactoryError(f"{better.label} and {than.label}, {row.measure}: {error}") from None
    own = (row.label, row.control, row.measure, row.problems, row.answers, row.accuracy, row.low, row.high)
    return Row(*own, better.label, than.label, gain.value, gain.low, gain.high, gain.p)


def leading(found: Sequence[Row]) -> str:
    """The measure that the models are held against each other by: the sampled answers, where there are some.

    What training adds or takes moves the sampled answers far more than the likeliest ones.
    """
    measures = dict.fromkeys(row.measure for row in found)
    return next((one for one in measures if one != GREEDY), GREEDY)


def table(found: Sequence[Row]) -> str:
    """A line for each model: each measure, then the difference by the leading one."""
    measures, lead = list(dict.fromkeys(row.measure for row in found)), leading(found)
    first = next(row for row in found if row.measure == lead)
    labels = list(dict.fromkeys(row.label for row in found))
    wide = max(len(label) + 2 for label in labels)
    head = f"{'':<{wide}}" + "".join(f"  {measure:<20}" for measure in measures) + f"  difference, {lead}"
    lines = [f"{first.problems:,} problems, 95% intervals", head]
    for label in labels:
        own = {row.measure: row for row in found if row.label == label}
        line = f"{('  ' if next(iter(own.values())).control else '') + label:<{wide}}"
        for measure in measures:
            one = own.get(measure)
            line += f"  {f'{one.accuracy:.3f} ({one.low:.3f}-{one.high:.3f})' if one else '-':<20}"
        gain = own.get(lead)
        if gain and gain.difference is not None:
            p = f"p {gain.p:.4f}"
            line += f"  {gain.better} - {gain.than}: {gain.difference:+.3f} "
            line += f"({gain.difference_low:+.3f} to {gain.difference_high:+.3f}), {p}"
        lines.append(line.rstrip())
    if any(row.control for row in found):
        lines.append("A control stands indented below the stage that it is a control of.")
    return "\n".join(lines)


def bars(found: Sequence[Row]) -> str:
    """The leading measure as lines of text: the mean `●` (of a control `○`) in its interval, from 0 to 1."""
    lead = leading(found)
    own = [row for row in found if row.measure == lead]
    wide = max(len(row.label) + 2 for row in own)
    lines = [f"{'':<{wide}}  0{lead:^{WIDTH - 2}}1"]
    for row in own:
        at, low, high = (round(share * (WIDTH - 1)) for share in (row.accuracy, row.low, row.high))
        line = ["·"] * WIDTH
        line[low : high + 1] = "━" * (high - low + 1)
        line[at] = "○" if row.control else "●"
        label = ("  " if row.control else "") + row.label
        lines.append(f"{label:<{wide}}  {''.join(line)}  {row.accuracy:.3f}")
    return "\n".join(lines)


def draw(found: Sequence[Row], path: Path) -> None:
    """The same as a PNG: stages from left to right, controls beside their stage, each with its interval."""
    lead = leading(found)
    places: dict[str, float] = {}
    for row in found:
        if row.label not in places:
            places[row.label] = max(places.values(), default=-1.0) + (0.6 if row.control else 1.0)
    own = next(row for row in found if row.measure == lead)
    title = f"Held-out accuracy by stage, 95% intervals, {own.problems:,} problems"
    with picture(path, xlabel="", ylabel="accuracy", title=title) as axes:
        for measure in dict.fromkeys(row.measure for row in found):
            for control in (False, True):
                part = [row for row in found if row.measure == measure and row.control == control]
                if not part:
                    continue
                x, y = [places[row.label] for row in part], [row.accuracy for row in part]
                ends = [[row.accuracy - row.low for row in part], [row.high - row.accuracy for row in part]]
                line = "none" if control else "-" if measure == lead else ":"
                axes.errorbar(
                    x,
                    y,
                    yerr=ends,
                    color=CONTROL if control else STAGE,
                    linestyle=line,
                    marker="s" if control else "o",
                    markerfacecolor=None if measure == lead else "white",
                    capsize=4,
                    label=f"{'control, ' if control else ''}{measure}",
                )
                # The two measures may lie on one another: one is told to the right, the other to the left.
                side = 1 if measure == lead else -1
                for row in part:
                    place, text = (places[row.label], row.accuracy), f"{row.accuracy:.3f}"
                    where = {"ha": "left" if side > 0 else "right", "textcoords": "offset points"}
                    axes.annotate(text, place, (6 * side, -10 if side > 0 else 4), fontsize=7, **where)
        axes.margins(x=0.08)
        axes.set_xticks(list(places.values()), list(places), fontsize=8)
        low, high = axes.get_ylim()
        axes.set_ylim(max(0.0, low), min(1.05, high + 0.03))

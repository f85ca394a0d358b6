"""The answers of a run as Parquet, their summary with intervals, and heat maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.engine.files import aside
from model.evaluate.intervals import estimate

RESULTS = pa.schema(
    [
        ("model", pa.string()),
        ("task", pa.string()),
        ("subtask", pa.string()),
        ("id", pa.string()),
        ("sample", pa.int64()),
        ("length", pa.int64()),
        ("depth", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("answer", pa.string()),
        ("expected", pa.list_(pa.string())),
        ("score", pa.float64()),
        ("seconds", pa.float64()),
    ]
)
DEPTHS = 11  # rows of a heat map at most


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A row for each answer: `RESULTS`. `sample` counts the answers to one question; `seconds` is the answer's share of
    the time that its batch took."""
    with aside(str(path)) as scratch:
        pq.write_table(pa.Table.from_pylist(list(rows), RESULTS), scratch)


def summary(rows: Iterable[dict[str, Any]]) -> str:
    """A table: the mean score and its interval for each task, subtask and length."""
    groups: dict[tuple[str, str, int], list[tuple[float, str]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["subtask"], row["length"]), []).append((row["score"], row["id"]))
    lines = [f"{'task':<28} {'length':>9} {'questions':>10} {'score':>7}   95% interval"]
    for (task, subtask, length), found in sorted(groups.items()):
        scores, ids = zip(*found, strict=True)
        value, low, high = estimate(scores, ids)
        lines.append(
            f"{task + (' ' + subtask if subtask else ''):<28} {length or '':>9} {len(set(ids)):>10} "
            f"{value:>7.3f}   {low:.3f} - {high:.3f}"
        )
    return "\n".join(lines)


def heatmaps(rows: Iterable[dict[str, Any]], folder: Path) -> list[Path]:
    """A picture of mean scores by length and depth for each task and subtask that has several of either."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["depth"] is not None:
            groups.setdefault((row["model"], row["task"], row["subtask"]), []).append(row)
    paths = []
    for (model, task, subtask), found in groups.items():
        lengths, depths, values = cells(found)
        if values.size == 1:
            continue
        path = folder / f"{'-'.join(part for part in (task, subtask) if part).replace(' ', '-')}.png"
        title = f"{task} {subtask}".strip()
        columns = [f"{length:,}" if length else "-" for length in lengths]
        heatmap(path, {f"{title}, {model}": values}, columns, [f"{depth:.0%}" for depth in depths], "depth")
        paths.append(path)
    return paths


def cells(rows: Sequence[dict[str, Any]]) -> tuple[list[int], list[float], np.ndarray]:
    """Lengths, depths and the mean scores [depths, lengths], nan where there is none.

    Depths that differ from length to length, as those of key-value pairs do, or are many go to the nearest of equal
    steps from 0 to 1: such rows side by side would be half empty.
    """
    at: dict[int, set[float]] = {}
    for row in rows:
        at.setdefault(row["length"], set()).add(row["depth"])
    lengths, depths = sorted(at), sorted(set().union(*at.values()))
    most = max(map(len, at.values()))
    if len(depths) > min(DEPTHS, most):
        depths = np.linspace(0, 1, min(DEPTHS, max(3, most))).tolist()
    sums = np.zeros((2, len(depths), len(lengths)))
    for row in rows:
        place = int(np.abs(np.array(depths) - row["depth"]).argmin())
        sums[:, place, lengths.index(row["length"])] += row["score"], 1
    with np.errstate(invalid="ignore"):
        return lengths, depths, sums[0] / sums[1]


def heatmap(
    path: Path,
    panels: dict[str, np.ndarray],
    columns: Sequence[str],
    rows: Sequence[str],
    row_label: str,
    column_label: str = "length, tokens",
) -> None:
    """Write a PNG of one or several grids of scores 0..1 [rows, columns] by title; nan is left white."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    size = max(3.2, 0.7 * len(columns) + 1.4), max(2.4, 0.32 * len(rows) + 1.2)
    figure, axes = plt.subplots(down, across, figsize=(size[0] * across, size[1] * down), dpi=120, squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    for ax, (title, values) in zip(axes.flat, panels.items(), strict=False):
        ax.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")  # also for those who see no red and green
        ax.set_xticks(range(len(columns)), columns, fontsize=7)
        ax.set_yticks(range(len(rows)), rows, fontsize=7)
        for (row, column), value in np.ndenumerate(values):
            if not math.isnan(value):
                shown = f"{value:.2f}".removeprefix("0")
                colour = "white" if value < 0.6 else "black"
                ax.text(column, row, shown, ha="center", va="center", fontsize=6, color=colour)
        ax.set_title(title, fontsize=8)
        ax.set_xlabel(column_label, fontsize=7)
        ax.set_ylabel(row_label, fontsize=7)
    figure.tight_layout()
    with aside(str(path)) as scratch:
        figure.savefig(scratch, format="png")
    plt.close(figure)

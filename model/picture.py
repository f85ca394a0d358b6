"""How training went: a curve in the terminal, a picture, a progress display."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from factory.engine.errors import FactoryError
from factory.engine.files import aside


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and up to `window` - 1 before it."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (total[ends] - total[starts]) / (ends - starts)


def text_curve(metrics: list[dict[str, Any]], width: int = 64, height: int = 12) -> str:
    """The loss by step as lines of text: `·` in training, `o` held out."""
    steps = np.array([row["step"] for row in metrics], float)
    loss = np.array([row["loss"] for row in metrics])
    held = [(row["step"], row["evaluation_loss"]) for row in metrics if row["evaluation_loss"] is not None]
    if not len(steps):
        return "(no steps)"
    width = max(1, min(width, len(steps)))
    bins = np.array_split(np.arange(len(steps)), width)
    curve = np.array([loss[part].mean() for part in bins])
    values = np.concatenate([curve, [value for _, value in held]])
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 1e-9)
    grid = [[" "] * width for _ in range(height)]

    def place(column: int, value: float, mark: str) -> None:
        grid[round((high - value) / span * (height - 1))][column] = mark

    for column, value in enumerate(curve):
        place(column, value, "·")
    for step, value in held:
        index = int(np.searchsorted(steps, step))
        place(min(width - 1, index * width // len(steps)), value, "o")
    lines = []
    for number, row in enumerate(grid):
        label = f"{high - span * number / (height - 1):7.2f}" if number % 3 == 0 or number == height - 1 else " " * 7
        lines.append(f"{label} │{''.join(row)}".rstrip())
    lines.append(" " * 7 + " └" + "─" * width)
    last = f"{int(steps[-1]):,}"
    lines.append(" " * 9 + "1" + last.rjust(max(width - 1, len(last) + 1)) + "  step")
    lines.append(" " * 9 + "· loss in training   o on held-out data")
    return "\n".join(lines)


@contextlib.contextmanager
def picture(path: Path, **labels: str) -> Iterator[Any]:
    """Axes to draw on, with these labels, written to `path` as PNG when the block ends."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    yield axes
    axes.set(**labels)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with aside(str(path)) as scratch:
        figure.savefig(scratch, format="png")
    plt.close(figure)


def _steps(axes: Any, tokens: np.ndarray, values: np.ndarray) -> None:
    smooth = _smooth(values, max(1, len(values) // 40))
    axes.plot(tokens, values, color="#b8c9e0", linewidth=0.8, label="each step")
    axes.plot(tokens, smooth, color="#1f5fa8", linewidth=1.6, label="mean of steps")


def _stage_lines(axes: Any, metrics: list[dict[str, Any]]) -> None:
    """A line where each stage but the first begins."""
    for before, row in itertools.pairwise(metrics):
        if row["stage"] != before["stage"]:
            axes.axvline(before["tokens"], color="#888888", linewidth=0.8, linestyle=":")
            axes.text(before["tokens"], axes.get_ylim()[1], f" {row['stage']}", va="top", fontsize=8, color="#555555")


def loss_picture(metrics: list[dict[str, Any]], path: Path, title: str) -> None:
    """Write loss.png."""
    tokens = np.array([row["tokens"] for row in metrics])
    loss = np.array([row["loss"] for row in metrics])
    held = [(row["tokens"], row["evaluation_loss"]) for row in metrics if row["evaluation_loss"] is not None]
    with picture(path, xlabel="tokens", ylabel="loss, nats a token", title=title) as axes:
        _steps(axes, tokens, loss)
        if held:
            axes.plot(*zip(*held, strict=True), "o-", color="#d1495b", linewidth=1, markersize=4, label="held out")
        _stage_lines(axes, metrics)


def speed_picture(metrics: list[dict[str, Any]], path: Path, title: str) -> None:
    """Write speed.png: tokens/s of the steps, without evaluations and checkpoints."""
    tokens = np.array([row["tokens"] for row in metrics])
    seconds = np.array([row["seconds"] for row in metrics])
    speed = np.diff(tokens, prepend=0) / np.maximum(seconds, 1e-9)
    with picture(path, xlabel="tokens", ylabel="tokens/s", title=title) as axes:
        axes.plot(tokens, speed, color="#b8c9e0", linewidth=0.8, label="each step")
        axes.plot(
            tokens, _smooth(speed, max(1, len(speed) // 40)), color="#1f5fa8", linewidth=1.6, label="mean of steps"
        )
        axes.set_ylim(bottom=0)
        _stage_lines(axes, metrics)


def tensorboard(folder: Path, done: int) -> Callable[[dict[str, Any]], None]:
    """Writes each step's metrics for TensorBoard; what an earlier run wrote of steps after `done` is cut off."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise FactoryError("train.tensorboard: the package tensorboard is missing: pip install tensorboard") from error
    writer = SummaryWriter(str(folder), purge_step=done + 1, flush_secs=10)

    def report(row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, float):
                writer.add_scalar(name, value, row["step"])

    return report


def clock(seconds: float) -> str:
    """1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """A bar with tokens/s and the time left; without a terminal a plain line about every five seconds. `steps` may be
    set anew, when a stage has ended early."""

    def __init__(self, steps: int, done: int, out: TextIO | None = None) -> None:
        self.steps, self.first = steps, done
        self.out = out or sys.stderr
        self.begin = self.told = time.monotonic()
        self.tokens: int | None = None
        self.evaluation = self.probe = ""
        self.bar = None
        if self.out.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=steps, initial=done, unit="step", file=self.out, dynamic_ncols=True)

    def __call__(self, row: dict[str, Any]) -> None:
        now = time.monotonic()
        if self.tokens is None:
            self.tokens = row["tokens"]  # speed is counted from the second step: the first one warms up
            self.begin = now
        rate = (row["tokens"] - self.tokens) / max(now - self.begin, 1e-9)
        if row["evaluation_loss"] is not None:
            self.evaluation = f"  held-out {row['evaluation_loss']:.3f}"
        if row.get("probe_accuracy") is not None:
            self.probe = f"  probe {row['probe_accuracy']:.1%}"
        what = f"loss {row['loss']:.3f}{self.evaluation}{self.probe}  {rate:,.0f} tokens/s"
        if row.get("mfu"):
            what += f"  MFU {row['mfu']:.0%}"
        if self.bar is not None:
            self.bar.total = self.steps
            self.bar.set_postfix_str(what, refresh=False)
            self.bar.update()
        elif now - self.told >= 5 or row["step"] == self.steps or row["evaluation_loss"] is not None:
            self.told = now
            left = (now - self.begin) / max(1, row["step"] - self.first - 1) * (self.steps - row["step"])
            print(f"step {row['step']:,}/{self.steps:,}  {what}  {clock(left)} left", file=self.out, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

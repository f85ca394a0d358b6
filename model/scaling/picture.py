"""Pictures of a grid: the losses with their quadratics, and the optima with the laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from factory.engine.files import aside
from model.scaling.fit import Fit, Optimum, PowerFit, groups, log_terms, loss_of
from model.scaling.law import BUILT_IN, PowerLaw, Scale

COLOURS = ("#1f5fa8", "#d1495b", "#2a9d63", "#e0a030", "#7b4fa3", "#4f5b66")


def losses_picture(rows: list[dict[str, Any]], fit: Fit, path: Path) -> None:
    """Write losses.png: for each (N, D) the loss over the learning rate, a line for each batch size.

    Where there is an optimum, the quadratic at its batch is dashed, and the cross is the minimum with the 95% interval
    of the learning rate, by the normal distribution.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    panels = list(zip(groups(rows), fit.optima, strict=True))
    tall = len({size for ((size, _), _), _ in panels})
    wide = math.ceil(len(panels) / tall)
    figure, axes = plt.subplots(tall, wide, figsize=(4 * wide, 3 * tall), dpi=110, squeeze=False, layout="constrained")
    for place, ((_, part), optimum) in zip(axes.flat, panels, strict=False):
        batches = sorted({row["batch_tokens"] for row in part})
        for number, batch in enumerate(batches):
            fine = [row for row in part if row["batch_tokens"] == batch and not row["diverged"]]
            fine.sort(key=lambda row: row["learning_rate"])
            x, y = [row["learning_rate"] for row in fine], [loss_of(row) for row in fine]
            place.plot(x, y, "o-", color=COLOURS[number % len(COLOURS)], linewidth=1, markersize=3, label=f"{batch:,}")
        if not optimum.problem:
            _draw_minimum(place, optimum, fit.variance)
        title = f"N = {part[0]['parameters']:,}, D = {part[0]['tokens']:,}"
        place.set_title(title + (", left out" if optimum.problem else ""), fontsize=9)
        place.set(xscale="log")
        place.xaxis.set_minor_formatter(NullFormatter())  # labels between the powers of ten run into each other
        place.grid(alpha=0.3)
    axes[0, 0].legend(title="batch, tokens", fontsize=7, title_fontsize=7)
    figure.supxlabel("learning rate")
    figure.supylabel("loss, nats a token")
    _save(figure, path)


def _draw_minimum(place: Any, optimum: Optimum, variance: float) -> None:
    error = 1.96 * optimum.errors(variance)[0]
    at = math.log(optimum.learning_rate)
    span = np.linspace(at - 1.2, at + 1.2, 50)
    x = span[:, None] - optimum.centre[0]
    if optimum.with_batch:
        x = np.stack([x[:, 0], np.full(len(x), math.log(optimum.batch_tokens) - optimum.centre[1])], axis=1)
    place.plot(np.exp(span), log_terms(x) @ optimum.coefficients, "--", color="black", linewidth=1)
    ends = [[optimum.learning_rate * (1 - math.exp(-error))], [optimum.learning_rate * (math.exp(error) - 1)]]
    place.errorbar([optimum.learning_rate], [optimum.loss], xerr=ends, fmt="x", color="black", capsize=3)


def law_picture(fit: Fit, path: Path, depth: Callable[[Scale], float]) -> None:
    """Write law.png: the optima over N and over D with the fitted law and its 95% interval, and the public laws.

    `depth` gives C for a scale of which only N and D are known.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    fine = [one for one in fit.optima if not one.problem]
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), dpi=110, squeeze=False, layout="constrained")
    kinds = (
        ("learning_rate", "learning rate", fit.learning_rate, 0),
        ("batch_tokens", "batch, tokens", fit.batch_tokens, 1),
    )
    for line, (key, label, power, column) in zip(axes, kinds, strict=True):
        shown = fine if key == "learning_rate" else [one for one in fine if one.with_batch]
        for place, along, fixed in zip(line, ("N", "D"), ("D", "N"), strict=True):
            for number, value in enumerate(sorted({getattr(one.scale, fixed) for one in shown})):
                colour = COLOURS[number % len(COLOURS)]
                part = [one for one in shown if getattr(one.scale, fixed) == value]
                _draw_optima(place, part, along, key, column, fit.variance, colour, f"{fixed} = {value:,}")
                scales = _line(shown, along, fixed, value, depth)
                _draw_law(place, scales, along, power, colour)
                for law, style in zip(BUILT_IN.values(), (":", "-."), strict=True):
                    public: PowerLaw | None = getattr(law, key)
                    if public is not None:
                        y = [public(scale) for scale in scales]
                        name = law.name if number == 0 else None
                        place.plot([getattr(s, along) for s in scales], y, style, color=colour, linewidth=1, label=name)
            place.set(xscale="log", yscale="log", xlabel=along, ylabel=label)
            place.xaxis.set_minor_formatter(NullFormatter())
            place.grid(alpha=0.3, which="both")
            if shown:
                place.legend(fontsize=7)
            else:
                place.set_title("no optimum inside the grid", fontsize=9)
    figure.suptitle("optima with 95% intervals; the fitted law is solid, the public laws are extrapolated", fontsize=10)
    _save(figure, path)


def _line(
    shown: Iterable[Optimum], along: str, fixed: str, value: float, depth: Callable[[Scale], float]
) -> list[Scale]:
    values = [getattr(one.scale, along) for one in shown]
    made = []
    for x in np.geomspace(min(values), max(values), 30):
        scale = Scale(**{along: float(x), fixed: value, "C": math.nan})
        made.append(scale._replace(C=depth(scale)))
    return made


def _draw_optima(
    place: Any, part: list[Optimum], along: str, key: str, column: int, variance: float, colour: str, label: str
) -> None:
    x = [getattr(one.scale, along) for one in part]
    y = np.array([getattr(one, key) for one in part])
    errors = np.array([1.96 * one.errors(variance)[column] for one in part])
    ends = np.stack([y * (1 - np.exp(-errors)), y * (np.exp(errors) - 1)])
    place.errorbar(x, y, yerr=ends, fmt="o", color=colour, markersize=4, capsize=3, label=label)


def _draw_law(place: Any, scales: list[Scale], along: str, fitted: PowerFit | None, colour: str) -> None:
    if fitted is None:
        return
    x = [getattr(scale, along) for scale in scales]
    place.plot(x, [fitted.power(scale) for scale in scales], color=colour, linewidth=1.4)
    ends = [fitted.power.interval(scale) for scale in scales]
    place.fill_between(x, [end[0] for end in ends if end], [end[1] for end in ends if end], color=colour, alpha=0.12)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    with aside(str(path)) as scratch:
        figure.savefig(scratch, format="png")
    plt.close(figure)

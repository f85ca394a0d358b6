"""The optima of a grid, and the power laws through them with their intervals.

First, for each (N, D), the minimum of a quadratic in log learning rate and log batch through the losses near the best
training; the further a loss lies above the best, the less it counts, because only there is the surface a quadratic.
Then log optimum = a + b log N + c log D by weighted least squares over all (N, D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import linalg, stats

from factory.engine.errors import FactoryError
from model.scaling.grid import groups
from model.scaling.law import Law, PowerLaw, Scale, Variable

NEAR = 2  # steps of the grid to each side of the best training that the quadratic goes through
FLAT = 1e-9  # a second derivative that is rounding
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Optimum:
    """The best learning rate and batch for one (N, D), or why there is none.

    `coefficients` are those of the quadratic, over the `log_terms` of logarithms less `centre`, and `loss` is its value
    at the minimum. `shape` is the covariance of (log learning rate, log batch) before it is multiplied by the variance
    of a loss. `squares` and `freedom` are the sum of squares that the quadratic leaves, and its degrees of freedom.
    """

    scale: Scale
    learning_rate: float = math.nan
    batch_tokens: float = math.nan
    loss: float = math.nan
    centre: tuple[float, ...] = ()
    coefficients: tuple[float, ...] = ()
    shape: tuple[tuple[float, ...], ...] = ()
    squares: float = 0.0
    freedom: int = 0
    with_batch: bool = False
    """Whether the batch was fitted too; else `batch_tokens` is the best of those tried."""
    problem: str = ""

    def errors(self, variance: float) -> tuple[float, ...]:
        """The standard errors of log learning rate and log batch, given the variance of a loss."""
        return tuple(math.sqrt(variance * self.shape[n][n]) for n in range(len(self.shape)))


def loss_of(row: dict[str, Any]) -> float:
    """The loss that counts: held out where there is one, else that of the last part of training."""
    return row["loss"] if row["evaluation_loss"] is None else row["evaluation_loss"]


def log_terms(x: np.ndarray) -> np.ndarray:
    """The terms of a quadratic in the columns of x [points, 1 or 2]: 1, each, each product."""
    count = x.shape[1]
    products = [x[:, i] * x[:, j] for i in range(count) for j in range(i, count)]
    return np.stack([np.ones(len(x)), *x.T, *products], axis=1)


def optimum(rows: Sequence[dict[str, Any]]) -> Optimum:
    """The optimum of one (N, D), from the trainings of its learning rates, batches and seeds.

    With three or more batch sizes the quadratic is in both; with fewer, in the learning rate at the best of them.
    A minimum at or beyond the edge of these trainings is no optimum: `problem` says which edge.
    """
    scale = Scale(rows[0]["parameters"], rows[0]["tokens"], rows[0]["compute"])
    rates, batches = (sorted({row[key] for row in rows}) for key in ("learning_rate", "batch_tokens"))
    fine = [row for row in rows if not row["diverged"]]
    if not fine:
        return Optimum(scale, problem="every training diverged")
    mean: dict[tuple[float, int], list[float]] = {}
    for row in fine:
        mean.setdefault((row["learning_rate"], row["batch_tokens"]), []).append(loss_of(row))
    best = min(mean, key=lambda place: float(np.mean(mean[place])))
    with_batch = len(batches) >= 3
    names = ["learning_rate", "batch_tokens"] if with_batch else ["learning_rate"]
    if not with_batch:
        fine = [row for row in fine if row["batch_tokens"] == best[1]]
    for name, tried, value in zip(names, (rates, batches), best, strict=False):
        at = tried.index(value)
        near = tried[max(0, at - NEAR) : at + NEAR + 1]
        fine = [row for row in fine if row[name] in near]
    centre = np.log(best[: len(names)])
    x = np.log([[row[name] for name in names] for row in fine]) - centre
    return _minimum(scale, x, np.array([loss_of(row) for row in fine]), centre, best[1], names)


def _edge(name: str, value: float, why: str) -> str:
    return f"the minimum in {name} lies at the edge, {value:.3g}: {why}"


def _minimum(
    scale: Scale,
    x: np.ndarray,
    loss: np.ndarray,
    centre: np.ndarray,
    batch: float,
    names: list[str],
) -> Optimum:
    """The minimum of the quadratic through losses [points] at logarithms x [points, variables] around `centre`."""
    terms, count = log_terms(x), len(names)
    if np.linalg.matrix_rank(terms) < terms.shape[1]:
        return Optimum(scale, problem=f"{len(x)} trainings near the best are too few for a quadratic")
    excess = loss - loss.min()
    weight = 1 / (1 + (excess / (np.median(excess) or 1.0)) ** 2)
    weighed = terms * weight[:, None]
    found, *_ = linalg.lstsq(weighed, loss * weight)
    gradient = found[1 : 1 + count]
    curve = np.zeros((count, count))
    curve[np.triu_indices(count)] = found[1 + count :]
    curve = curve + curve.T  # the second derivatives: twice the coefficient of a square, once that of a product
    if linalg.eigvalsh(curve).min() <= FLAT:
        return Optimum(scale, problem="the losses near the best training have no minimum: they are not a bowl")
    inverse = linalg.inv(curve)
    at = -inverse @ gradient
    place, low, high = (np.exp(one + centre) for one in (at, x.min(axis=0), x.max(axis=0)))
    for n, name in enumerate(names):
        if not low[n] < place[n] < high[n]:
            return Optimum(
                scale, problem=_edge(name, place[n], f"around are trainings from {low[n]:.3g} to {high[n]:.3g}")
            )
    # How the minimum moves with the coefficients: d at = -H^-1 (d gradient + d H at).
    moves = np.zeros((count, terms.shape[1]))
    moves[:, 1 : 1 + count] = -inverse
    for term, (i, j) in enumerate(zip(*np.triu_indices(count), strict=True)):
        change = np.zeros((count, count))
        change[i, j] += 1
        change[j, i] += 1
        moves[:, 1 + count + term] = -inverse @ change @ at
    shape = moves @ linalg.inv(weighed.T @ weighed) @ moves.T
    left = (loss - terms @ found) * weight
    return Optimum(
        scale,
        learning_rate=float(place[0]),
        batch_tokens=float(place[1]) if count == 2 else batch,
        loss=float((log_terms(at[None]) @ found)[0]),
        centre=tuple(centre),
        coefficients=tuple(found),
        shape=tuple(map(tuple, shape)),
        squares=float(left @ left),
        freedom=len(loss) - terms.shape[1],
        with_batch=count == 2,
    )


@dataclass(frozen=True)
class PowerFit:
    """A power law through optima, and how well it holds.

    `errors` are the standard errors of intercept and exponents, `scatter` the root of the reduced chi-square (1 where
    the optima lie around the law as their own errors say), `left_out_error` the root mean square of log optimum / law,
    each optimum taken against the law through the others.
    """

    power: PowerLaw
    errors: tuple[float, ...]
    scatter: float
    left_out_error: float

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95% interval of the intercept and of each exponent."""
        assert self.power.t is not None
        names, values = ["intercept", *self.power.exponents], [self.power.intercept, *self.power.exponents.values()]
        return {
            name: (value - self.power.t * error, value + self.power.t * error)
            for name, value, error in zip(names, values, self.errors, strict=True)
        }


def fit_power(
    scales: Sequence[Scale], values: Sequence[float], errors: Sequence[float], variables: Sequence[Variable]
) -> PowerFit:
    """log value = a + sum of exponents times log variable, weighted by 1 / error² of log value.

    The errors count as relative: the covariance is scaled by what the law leaves. A variable that is the same in all
    points cannot be fitted and is left away. FactoryError where there are no more points than unknowns.
    """
    spread = [v for v in variables if len({getattr(scale, v) for scale in scales}) > 1]
    points, unknowns = len(scales), 1 + len(spread)
    x = np.array([[1.0, *(math.log(getattr(scale, v)) for v in spread)] for scale in scales]).reshape(-1, unknowns)
    y, weight = np.log(values), 1 / np.asarray(errors, float)
    if points <= unknowns or np.linalg.matrix_rank(x) < unknowns:
        raise FactoryError(f"{points} optima inside the grid are too few for {unknowns} unknowns")
    found = _weighted(x, y, weight)
    left = (y - x @ found) * weight
    scatter = float(left @ left) / (points - unknowns)
    covariance = scatter * linalg.inv((x * weight[:, None]).T @ (x * weight[:, None]))
    others = [np.arange(points) != n for n in range(points)]
    misses = [
        y[n] - x[n] @ _weighted(x[keep], y[keep], weight[keep])
        for n, keep in enumerate(others)
        if np.linalg.matrix_rank(x[keep]) == unknowns
    ]
    t = float(stats.t.ppf(0.5 + CONFIDENCE / 2, points - unknowns))
    exponents: dict[Variable, float] = dict(zip(spread, found[1:].tolist(), strict=True))
    return PowerFit(
        PowerLaw(float(found[0]), exponents, covariance.tolist(), t),
        tuple(np.sqrt(np.diag(covariance)).tolist()),
        math.sqrt(scatter),
        float(np.sqrt(np.mean(np.square(misses)))) if misses else math.nan,
    )


def _weighted(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return linalg.lstsq(x * weight[:, None], y * weight)[0]


@dataclass(frozen=True)
class Fit:
    """All optima of a grid, the variance of a loss that their quadratics leave, and the laws; None with `problem`."""

    optima: list[Optimum]
    variance: float
    learning_rate: PowerFit | None = None
    batch_tokens: PowerFit | None = None
    problem: str = ""

    def law(self, name: str, source: str) -> Law:
        """The law to save. FactoryError where there is none."""
        if self.learning_rate is None:
            raise FactoryError(self.problem)
        fine = [one for one in self.optima if not one.problem]
        span: dict[Variable, tuple[float, float]] = {
            v: (min(getattr(one.scale, v) for one in fine), max(getattr(one.scale, v) for one in fine))
            for v in ("N", "D")
        }
        both = {"learning_rate": self.learning_rate, "batch_tokens": self.batch_tokens}
        details = {
            "points": len(fine),
            "left_out": [
                {"N": one.scale.N, "D": one.scale.D, "why": one.problem} for one in self.optima if one.problem
            ],
            "loss_error": math.sqrt(self.variance),
            **{
                key: {
                    "intervals": fit.intervals(),
                    "scatter": fit.scatter,
                    "left_out_error": None if math.isnan(fit.left_out_error) else fit.left_out_error,
                }
                for key, fit in both.items()
                if fit is not None
            },
        }
        batch = self.batch_tokens.power if self.batch_tokens else None
        return Law(name, source, self.learning_rate.power, batch, span, details)


def fit(rows: Sequence[dict[str, Any]], batch_by_size: bool = False) -> Fit:
    """The optima of the grid's rows and the laws through those that lie inside it."""
    optima = [optimum(part) for _, part in groups(list(rows))]
    fine = [one for one in optima if not one.problem]
    freedom = sum(one.freedom for one in fine)
    # One variance for all: a few trainings say little of their own. It scales all errors alike, so that where no
    # quadratic leaves anything over, 1 is as good.
    variance = sum(one.squares for one in fine) / freedom if freedom else 1.0
    made = Fit(optima, variance)
    errors = [one.errors(variance or 1.0) for one in fine]
    scales = [one.scale for one in fine]
    try:
        made = replace(
            made,
            learning_rate=fit_power(scales, [one.learning_rate for one in fine], [e[0] for e in errors], ("N", "D")),
        )
    except FactoryError as error:
        return replace(made, problem=f"no law of the learning rate: {error}")
    if not all(one.with_batch for one in fine):
        return replace(made, problem="no law of the batch size: it takes three or more of them")
    variables: tuple[Variable, ...] = ("N", "D") if batch_by_size else ("D",)
    try:
        batch = fit_power(scales, [one.batch_tokens for one in fine], [e[1] for e in errors], variables)
    except FactoryError as error:
        return replace(made, problem=f"no law of the batch size: {error}")
    return replace(made, batch_tokens=batch)

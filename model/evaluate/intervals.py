"""How sure a mean of scores is: 95% intervals, and the difference of two models on the same problems.

Several answers to one problem are not independent: they are drawn together wherever problems are drawn (clustered by
problem), and two models are held against each other problem by problem (paired). Both as in E. Miller, Adding Error
Bars to Evals (arXiv 2411.00640), with the bootstrap in place of the normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from factory.engine.errors import FactoryError

RESAMPLES = 10_000
AT_ONCE = 1 << 20  # numbers that are drawn at once
Z = 1.959964  # of the normal distribution at 97.5%
QUANTILES = (0.025, 0.975)
ROUNDING = 1e-9  # a mean of gains that is not above it is 0


class Estimate(NamedTuple):
    """A mean of scores in 0..1 and its 95% interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """By how much the mean score of one model is above another's, with its 95% interval."""

    value: float
    low: float
    high: float
    p: float
    """One-sided: how likely a difference above 0 would be without any, by the share of resamples that are not above
    it. Never 0: 1 of 10,001 at least (Davison and Hinkley, Bootstrap Methods, §4.2), nor below what the signs of as
    many gains could say, 2 to the minus number of them."""


def estimate(scores: Sequence[float], problems: Sequence[Hashable] = ()) -> Estimate:
    """The mean of scores in 0..1; with `problems`, which names the problem of each, the mean over problems of their
    means.

    The interval is Wilson's where each problem has one score and it is 0 or 1; else a bootstrap's over the problems.
    """
    means = np.array(list(by_problem(scores, problems).values())) if problems else np.asarray(scores, float)
    value = float(means.mean())
    alone = len(means) == len(scores) and bool(np.isin(means, (0.0, 1.0)).all())
    # A bootstrap of equal scores sees no variance, and would be sure of a 1 after one question.
    if alone or bool((means == means[0]).all()):
        return Estimate(value, *wilson(value, len(means)))
    low, high = np.quantile(resampled_means(means), QUANTILES).tolist()
    return Estimate(value, min(low, value), max(high, value))


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of `count` independent trials (E. B. Wilson, JASA 22, 1927)."""
    middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    # Rounding must not put the interval of none or of all beside its estimate.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def by_problem(scores: Sequence[float], problems: Sequence[Hashable]) -> dict[Hashable, float]:
    """The mean score of each problem."""
    found: dict[Hashable, list[float]] = {}
    for problem, score in zip(problems, scores, strict=True):
        found.setdefault(problem, []).append(score)
    return {problem: sum(each) / len(each) for problem, each in found.items()}


def difference(better: Mapping[Hashable, float], than: Mapping[Hashable, float]) -> Difference:
    """The mean of `better` minus that of `than`, both by problem, by a paired bootstrap over the problems.

    Where all gains are the same, of which a bootstrap would be sure, the interval is Wilson's of (1 + gain) / 2.
    FactoryError where they are not of the same problems.
    """
    if better.keys() != than.keys():
        raise FactoryError(
            f"{len(better.keys() ^ than.keys())} problems were asked of one model alone: ask both the same ones"
        )
    # Thirds are not exact in binary: two that are alike must be one kind, and their sum 0 where it is.
    gains = np.array([score - than[problem] for problem, score in better.items()]).round(12)
    value = float(gains.mean())
    drawn = resampled_means(gains)
    low, high = np.quantile(drawn, QUANTILES).tolist()
    if value and bool((gains == gains[0]).all()):
        low, high = (2 * side - 1 for side in wilson((1 + value) / 2, len(gains)))
    above = int((drawn > ROUNDING).sum())
    p = max((1 + RESAMPLES - above) / (1 + RESAMPLES), 0.5 ** np.count_nonzero(gains))
    return Difference(value, min(low, value), max(high, value), p)


def resampled_means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """The means of RESAMPLES samples with replacement, each of as many values.

    How often a value comes in such a sample is multinomial, so that equal values, of which scores are full, are drawn
    together.
    """
    kinds, counts = np.unique(values, return_counts=True)
    random = np.random.default_rng(seed)
    shares = counts / len(values)
    step = max(1, AT_ONCE // len(kinds))
    parts = (
        random.multinomial(len(values), shares, size=min(step, RESAMPLES - begin)) @ kinds
        for begin in range(0, RESAMPLES, step)
    )
    return np.concatenate(list(parts)) / len(values)

"""Intervals and differences: beside scipy's, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from factory.engine.errors import FactoryError
from model.evaluate.intervals import RESAMPLES, by_problem, difference, estimate, resampled_means, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (8, 10), (0, 10), (424, 1000), (1000, 1000)])
def test_wilson_is_scipys(right: int, count: int) -> None:
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert estimate([1.0] * right + [0.0] * (count - right))[1:] == pytest.approx(tuple(expected), abs=1e-6)


def test_the_bootstrap_is_scipys() -> None:
    """Of problems with two answers each, which are alike; as if all were independent it would be too narrow."""
    random = np.random.default_rng(1)
    skill = random.beta(0.3, 0.3, 500)
    scores = random.random((500, 2)) < skill[:, None]
    problems = np.repeat(np.arange(500), 2).tolist()
    found = estimate(scores.ravel().astype(float).tolist(), problems)
    means = scores.mean(axis=1)
    expected = stats.bootstrap((means,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=random)
    assert found.value == pytest.approx(scores.mean())
    assert found[1:] == pytest.approx(tuple(expected.confidence_interval), abs=2e-3)
    half = 1.96 * means.std(ddof=1) / math.sqrt(500)
    assert found[1:] == pytest.approx((found.value - half, found.value + half), abs=3e-3)
    low, high = wilson(found.value, 1000)
    assert found.high - found.low > 1.2 * (high - low)


def test_the_paired_difference_is_scipys() -> None:
    """On the same problems two models are closer to each other than their own intervals say."""
    random = np.random.default_rng(2)
    hard = random.random(400)
    one, other = (random.random(400) < hard**power for power in (1.3, 1.0))
    before, after = (dict(enumerate(side.astype(float).tolist())) for side in (one, other))
    found = difference(after, before)
    gains = other.astype(float) - one
    expected = stats.bootstrap((gains,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=random)
    assert found.value == pytest.approx(gains.mean())
    assert found[1:3] == pytest.approx(tuple(expected.confidence_interval), abs=4e-3)
    assert found.p == pytest.approx(stats.ttest_1samp(gains, 0, alternative="greater").pvalue, abs=1e-2)
    with pytest.raises(FactoryError, match="2 problems were asked of one model alone"):
        difference(after, {**dict.fromkeys(range(399), 0.0), "other": 1.0})


def test_resamples_are_those_of_single_values() -> None:
    """Drawn by how often each value comes, they have the distribution of samples drawn one by one."""
    values = np.array([0.0] * 5 + [0.5] * 3 + [1.0] * 4)
    direct = np.random.default_rng(3).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    assert stats.ks_2samp(resampled_means(values), direct).pvalue > 0.01
    assert len(resampled_means(np.random.default_rng(0).random(3000))) == RESAMPLES, "in parts, where many differ"


SCORES = st.lists(st.tuples(st.integers(0, 8), st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))), min_size=1)


@given(SCORES)
def test_an_interval_holds_its_estimate(answers: list[tuple[int, float]]) -> None:
    problems, scores = zip(*answers, strict=True)
    found = estimate(scores, problems)
    means = by_problem(scores, problems)
    assert found.value == pytest.approx(np.mean(list(means.values())))
    assert found.low <= found.value <= found.high
    assert found.low >= -1e-12 and found.high <= 1 + 1e-12
    assert found.low < found.high, "a few answers are never sure"
    same = difference(means, means)
    assert same == (0, 0, 0, 1), "a model is not above itself"


@given(SCORES, st.integers(0, 99))
def test_a_difference_turns_round(answers: list[tuple[int, float]], seed: int) -> None:
    problems, scores = zip(*answers, strict=True)
    one = by_problem(scores, problems)
    other = dict(zip(one, np.random.default_rng(seed).random(len(one)).tolist(), strict=True))
    there, back = difference(one, other), difference(other, one)
    assert there.value == pytest.approx(-back.value) and there.low <= there.value <= there.high
    assert 0 < there.p <= 1 and there.p + back.p > 0.97, "no difference counts for neither"


@pytest.mark.parametrize("thirds", [[1, 1, 1, -1, -1, -1], [2, -1, -1, 0], [1, 1, 1, 1, 1, -2, -3]])
def test_a_difference_of_nothing_is_none_where_it_is_not_exact_in_binary(thirds: list[int]) -> None:
    """Three answers a problem: 1 - 2/3 is not 1/3, and six such gains do not add up to 0."""
    one = dict(enumerate((3 + gain) / 6 for gain in thirds))
    other = dict.fromkeys(one, 0.5)
    there, back = difference(one, other), difference(other, one)
    whole = difference({n: float(gain) for n, gain in enumerate(thirds)}, dict.fromkeys(one, 0.0))
    assert there.p == whole.p and there.p + back.p > 1.1, "no difference counts for neither"


def test_a_few_problems_are_never_sure() -> None:
    for count in (1, 3, 10):
        found = difference(dict.fromkeys(range(count), 1.0), dict.fromkeys(range(count), 0.0))
        assert found.p == pytest.approx(max(0.5**count, 1 / (1 + RESAMPLES)))
        assert found.low < found.value == found.high == 1
    assert difference({1: 1.0, 2: 0.5}, {1: 0.0, 2: 0.25}).p == 0.25


def test_intervals_cover_what_is_true() -> None:
    """Of 300 draws about 95% hold the true value: for greedy answers, for two samples a problem, for a difference."""
    random = np.random.default_rng(4)
    held = np.zeros(3)
    draws, count = 300, 300
    for _ in range(draws):
        before, after = random.beta(0.5, 0.7, count), random.beta(0.8, 0.7, count)
        sides = [(random.random((count, 2)) < skill[:, None]).astype(float) for skill in (before, after)]
        problems = np.repeat(np.arange(count), 2).tolist()
        greedy = estimate(sides[0][:, 0].tolist())
        sampled = estimate(sides[0].ravel().tolist(), problems)
        gain = difference(*(by_problem(side.ravel().tolist(), problems) for side in reversed(sides)))
        truth = 0.5 / 1.2, 0.8 / 1.5 - 0.5 / 1.2
        held += (
            greedy.low <= truth[0] <= greedy.high,
            sampled.low <= truth[0] <= sampled.high,
            gain.low <= truth[1] <= gain.high,
        )
    assert (np.abs(held / draws - 0.95) < 0.03).all(), held / draws

"""Agreement of critics: the coefficients are those of the reference implementations."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.report import agreement

ITEMS = st.integers(2, 4).flatmap(
    lambda raters: st.lists(st.tuples(*[st.sampled_from([True, False, None])] * raters), min_size=1, max_size=30)
)


def numbers(items: list[tuple[bool | None, ...]]) -> np.ndarray:
    """Raters by items, NaN where there is no vote."""
    return np.array([[np.nan if vote is None else float(vote) for vote in item] for item in items]).T


def same(ours: float | None, theirs: float) -> bool:
    return ours is None if np.isnan(theirs) else ours == pytest.approx(theirs, abs=1e-9)


@given(items=ITEMS)
@settings(deadline=None)
def test_alpha_is_krippendorffs(items):
    reference = pytest.importorskip("krippendorff")
    found = agreement.krippendorff(Counter(items))
    data = numbers([item for item in items if sum(vote is not None for vote in item) > 1])
    if not data.size or len(np.unique(data[~np.isnan(data)])) < 2:
        assert found is None  # the reference raises, or says 1, where all votes are the same
    else:
        assert same(found, reference.alpha(reliability_data=data, level_of_measurement="nominal"))


@given(items=ITEMS)
@settings(deadline=None)
def test_kappa_is_cohens(items):
    from sklearn.metrics import cohen_kappa_score

    both = [item[:2] for item in items if None not in item[:2]]
    found = agreement.cohen(Counter(items), 0, 1)
    votes = np.array(both, dtype=bool).reshape(-1, 2)
    if not both or len(set(votes.ravel().tolist())) < 2:
        assert found is None
    else:
        assert same(found, cohen_kappa_score(votes[:, 0], votes[:, 1]))
        assert agreement.share(Counter(items), 0, 1) == pytest.approx((votes[:, 0] == votes[:, 1]).mean())


@given(items=ITEMS)
@settings(deadline=None)
def test_kappa_is_fleiss(items):
    """Of data without gaps, alpha = kappa + (1 - kappa) / votes: both measure the same, alpha as of a sample."""
    kappa = agreement.fleiss(Counter(items))
    voting = [said for said in zip(*items, strict=True) if any(vote is not None for vote in said)]
    full = [item for item in zip(*voting, strict=True) if None not in item]
    alpha = agreement.krippendorff(Counter(full))
    if kappa is None:
        assert alpha is None
    else:
        assert alpha == pytest.approx(kappa + (1 - kappa) / (len(full) * len(full[0])), abs=1e-9)


def test_published_examples():
    # Cohen's kappa of 50 applications read by two (Wikipedia, "Cohen's kappa", example): 0.4.
    applications = {(True, True): 20, (True, False): 5, (False, True): 10, (False, False): 15}
    assert agreement.cohen(applications, 0, 1) == pytest.approx(0.4)
    assert agreement.share(applications, 0, 1) == pytest.approx(0.7)
    # Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), binary data of two observers: 0.095.
    meg, owen = "0100000000", "1110010010"
    votes = Counter((a == "1", b == "1") for a, b in zip(meg, owen, strict=True))
    assert agreement.krippendorff(votes) == pytest.approx(0.095, abs=5e-4)


def test_a_critic_without_opinions_leaves_the_others_theirs():
    votes = {(True, True): 6, (False, False): 3, (False, True): 1}
    ranked = {(*pattern, None): count for pattern, count in votes.items()}
    assert agreement.fleiss(ranked) == agreement.fleiss(votes) == pytest.approx(0.7802, abs=1e-4)


def test_a_name_of_a_critic_may_hold_any_sign():
    ((critics, votes),) = agreement.read({"votes a b=1 c=0=0 d=-": 2}).items()
    assert critics == ("a b", "c=0", "d") and votes == {(True, False, None): 2}


def test_a_tally_is_read_and_shown():
    tally = {"votes correct=1 reward=1": 6, "votes correct=0 reward=0": 3, "votes correct=0 reward=1": 1, "pairs": 4}
    tally["votes correct=1 reward=-"] = 2
    ((critics, votes),) = agreement.read(tally).items()
    assert critics == ("correct", "reward") and votes[(True, None)] == 2 and sum(votes.values()) == 12
    shown = list(agreement.lines(tally))
    assert shown[0] == "votes of correct reward on 12 responses: 11 50.0%, 00 25.0%, 1- 16.7%, 01 8.3%"
    assert shown[1] == "correct and reward agree on 90.0%, Cohen's kappa 0.783"
    assert shown[2].startswith("Fleiss' kappa 0.780, Krippendorff's alpha 0.791")
    assert not list(agreement.lines({"pairs": 4}))

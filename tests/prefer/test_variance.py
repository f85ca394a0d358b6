"""Variance: a row a prompt, with what its samples' rewards come to."""

from __future__ import annotations

import statistics

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.verify.check import columns
from tests.engine.build import build, check_law, content, make
from tests.prefer.samples import read, source

COLUMNS = {
    **{"prompt": pa.large_string(), "gold": pa.int64(), "response": pa.large_string(), "sample": pa.int32()},
    **columns("verdict"),
}
REWARDS = st.lists(st.lists(st.sampled_from([None, 0.0, 0.25, 1.0]), min_size=1, max_size=8), max_size=12)


def rows_of(rewards: list[list[float | None]]) -> list[dict[str, object]]:
    return [
        {"id": f"q{n}-{k}", "prompt": f"p{n}", "gold": n, "response": "x", "sample": k, "verdict_score": reward}
        for n, some in enumerate(rewards)
        for k, reward in enumerate(some)
    ]


@given(rewards=REWARDS, keep=st.sampled_from(["varied", "all"]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_the_variance(tmp_path_factory, rewards, keep):
    folder = tmp_path_factory.mktemp("variance")
    read_ = source(folder, rows_of(rewards), COLUMNS)
    built = build(make(read_, {"use": "variance.Variance", "keep": keep}), folder / "runs")
    check_law(built)
    assert built.columns.keys() == {"id", "text", "prompt", "gold", "samples", "reward_mean", "reward_variance"}
    found = read(built, "select id, prompt, gold, samples, reward_mean, reward_variance from rows order by gold")
    expected = []
    for n, some in enumerate(rewards):
        told = [one for one in some if one is not None]
        if keep == "all" or len(set(told)) > 1:
            mean, variance = (statistics.mean(told), statistics.pvariance(told)) if told else (None, None)
            expected.append((f"q{n}", f"p{n}", n, len(told), mean, variance))
    assert [row[:4] for row in found] == [row[:4] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert row[4:] == (None, None) if wanted[4] is None else row[4:] == pytest.approx(wanted[4:], abs=1e-6)
    if rewards:
        tally = built.funnel[-1]["tally"]
        varied = sum(len({one for one in some if one is not None}) > 1 for some in rewards)
        assert (tally.get("prompts with variance", 0), tally.get("prompts without variance", 0)) == (
            varied,
            len(rewards) - varied,
        )


def test_the_same_bytes_with_any_workers(tmp_path):
    rewards = [[float((n * k) % 3 == 0) for k in range(1, 9)] for n in range(700)]
    recipe = make(source(tmp_path, rows_of(rewards), COLUMNS, 4), {"use": "variance.Variance"})
    first, second = (build(recipe, tmp_path / str(workers), workers) for workers in (0, 2))
    assert content(first) == content(second)


def test_a_reward_that_is_no_number_is_none_and_is_told(tmp_path):
    rows = rows_of([[1.0, float("nan"), 0.0], [float("inf"), 1.0], [float("nan")]])
    step = {"use": "variance.Variance", "keep": "all"}
    built = build(make(source(tmp_path, rows, COLUMNS), step), tmp_path / "runs")
    found = read(built, "select samples, reward_mean, reward_variance from rows order by id")
    assert found == [(2, 0.5, 0.25), (1, 1.0, 0.0), (0, None, None)]
    assert built.funnel[-1]["tally"] == {
        "prompts with variance": 1,
        "prompts without variance": 2,
        "samples whose reward is not a number": 3,
    }


def test_rewards_are_numbers(tmp_path):
    with pytest.raises(FactoryError, match="holds large_string: rewards are numbers"):
        step = {"use": "variance.Variance", "reward": "verdict_reason"}
        build(make(source(tmp_path, rows_of([[1.0]]), COLUMNS), step), tmp_path / "runs")


def test_a_row_has_no_samples_reward(tmp_path):
    rows = [{"id": f"q-{k}", "prompt": "p", "response": "x", "sample": k, "reward": float(k)} for k in range(3)]
    read_ = source(tmp_path, rows, {**COLUMNS, "reward": pa.float64()})
    built = build(make(read_, {"use": "variance.Variance", "reward": "reward"}), tmp_path / "runs")
    assert "reward" not in built.columns and read(built, "select reward_mean from rows") == [(1.0,)]

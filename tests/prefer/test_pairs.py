"""Pairs: the chosen passes every critic that has an opinion, the rejected fails one, and length says nothing."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.engine.step import Tally
from factory.prefer.pairs import Pairs
from factory.teacher.samples import normalised
from factory.verify.check import columns
from tests.engine.build import build, check_law, content, make
from tests.prefer.samples import Row, read, source

COLUMNS = {
    "prompt": pa.large_string(),
    "gold": pa.large_string(),
    "response": pa.large_string(),
    "sample": pa.int32(),
    "model": pa.large_string(),
    **columns("correct"),
    **columns("reward"),
}


def sample(prompt: str, text: str, correct: bool | None = None, reward: float | None = None, **more: Any) -> Row:
    """A response with the opinions of two critics; the second passes from 0.5 on and doubts what is near it."""
    row = {"prompt": prompt, "gold": "g", "response": text, "sample": 0, "model": "m", **more}
    if correct is not None:
        row |= {"correct": correct, "correct_score": float(correct), "correct_confidence": 1.0}
    if reward is not None:
        sure = max(reward, 1 - reward)
        row |= {"reward": reward >= 0.5, "reward_score": reward, "reward_reason": "", "reward_confidence": sure}
    return row


def paired(rows: list[Row], **options: Any) -> tuple[list[Row], Counter[str]]:
    """The pairs of rows, and what was told, from the step alone, given two batches."""
    schema = pa.schema({"id": pa.large_string(), **COLUMNS})
    whole = pa.Table.from_pylist([{"id": f"r{n}", **row} for n, row in enumerate(rows)], schema)
    (batch,) = whole.to_batches()
    found: list[Row] = []
    told: Counter[str] = Counter()
    for one in Pairs(critics=("correct", "reward"), **options)(iter([batch.slice(0, 3), batch.slice(3)])):
        if isinstance(one, Tally):
            told.update(one.counts)
        else:
            found += one.to_pylist()
    return found, told


OPINIONS = st.tuples(st.sampled_from([True, False, None]), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, None]))
TEXTS = st.lists(st.sampled_from(["a", "A", "bb", "ccc", " "]), max_size=4).map(" ".join)
SAMPLES = st.lists(st.tuples(st.integers(0, 3), TEXTS, OPINIONS), min_size=1, max_size=25).map(
    lambda drawn: [sample(f"p{p}", text, *said) for p, text, said in sorted(drawn, key=lambda one: one[0])]
)


@given(
    rows=SAMPLES,
    vote=st.sampled_from(["weighted", "majority", "minimum"]),
    margin=st.sampled_from([0.0, 0.3]),
    most=st.integers(1, 4),
    balance=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_laws_hold_of_any_samples(rows, vote, margin, most, balance):
    pairs, told = paired(rows, vote=vote, margin=margin, most=most, balance=balance)
    by_id = {f"r{n}": row for n, row in enumerate(rows)}
    for pair in pairs:
        chosen, rejected = by_id[pair["chosen_id"]], by_id[pair["rejected_id"]]
        opinions = [[row.get("correct"), row.get("reward")] for row in (chosen, rejected)]
        assert True in opinions[0] and False not in opinions[0] and False in opinions[1]
        assert chosen["prompt"] == rejected["prompt"] == pair["prompt"]
        assert (pair["chosen"], pair["rejected"]) == (chosen["response"], rejected["response"])
        assert pair["margin"] >= margin - 1e-6
        assert pair["chosen_score"] - pair["rejected_score"] == pytest.approx(pair["margin"], abs=1e-5)
    texts = [(p["prompt"], normalised(p["chosen"]), normalised(p["rejected"])) for p in pairs]
    assert len(set(texts)) == len(texts) and all(a != b for _, a, b in texts)
    assert all(count <= most for count in Counter(p["prompt"] for p in pairs).values())
    assert len({p["id"] for p in pairs}) == len(pairs)
    assert sum(n for name, n in told.items() if name.startswith("votes ")) == len(rows)
    prompts = {row["prompt"] for row in rows}
    assert sum(n for name, n in told.items() if name.startswith("prompts ")) == len(prompts)
    assert told["prompts with pairs"] == len({p["prompt"] for p in pairs})
    if not margin and vote == "majority":  # whoever passes all is ahead of whoever fails one
        for prompt in prompts:
            mine = [row for row in rows if row["prompt"] == prompt]
            good = {normalised(r["response"]) for r in mine if True in _said(r) and False not in _said(r)}
            bad = {normalised(r["response"]) for r in mine if False in _said(r)}
            possible = sum(a != b for a in good for b in bad)
            assert sum(p["prompt"] == prompt for p in pairs) == min(most, possible)


def _said(row: Row) -> list[bool | None]:
    return [row.get("correct"), row.get("reward")]


@pytest.mark.parametrize(
    ("vote", "chosen", "rejected"),
    [
        # One is sure of a score of 1, the other is so of .8 by .8; of the rejected 0 by 1 and .6 by .6.
        ("weighted", (1 * 1 + 3 * 0.8 * 0.8) / (1 + 3 * 0.8), (0 + 3 * 0.6 * 0.6) / (1 + 3 * 0.6)),
        ("majority", 1.0, 0.5),
        ("minimum", 0.8, 0.0),
    ],
)
def test_votes(vote, chosen, rejected):
    rows = [sample("p", "right", True, 0.8, sample=4, id="p1-4"), sample("p", "wrong", False, 0.6)]
    (pair,), told = paired(rows, vote=vote, weights=(1.0, 3.0))
    assert (pair["chosen_score"], pair["rejected_score"]) == (pytest.approx(chosen), pytest.approx(rejected))
    assert told["votes correct=1 reward=1"] == told["votes correct=0 reward=1"] == 1
    assert paired(rows, vote=vote, weights=(1.0, 3.0), margin=0.9)[1]["prompts without pairs: margin too small"] == 1


def test_a_row_is_the_prompts_with_the_pair():
    rows = [sample("p", "right", True, sample=4, id="q-4"), sample("p", "wrong", False, sample=7, id="q-7")]
    (pair,), _ = paired(rows)
    assert pair == {
        **{"id": "q-pair0", "prompt": "p", "chosen": "right", "rejected": "wrong", "gold": "g"},
        **{"chosen_id": "q-4", "rejected_id": "q-7", "chosen_score": 1.0, "rejected_score": 0.0, "margin": 1.0},
    }


def test_what_trainers_would_read_beside_a_pair_is_left_out(tmp_path):
    more = {"messages": [{"role": "user", "content": "p"}], "completion": "x", "completions": ["x"]}
    rows = [sample("p", "right", True, **more), sample("p", "wrong", False, **more)]
    types = {"messages": pa.list_(MESSAGE), "completion": pa.large_string(), "completions": pa.list_(pa.large_string())}
    step = {"use": "pairs.Pairs", "critics": ["correct"]}
    built = build(make(source(tmp_path, rows, {**COLUMNS, **types}), step), tmp_path / "runs")
    assert not built.columns.keys() & more.keys() and built.counts["rows_kept"] == 1
    asked = {**step, "prompt": "messages"}
    built = build(make(source(tmp_path, rows, {**COLUMNS, **types}), asked, version="2"), tmp_path / "runs")
    assert read(built, "select prompt[1].content from rows") == [("p",)]


def test_why_prompts_have_no_pair():
    rows = [
        sample("a", "x", True),
        sample("a", "y", True),
        sample("b", "x", False),
        sample("c", "x"),
        sample("d", "x", True),
    ]
    pairs, told = paired([*rows, sample("d", "X ", False)])
    assert not pairs
    assert {name: n for name, n in told.items() if name.startswith("prompts")} == {
        "prompts without pairs: nothing fails": 1,
        "prompts without pairs: nothing passes": 2,
        "prompts without pairs: the same text": 1,
    }


def answers(count: int, seed: int) -> list[Row]:
    """Right answers that are long more often than wrong ones."""
    chance = random.Random(seed)
    rows = []
    for n in range(count):
        for k in range(8):
            right = chance.random() < 0.5
            rows.append(sample(f"p{n}", f"{k}" * chance.randint(10, 200 if right else 120), right, sample=k))
    return rows


def test_length_says_nothing_of_which_one_is_chosen():
    rows = answers(200, 0)
    sums, longer = {}, {}
    for balance in (True, False):
        pairs, told = paired(rows, balance=balance)
        sums[balance] = abs(sum(len(p["chosen"]) - len(p["rejected"]) for p in pairs)) / len(pairs)
        longer[balance] = told["pairs whose chosen response is longer"] / len(pairs)
        assert len(pairs) > 550
    assert sums[True] < 1 < 30 < sums[False]
    assert 0.3 < longer[True] < 0.6 < longer[False]


def test_different_responses_come_first():
    rows = [*(sample("p", f"right {n}", True) for n in range(3)), *(sample("p", f"wrong {n}", False) for n in range(3))]
    pairs, _ = paired(rows)
    assert len({p["chosen"] for p in pairs}) == len({p["rejected"] for p in pairs}) == 3


def test_the_same_bytes_with_any_workers_and_every_prompt_is_told(tmp_path):
    rows = [row | {"id": f"{row['prompt']}-{row['sample']}"} for row in answers(40, 1)]
    step = {"use": "pairs.Pairs", "critics": ["correct"], "most": 2}
    recipe = make(source(tmp_path, rows, COLUMNS, 4), step)
    built = [build(recipe, tmp_path / str(workers), workers) for workers in (0, 2)]
    assert content(built[0]) == content(built[1])
    check_law(built[0])
    assert built[0].counts["rows_consumed"] == len(rows)
    tally = built[0].funnel[-1]["tally"]
    assert sum(n for name, n in tally.items() if name.startswith("prompts")) == 40
    # What is written lets anyone recount: each id is a sample's, and each pair is of one prompt's.
    ids = {row["id"] for row in rows}
    for chosen, rejected in read(built[0], "select chosen_id, rejected_id from rows"):
        assert {chosen, rejected} <= ids and chosen.split("-")[0] == rejected.split("-")[0]


def test_samples_that_are_apart_are_told_with_the_cure(tmp_path):
    rows = [sample("p", "x", True), sample("q", "x", True), sample("p", "y", False)]
    recipe = make(source(tmp_path, rows, COLUMNS), {"use": "pairs.Pairs", "critics": ["correct"]})
    with pytest.raises(FactoryError, match=r"do not stand together \('p'\): put a step order\.Together"):
        build(recipe, tmp_path / "runs")


@given(rows=SAMPLES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_law_of_counts(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("pairs")
    step = {"use": "pairs.Pairs", "critics": ["correct", "reward"]}
    built = build(make(source(folder, rows, COLUMNS), step), folder / "runs")
    check_law(built)
    assert (built.counts["rows_consumed"], built.counts["rows_made"]) == (len(rows), len(paired(rows)[0]))


@pytest.mark.parametrize("vote", ["weighted", "minimum"])
def test_a_score_that_is_no_number_is_none(vote):
    nan = {"reward_score": float("nan"), "reward_confidence": float("nan")}
    rows = [sample("p", "right", True) | nan, sample("p", "wrong", False, 0.6), sample("p", "no", False) | nan]
    pairs, _ = paired(rows, vote=vote)
    assert {pair["rejected"] for pair in pairs} == {"wrong", "no"}
    assert all(pair["chosen_score"] == 1 and 0 < pair["margin"] <= 1 for pair in pairs)


def test_without_balance_the_widest_margin_goes_first():
    wrong = {"near": 0.4, "far": 0.0, "between": 0.2}
    rows = [sample("p", "right", True), *(sample("p", text, False, reward) for text, reward in wrong.items())]
    pairs, _ = paired(rows, balance=False)
    assert [pair["rejected"] for pair in pairs] == ["far", "between", "near"]


MESSAGE = pa.struct([("role", pa.large_string()), ("content", pa.large_string()), ("name", pa.large_string())])


def test_messages_stay_as_they_are(tmp_path):
    prompt = [{"role": "user", "content": "1+1?", "name": "Ann"}]
    rows = [sample(prompt, "2", True, sample=0), sample(prompt, "3", False, sample=1)]
    types = {**COLUMNS, "prompt": pa.list_(MESSAGE)}
    built = build(make(source(tmp_path, rows, types), {"use": "pairs.Pairs", "critics": ["correct"]}), tmp_path / "a")
    ((asked, chosen),) = read(built, "select prompt, chosen from rows")
    assert asked == prompt and chosen == [{"role": "assistant", "content": "2"}]
    with pytest.raises(FactoryError, match="a prompt is a text or a list of messages"):
        wrong = source(tmp_path / "b", [], {**COLUMNS, "prompt": pa.list_(pa.int32())})
        build(make(wrong, {"use": "pairs.Pairs", "critics": ["correct"]}), tmp_path / "c")


def test_a_sample_without_a_text_fails_alone(tmp_path):
    rows = [sample("p", "2", True), sample("p", None, False), sample("p", "3", False), sample(None, "3", True)]
    built = build(make(source(tmp_path, rows, COLUMNS), {"use": "pairs.Pairs", "critics": ["correct"]}), tmp_path / "a")
    check_law(built)
    assert (built.counts["rows_failed"], built.counts["rows_kept"]) == (2, 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"critics": []}, "name at least one"),
        ({"critics": ["correct", "correct"]}, "each once"),
        ({"critics": ["correct"], "weights": [1.0, 2.0]}, "a number above 0 for each"),
        ({"critics": ["corect"]}, "did you mean 'correct'"),
        ({"critics": ["correct"], "prompt": "sample"}, "a prompt is a text or a list of messages"),
        ({"critics": ["correct"], "vote": "mean"}, "should be 'weighted'"),
    ],
)
def test_mistakes_show_before_any_work(tmp_path, options, told):
    with pytest.raises(FactoryError, match=told):
        build(make(source(tmp_path, [sample("p", "x")], COLUMNS), {"use": "pairs.Pairs", **options}), tmp_path / "runs")

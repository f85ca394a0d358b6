"""Steps of chains: one rule cuts them, and roll-outs of an honest model label them as they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.engine.manifest import Manifest
from factory.engine.step import Failure
from factory.synth.steps import MADE, Labels, Split
from factory.teacher.checkpoint import encode, tokenizer_of
from factory.teacher.request import Message, Request
from factory.verify.steps import Rule, split
from tests.chains import Chain, go_on, plant
from tests.engine.build import build, check_law, make
from tests.prefer.samples import source
from tests.teacher.server import Reply, Server, answer, prompt_of

TEXTS = st.text(st.sampled_from("ab1.!?。”) \n\r\t"))


@given(TEXTS, st.sampled_from(["lines", "sentences"]))
def test_steps_are_the_text_cut_and_cut_again_the_same(text: str, rule: Rule):
    steps = split(text, rule)
    assert "".join(steps) == text
    assert all(step.strip() for step in steps) or steps == [text]
    assert all("\n" not in step.strip() for step in steps)
    for end in range(len(steps)):  # a prefix of the steps has these steps: what is judged is what was labelled
        assert split("".join(steps[:end]), rule) == steps[:end]


@pytest.mark.parametrize(
    ("text", "rule", "steps"),
    [
        ("Add.\n\n  2 + 2 = 4\n#### 4", "lines", ["Add.\n\n", "  2 + 2 = 4\n", "#### 4"]),
        ("One. Two.", "lines", ["One. Two."]),
        (
            "1. Mr. Bo has 3.5 kg. He buys 2!\nSo 5.5.",
            "sentences",
            ["1. Mr. Bo has 3.5 kg.", " He buys 2!\n", "So 5.5."],
        ),
        ("他有三个。再买两个！“共五个。”", "sentences", ["他有三个。", "再买两个！", "“共五个。”"]),
        ("", "lines", []),
    ],
)
def test_where_steps_begin(text, rule, steps):
    assert split(text, rule) == steps


def test_another_rule_is_told():
    with pytest.raises(FactoryError, match="by lines or sentences, not by 'words'"):
        split("a", "words")


def model(slip: float = 0.03, broken: str = "\0") -> Any:
    """A script for the server: it goes on from a chain, sample by sample; what holds `broken` it refuses."""

    def script(path: str, body: dict[str, Any]) -> Reply:
        prompt = prompt_of(body)
        if broken in prompt:
            return Reply(400, {"error": {"message": "no such sum"}})
        said = answer(body)
        for choice in said["choices"]:
            seed = hashlib.sha256(f"{prompt}|{body['seed'] + choice['index']}".encode()).digest()
            choice["text"] = go_on(prompt, Random(seed), slip)
        return Reply(body=said)

    return script


def labelled(folder: Path, chains: list[Chain], script: Any = None, keep: str = "all", n: int = 8, **options: Any):
    """The chains through the whole recipe: prefixes, roll-outs, verdicts, labels."""
    columns = ["prompt", "response", "gold", "kind"]
    rows = [
        {"id": f"c{number}", "text": "", "prompt": one.prompt, "response": "".join(one.steps), "gold": f"={one.gold}"}
        | {"kind": "planted"}
        for number, one in enumerate(chains)
    ]
    (folder / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    verify = {"use": "verify.Verify", "check": "tests.verify.verifiers:ends_with", "columns": ["ending=gold"]}
    with Server(script or model()) as server:
        asked = {"model": "scripted", "column": "prompt", "n": n, "urls": [server.url], "cache": str(folder / "cache")}
        recipe = make(
            {"use": "ingest.JsonLines", "glob": str(folder / "chains.jsonl"), "columns": columns},
            {**verify, "keep": "all"},
            {"use": "steps.Split"},
            {"use": "respond.Respond", **asked},
            {"use": "steps.Join"},
            {**verify, "keep": keep},
            {"use": "steps.Labels", **options},
            version="-".join(map(str, options.values())) or "1",
        )
        return build(recipe, folder / "runs")


def rows(built: Manifest, kind: str = "rows") -> list[dict[str, Any]]:
    return duckdb.sql(f"select * from '{built.folder}/{kind}/*.parquet'").to_arrow_table().to_pylist()


def test_roll_outs_of_an_honest_model_tell_the_truth(tmp_path):
    rng = Random(0)
    chains = [plant(rng, length=rng.randint(1, 5), wrong=number % 2 == 0) for number in range(60)]
    built = labelled(tmp_path, chains)
    check_law(built)
    made = rows(built)
    assert [row["id"] for row in made] == [f"c{number}" for number in range(60)]
    agree = []
    for row, chain in zip(made, chains, strict=True):
        assert (row["prompt"], row["completions"], row["kind"]) == (chain.prompt, chain.steps, "planted")
        assert row["verdict"] == row["labels"][-1] == chain.right
        assert row["rollouts"] == [8] * (len(chain.steps) - 1) + [0]
        assert row["labels"] == [share > 0 for share in row["shares"]]
        agree += [a == b for a, b in zip(row["labels"], chain.labels, strict=True)]
    assert len(agree) > 150 and sum(agree) / len(agree) > 0.97
    told = {"id", "text", "prompt", "gold", "kind", "model", "completions", "labels", "shares", "rollouts", "verdict"}
    assert set(made[0]) - {"meta", "metadata"} == told


def test_what_follows_a_wrong_step_and_how_many_must_be_right(tmp_path):
    rng = Random(1)
    chains = [plant(rng, length=4, wrong=number % 3 > 0) for number in range(24)]
    careless = model(slip=0.5)
    kept = {
        option: rows(labelled(tmp_path, chains, careless, after=option)) for option in ("estimated", "wrong", "cut")
    }
    recovered = 0
    for estimated, wrong, cut in zip(*kept.values(), strict=True):
        labels = estimated["labels"]
        first = labels.index(False) if False in labels else len(labels)
        recovered += any(labels[first:])
        assert wrong["labels"] == [place < first for place in range(len(labels))]
        assert cut["labels"] == labels[: first + 1] and len(cut["completions"]) == len(cut["shares"]) == len(
            cut["labels"]
        )
    assert recovered  # or this test says nothing of what follows
    for row in rows(labelled(tmp_path, chains, careless, threshold=0.5)):
        assert row["labels"] == [share >= 0.5 for share in row["shares"]]


def test_chains_whose_roll_outs_failed_are_told(tmp_path):
    chains = [plant(Random(number), length=3) for number in range(8)]
    second = chains[3].prompt + "".join(chains[3].steps[:2])
    built = labelled(tmp_path, chains, model(broken=second))
    check_law(built)
    assert {row["id"] for row in rows(built)} == {f"c{number}" for number in range(8)} - {"c3"}
    failed = {row["id"]: row["error"] for row in rows(built, "failed")}
    assert failed["c3"].startswith("step 2 has 0 of 8 roll-outs") and "no such sum" in failed["c3-2-0"]


def test_roll_outs_that_were_dropped_are_told(tmp_path):
    chains = [plant(Random(number), length=3, wrong=False) for number in range(6)]
    built = labelled(tmp_path, chains, model(slip=0.5), keep="passed")
    failed = [row["error"] for row in rows(built, "failed") if row["step"] == "steps.Labels"]
    assert len(failed) == 6 and all('keep = "all"' in error for error in failed)


MESSAGES = pa.list_(pa.struct([("role", pa.large_string()), ("content", pa.large_string())]))


def batch(**columns: Any) -> pa.RecordBatch:
    count = len(columns["response"])
    whole = {"id": [f"c{number}" for number in range(count)], "verdict": [True] * count} | columns
    prompt = pa.large_string() if isinstance(columns["prompt"][0], str) else MESSAGES
    types = {"verdict": pa.bool_(), "prompt": prompt, "sample": pa.int32()}
    return pa.record_batch({name: pa.array(v, types.get(name, pa.large_string())) for name, v in whole.items()})


def test_messages_are_gone_on_from_by_the_assistant():
    asked = [{"role": "user", "content": "2 + 2 + 2 =?"}]
    (made,) = list(Split()(iter([batch(prompt=[asked], response=["2 + 2 = 4\n4 + 2 = 6\n6"])])))
    assert made.column("id").to_pylist() == ["c0-1", "c0-2"]
    told = [row[-1] for row in made.column("prompt").to_pylist()]
    assert told == [{"role": "assistant", "content": text} for text in ("2 + 2 = 4\n", "2 + 2 = 4\n4 + 2 = 6\n")]
    rolled = made.append_column("sample", pa.array([0, 0], pa.int32()))
    (back,) = list(Labels()(iter([rolled])))
    assert back.column("prompt").to_pylist() == [asked] and back.column("labels").to_pylist() == [[True] * 3]


def test_a_chain_without_steps_or_verdict_fails_alone():
    given = batch(prompt=[[]] * 3, response=[" \n", "a\nb\nc", "a"], verdict=[True, True, None])
    made = list(Split()(iter([given])))
    failed = {one.id: one.error for one in made if isinstance(one, Failure)}
    assert failed == {"c0": "the chain has no step: it is empty", "c2": "the chain has no verdict"}
    assert [one.num_rows for one in made if not isinstance(one, Failure)] == [2]


def test_the_last_roll_out_without_a_verdict_is_missed_too():
    (made,) = list(Split()(iter([batch(prompt=[[]], response=["a\nb"])])))
    rolled = made.take(pa.array([0, 0])).append_column("sample", pa.array([0, 1], pa.int32()))
    said = rolled.schema.get_field_index("verdict")
    (lost,) = list(Labels()(iter([rolled.set_column(said, "verdict", pa.array([True, None]))])))
    assert isinstance(lost, Failure) and "step 1 has 1 of 2 roll-outs" in lost.error


def test_roll_outs_that_are_missing_from_every_step_are_missed():
    (made,) = list(Split()(iter([batch(prompt=["p"], response=["a\nb\nc"])])))
    rolled = made.append_column("sample", pa.array([0, 0], pa.int32()))
    (lost,) = list(Labels(rollouts=2)(iter([rolled])))
    assert isinstance(lost, Failure) and "step 1 has 1 of 2 roll-outs" in lost.error
    (whole,) = list(Labels(rollouts=1)(iter([rolled])))
    assert whole.column("rollouts").to_pylist() == [[1, 1, 0]]


def test_a_chain_without_a_prompt_fails_alone(tmp_path):
    columns = {"prompt": pa.large_string(), "response": pa.large_string(), "verdict": pa.bool_()}
    chains = [{"prompt": prompt, "response": "a", "verdict": True} for prompt in ("p", None, "q")]
    built = build(make(source(tmp_path / "in", chains, columns), {"use": "steps.Split"}), tmp_path / "runs")
    check_law(built)
    assert [row["id"] for row in rows(built)] == ["r0-1", "r2-1"] and built.counts["rows_failed"] == 1


def test_roll_outs_that_do_not_stand_together_are_refused():
    (made,) = list(Split()(iter([batch(prompt=[[]] * 2, response=["a\nb\nc", "a\nb"])])))
    rolled = made.append_column("sample", pa.array([0] * 3, pa.int32()))
    with pytest.raises(FactoryError, match="chain c0 do not stand together"):
        list(Labels()(iter([rolled.take(pa.array([0, 2, 1]))])))
    with pytest.raises(FactoryError, match="'verdict' holds double"):
        Split().schema(pa.schema([("verdict", pa.float64())]))


def test_an_engine_in_this_process_continues_what_the_assistant_has_begun(checkpoint):
    tokenizer = tokenizer_of(str(checkpoint), "")
    asked, begun = Message("user", "What is 1 + 1 + 1?"), Message("assistant", "1 + 1 = 2\n")
    alone = tokenizer.decode(encode(tokenizer, Request(messages=(asked,)), "small"))
    assert tokenizer.decode(encode(tokenizer, Request(messages=(asked, begun)), "small")) == alone + begun.content


@pytest.mark.parametrize("every", [20, 4, 1])
def test_failures_among_good_rows_end_no_run_and_those_of_all_rows_do(tmp_path, every):
    verdict = {"verdict": pa.bool_()}
    count = 110 * every
    chains = [{"prompt": "p", "response": "" if n % every == 0 else "a\nb", "verdict": True} for n in range(count)]
    columns = {"prompt": pa.large_string(), "response": pa.large_string(), **verdict}
    cut = make(source(tmp_path / "chains", chains, columns), {"use": "steps.Split"}, name="cut")
    rolled = [
        {"prompt": "pa\n", "chain_id": f"c{n}", "chain_verdict": True, "chain_steps": ["a\n", "b"], "chain_step": 1}
        | {"sample": sample, "verdict": None if n % every == 0 else True}
        for n in range(count)
        for sample in range(2)
    ]
    types = {**{name: Split().adds()[name] for name in MADE}, "sample": pa.int32()}
    read_ = source(tmp_path / "rolled", rolled, {"prompt": pa.large_string(), **types, **verdict})
    for recipe, use in ((cut, "steps.Split"), (make(read_, {"use": "steps.Labels"}, name="labels"), "steps.Labels")):
        if every == 1:
            with pytest.raises(RuntimeError, match=f"{use}: all of its first 100 rows failed"):
                build(recipe, tmp_path / "runs")
        else:
            built = build(recipe, tmp_path / "runs")
            check_law(built)
            assert (built.counts["rows_failed"], built.counts["rows_kept"]) == (110, count - 110)


@pytest.mark.parametrize("other", ["the same", "other steps", "another prompt"])
def test_two_chains_of_an_id_are_told_and_not_merged(other):
    prompt, response = {"the same": "p", "other steps": "p", "another prompt": "q"}[other], "a\nb\nc"
    said = [response, "d\ne" if other == "other steps" else response]
    (made,) = Split()(iter([batch(id=["x", "x"], prompt=["p", prompt], response=said)]))
    # No number comes twice but where the chains are the same: of the second all roll-outs are later ones.
    late = [0, 0] + [int(other != "the same")] * (made.num_rows - 2)
    rolled = made.append_column("sample", pa.array(late, pa.int32()))
    with pytest.raises(FactoryError, match="two chains have the id x: give them other ids"):
        list(Labels()(iter([rolled])))

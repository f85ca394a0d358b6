"""What a recipe or a dataset of post-training has that cannot be is told before any work, in a line; rows with nulls
are left out and counted."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.engine.errors import FactoryError
from model.config import ProbeConfig
from model.posttrain import data, run
from model.probe import Probe
from tests.model.posttrain import losses, recipe

SAMPLE = '[sample]\nrewards = ["tests.verify.verifiers:has_a_one"]\nsamples = 4\nmax_new_tokens = 6\n'


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    """A dataset of these rows; the word that makes a recipe learn from it, with nothing held out."""
    (folder / "rows").mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "rows/0.parquet")
    shards = [{"path": "rows/0.parquet", "rows": len(rows)}]
    manifest = {"name": "own", "version": "1", "key": folder.name, "columns": table.column_names, "rows": shards}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return f"data.path={folder}"


def chat(*contents: str | None) -> list[dict[str, str | None]]:
    return [{"role": ("user", "assistant")[turn % 2], "content": said} for turn, said in enumerate(contents)]


# What each stage learns from.
PAIR: dict[str, Any] = {"prompt": "1+1=?", "chosen": "2", "rejected": "3"}
TALK: dict[str, Any] = {"messages": chat("1+1=?", "2")}
SAID: dict[str, Any] = {"prompt": "1+1=?", "response": "2"}
CHAIN: dict[str, Any] = {"prompt": "1+1+1=\n", "completions": ["1+1=2\n", "2+1=3\n"], "labels": [True, False]}
TURNS: dict[str, Any] = {"prompt": chat("1+1=?"), "chosen": chat("", "2")[1:], "rejected": chat("", "3")[1:]}


@pytest.mark.parametrize(
    ("stage", "word", "told"),
    [
        ("dpo", "steps=-1", r"train\.steps = -1: must not be negative"),
        ("dpo", "micro_batch_size=-2", r"train\.micro_batch_size = -2: must not be negative"),
        ("dpo", "train.seed=-1", r"train\.seed = -1: must not be negative"),
        ("dpo", "max_length=-1", r"train\.max_length = -1: must not be negative"),
        ("dpo", "evaluate_every=-5", r"train\.evaluate_every = -5: must be above 0"),
        ("dpo", "save_every=-5", r"train\.save_every = -5: must be above 0"),
        ("grpo", "sample.clip=-0.5", r"sample\.clip = -0\.5: must be above 0"),
        ("grpo", "top_p=0.0", r"sample\.top_p = 0\.0: must be above 0"),
        ("grpo", "top_p=1.5", r"sample\.top_p = 1\.5: must be above 0 and at most 1"),
        ("grpo", "temperature=0", r"sample\.temperature = 0\.0: must be above 0"),
        ("dpo", "optimizer.p=2", r"optimizer\.p = 2\.0: must lie between 0 and 1"),
        ("dpo", "alpha=-1", r"optimizer\.alpha = -1\.0: must lie between 0 and 1"),
        ("reward", "merge=dare", "stage reward trains a head"),
        ("prm", "merge=dare", "stage prm trains a head"),
        ("online_dpo", "sample.beta=0.1", r"sample\.beta: stage online_dpo has none"),
        ("online_dpo", "sample.clip=0.1", r"sample\.clip: stage online_dpo has none"),
        ("online_dpo", "iterations=2", r"sample\.iterations: stage online_dpo has none"),
    ],
)
def test_an_option_that_cannot_be_is_refused_as_the_recipe_is_read(tmp_path, stage, word, told):
    with pytest.raises(FactoryError, match=told):
        recipe(tmp_path, stage, tmp_path / "out", word, "model.base=x", more=SAMPLE)


@pytest.mark.parametrize(
    ("stage", "word", "told"),
    [
        ("sft", "max_length=256", r"max_length = 256, but max_position_embeddings of .*base is 128: lower it"),
        ("grpo", "max_length=256", r"max_length = 256, but max_position_embeddings"),
        ("grpo", "max_new_tokens=128", r"max_new_tokens = 128: leaves no room .* max_position_embeddings = 128"),
        ("dpo", "merge=dare", r"model\.base = 'nowhere': no config\.json there"),
        ("grpo", 'columns={endnig="ending"}', r"no reward has a parameter 'endnig' \(did you mean 'ending'"),
        ("grpo", 'rewards=["/missing/hf"]', r"'/missing/hf': no such checkpoint folder"),
        ("grpo", 'rewards=["correct"]', "neither a folder of a reward model nor module:function"),
    ],
)
def test_what_does_not_fit_the_start_or_the_rewards_is_refused_before_rows_are_read(
    place, tmp_path, monkeypatch, stage, word, told
):
    monkeypatch.setattr(run, "read", None)
    more = SAMPLE.replace("has_a_one", "ends_with")
    with pytest.raises(FactoryError, match=told):
        run.begin(recipe(place, stage, tmp_path / "out", "model.base=nowhere", word, more=more))


def test_without_a_length_it_is_the_starts_where_that_is_less(place, tmp_path, capsys):
    made = run.begin(recipe(place, "sft", tmp_path / "out"))
    assert made.recipe.train.max_length == 128
    assert json.loads((tmp_path / "out/recipe.json").read_text())["train"]["max_length"] == 128
    assert "train.max_length = 128: max_position_embeddings" in capsys.readouterr().err
    assert recipe(place, "sft", tmp_path / "out").within(4096).train.max_length == 2048


@pytest.mark.parametrize(
    ("stage", "good", "wrong"),
    [
        ("dpo", PAIR, {"prompt": None}),
        ("dpo", PAIR, {"chosen": None}),
        ("dpo", TURNS, {"prompt": chat(None)}),
        ("dpo", TURNS, {"rejected": []}),
        ("reward", PAIR, {"prompt": None}),
        ("reward", TURNS, {"chosen": []}),
        ("sft", SAID, {"prompt": None}),
        ("sft", TALK, {"messages": None}),
        ("sft", TALK, {"messages": chat("1+1=?", None)}),
        ("sft", TALK, {"messages": chat("1+1=?", "2", None, "3")}),
        ("sft", TALK, {"messages": [None]}),
        ("grpo", {"prompt": "1+1=?"}, {"prompt": None}),
        ("prm", CHAIN, {"prompt": None}),
        ("prm", CHAIN, {"completions": None}),
        ("prm", CHAIN, {"completions": ["1+1=2\n", None]}),
        ("prm", CHAIN, {"labels": None}),
    ],
)
def test_rows_with_nulls_are_left_out_and_counted(place, tmp_path, capsys, stage, good, wrong):
    rows = [good | wrong if row == 2 else good for row in range(8)]
    words = (write(tmp_path / "data", rows), "evaluation_share=0.01", "batch_size=4")
    trainer = run.STAGES[stage](run.begin(recipe(place, stage, tmp_path / "out", *words, more=SAMPLE)))
    assert trainer.train_dataset.num_rows == 7
    assert "warning: 1 " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "rows", "told"),
    [
        ("dpo", [TURNS | {"prompt": "7+7=?"}], r'"7\+7=\?": .*one form'),
        ("reward", [TURNS | {"prompt": "7+7=?"}], r'"7\+7=\?": .*one form'),
        (
            "dpo",
            [TURNS | {"prompt": [{"from": "user", "value": "7+7=?"}]}],
            r".*7\+7=\?.*: prompt must be a text, or a list",
        ),
        ("sft", [{"messages": "7+7=?"}], r'"7\+7=\?": messages must be a list in which each has role'),
        ("grpo", [{"prompt": 77}], "77: prompt must be a text"),
        ("prm", [CHAIN | {"labels": [True]}], r".*2 steps and 1 labels"),
    ],
)
def test_a_row_of_another_form_is_named(place, tmp_path, stage, rows, told):
    words = (write(tmp_path / "data", rows), "evaluation_share=0", "batch_size=4")
    made = run.begin(recipe(place, stage, tmp_path / "out", *words, more=SAMPLE))
    with pytest.raises(FactoryError, match=f"{tmp_path}/data: ({told})"):
        run.STAGES[stage](made)


@pytest.mark.parametrize(("stage", "row"), [("dpo", PAIR), ("sft", SAID), ("prm", CHAIN), ("grpo", {"prompt": ""})])
def test_held_out_rows_of_which_none_is_left_are_not_evaluated_on(place, tmp_path, capsys, stage, row):
    rows: list[dict[str, Any]] = []
    for number in range(200):
        asked = f"{number}+{number}=?\n"
        held = data._held(json.dumps(asked), 0.1)
        none = {"chosen": None, "response": "", "labels": None, "prompt": asked * 30 if stage == "grpo" else asked}
        rows.append(row | {"prompt": asked} | ({name: none[name] for name in none if name in row} if held else {}))
    if stage == "grpo":  # the prompts of another length are held out themselves
        rows = [one for one in rows if data._held(json.dumps(one["prompt"]), 0.1) == (len(one["prompt"]) > 60)]
    words = (write(tmp_path / "data", rows), "evaluation_share=0.1", "steps=1")
    trainer = run.STAGES[stage](run.begin(recipe(place, stage, tmp_path / "out", *words, more=SAMPLE)))
    assert trainer.eval_dataset is None and trainer.args.eval_strategy == "no"
    assert "no held-out row is left" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["grpo", "online_dpo"])
def test_a_reward_may_ask_for_the_prompt_and_any_column(place, tmp_path, stage):
    asked = [f"Question: {number}+{number}=?" for number in range(16)]
    word = write(tmp_path / "data", [{"prompt": one, "completion": f"of {one}"} for one in asked])
    more = SAMPLE.replace("has_a_one", "answers")
    words = (word, "evaluation_share=0", "batch_size=8", "steps=1")
    out = run.train(recipe(place, stage, tmp_path / "out", *words, more=more))
    assert len(losses(out)) == 1
    config = ProbeConfig(data=str(tmp_path / "data"), reward="tests.verify.verifiers:answers")
    probe = Probe(config, place / "base", 1000)
    checks = probe.verifier(["1"] * 16, probe.columns)
    assert all(check.passed for check in checks)


def test_what_is_none_is_not_told():
    told = io.StringIO()
    callback = run.Told(told)
    state = type("State", (), {"global_step": 1, "max_steps": 1})()
    callback.on_log(None, state, None, {"loss": 0.5, "reward": None})
    assert "loss 0.5" in told.getvalue() and "reward" not in told.getvalue()


def test_the_order_of_a_messages_fields_does_not_decide_what_is_held_out():
    turned = [{"content": "1+1=?", "role": "user"}]
    (one,) = data._prompts(pa.Table.from_pylist([{"prompt": turned}]))
    (other,) = data._prompts(pa.Table.from_pylist([{"messages": [*chat("1+1=?"), *turned]}]))
    assert one == other == '[{"role": "user", "content": "1+1=?"}]'

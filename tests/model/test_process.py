"""A process reward model finds the planted step, ranks chains by it, and is what transformers and the critics read."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForTokenClassification

from factory.corpus.tokens import train_bpe
from factory.engine.errors import FactoryError
from factory.engine.step import Context, Memo
from factory.prefer.critics import Process
from factory.synth.steps import STEPS
from model.checkpoint import save_hf
from model.config import ModelConfig
from model.data import read_tokenizer
from model.posttrain import run
from model.posttrain.config import PostRecipe, load_recipe
from model.posttrain.data import load_tokenizer
from model.posttrain.heads import ProcessModel, RewardModel
from model.posttrain.process import stepwise
from model.transformer import Transformer
from tests.chains import Chain, plant, problem, worked
from tests.engine.build import build, make
from tests.model.posttrain import losses, stopped, train_on_two

EASY: Any = {"most": 1, "top": 5}


def write(folder: Path, chains: list[Chain], rule: str = "lines") -> Path:
    """A dataset in the form that steps.Labels leaves, with the true labels."""
    (folder / "rows").mkdir(parents=True)
    columns: dict[str, Any] = {
        "id": pa.array([f"c{number}" for number in range(len(chains))]),
        "prompt": pa.array([one.prompt for one in chains], pa.large_string()),
        "completions": pa.array([one.steps for one in chains], STEPS),
        "labels": pa.array([one.labels for one in chains], pa.list_(pa.bool_())),
    }
    table = pa.table(columns)
    pq.write_table(table, folder / "rows" / "part.parquet")
    manifest = {
        "name": "chains",
        "version": "1",
        "key": f"chains of {folder.name}",
        "rows": [{"path": "rows/part.parquet", "rows": len(chains)}],
        "columns": {field.name: str(field.type) for field in table.schema},
        "recipe": {"steps": [{"use": "steps.Split", "options": {"rule": rule}}]},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def recipe(folder: Path, start: Path, out: Path, *words: str, more: str = "") -> PostRecipe:
    path = out.with_suffix(".toml")
    path.write_text(f'stage = "prm"\n[model]\nstart = "{start}"\n[data]\npath = "{folder / "data"}"\n{more}')
    given = ("batch_size=16", "threads=1", "learning_rate=3e-3", "beta2=0.95", "weight_decay=0", f"out={out}")
    return load_recipe(path, [*given, *words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small checkpoint that has learnt nothing, and planted chains."""
    made = tmp_path_factory.mktemp("process")
    rng = Random(0)
    chains = [plant(rng, rng.randint(2, 4), rng.random() < 0.5, **EASY) for _ in range(4000)]
    train_bpe((one.prompt + "".join(one.steps) for one in chains[:500]), 300, made / "tok")
    ids = read_tokenizer(made / "tok")[1]
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = ModelConfig(
        vocab_size=len(ids), num_hidden_layers=2, max_position_embeddings=128, initializer_range=0.1, **shape
    )
    model = Transformer(config)
    model.initialise(0)
    save_hf(model, made / "base", made / "tok", ids["<|im_end|>"])
    write(made / "data", chains)
    return made


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    """The folder of the process reward model."""
    words = ("steps=450", "save_every=450", "evaluate_every=450")
    return run.train(recipe(folder, folder / "base", folder / "prm", *words)) / "checkpoint" / "hf"


def judged(model: Path, chains: list[Chain]) -> list[dict[str, Any]]:
    """What critics.Process says of chains."""
    critic = Process(model=str(model))
    critic.open(Context())
    texts = {"prompt": [one.prompt for one in chains], "response": ["".join(one.steps) for one in chains]}
    batch = pa.record_batch({name: pa.array(column, pa.large_string()) for name, column in texts.items()})
    made: Any = critic(batch, Memo(len(chains)))
    return list(getattr(made, "batch", made).to_pylist())


def test_it_finds_the_planted_step(folder, trained):
    rng = Random(1)
    chains = [plant(rng, 4, **EASY) for _ in range(200)]
    said = [int(row["process_reason"].removeprefix("step ").partition(":")[0]) - 1 for row in judged(trained, chains)]
    found = sum(place == one.wrong for place, one in zip(said, chains, strict=True)) / 200
    last = sum(one.wrong == 3 for one in chains) / 200
    print(f"the wrong step of 200 chains of four: found {found:.3f}, by chance .25, always the last {last:.3f}")
    assert last < 0.35 and found > 0.6
    (told,) = duckdb.sql(
        f"select eval_accuracy, eval_first_wrong, eval_all_right from '{folder}/prm/metrics.parquet' "
        "where eval_loss is not null"
    ).fetchall()
    assert min(told) > 0.55


def test_best_of_four_by_its_rank_is_right_more_often_than_one_by_chance(trained, tmp_path):
    rows = []
    for number in range(100):
        rng = Random(1000 + number)
        values = problem(rng, 4, **EASY)
        chains = [worked(values), *(worked(values, rng, EASY["top"]) for _ in range(3))]
        for place, one in enumerate(rng.sample(chains, 4)):
            row = {"id": f"p{number}-{place}", "text": "", "prompt": f"{one.prompt}", "response": "".join(one.steps)}
            rows.append(row | {"gold": f"={one.gold}"})
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"use": "ingest.JsonLines", "glob": str(tmp_path / "samples.jsonl")}
    built = build(
        make(
            {**source, "columns": ["prompt", "response", "gold"]},
            {"use": "critics.Process", "model": str(trained)},
            {"use": "rejection.RejectionSample", "verdicts": [], "rank": "process_score", "keep": 1},
        ),
        tmp_path / "runs",
    )
    sql = f"select count(distinct prompt), avg((response like '%' || gold)::int) from '{built.folder}/rows/*.parquet'"
    ((prompts, right),) = duckdb.sql(sql).fetchall()
    print(f"best of four, of {prompts} problems: {right:.3f} right, by chance .25")
    assert prompts > 30 and right > 0.5


def test_it_is_what_transformers_reads(trained):
    ours, theirs = ProcessModel.load(trained), AutoModelForTokenClassification.from_pretrained(trained)
    assert (theirs.config.step_rule, theirs.config.step_separator) == ("lines", "")
    assert theirs.config.id2label == {0: "wrong", 1: "right"}
    ids = torch.randint(0, ours.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    with torch.no_grad():
        a, b = ours(ids, mask).logits, theirs(ids, attention_mask=mask).logits
    torch.testing.assert_close(a[mask.bool()], b[mask.bool()], rtol=1e-4, atol=1e-4)
    with pytest.raises(FactoryError, match="another than that of a RewardModel"):
        RewardModel.load(trained)


def test_the_code_of_transformers_learns_the_same_and_training_goes_on_where_it_was_stopped(
    folder, trained, tmp_path, monkeypatch
):
    few = ("steps=6", "save_every=3", "evaluation_share=0", "warmup_share=0", f"data.path={tmp_path / 'data'}")
    write(tmp_path / "data", [plant(Random(number), **EASY) for number in range(100)])
    ours = run.train(recipe(folder, trained, tmp_path / "ours", *few))
    theirs = run.train(recipe(folder, trained, tmp_path / "theirs", *few, "implementation=transformers"))
    assert losses(ours) == pytest.approx(losses(theirs), abs=2e-3)
    stopped(recipe(folder, trained, tmp_path / "half", *few), 5, monkeypatch)
    half = run.train(recipe(folder, trained, tmp_path / "half", *few))
    before, after = (ProcessModel.load(out / "checkpoint" / "hf").state_dict() for out in (ours, half))
    assert all(torch.equal(before[name], after[name]) for name in before)
    small = run.train(recipe(folder, trained, tmp_path / "small", *few, "micro_batch_size=4"))
    assert losses(ours) == pytest.approx(losses(small), abs=2e-3)  # the mean is over steps, however they are cut


@pytest.mark.slow
def test_two_processes_train_as_one(folder, tmp_path):
    words = ("steps=3", "evaluation_share=0", "micro_batch_size=4", "warmup_share=0")
    alone = run.train(recipe(folder, folder / "base", tmp_path / "alone", *words))
    recipe(folder, folder / "base", tmp_path / "both")
    given = ("batch_size=16", "threads=1", "learning_rate=3e-3", "beta2=0.95", "weight_decay=0", f"out={tmp_path}/both")
    train_on_two(tmp_path / "both.toml", *given, *words)
    assert losses(tmp_path / "both") == pytest.approx(losses(alone), rel=1e-5)


def test_labels_stand_at_the_last_token_of_each_step(folder):
    tokenizer = load_tokenizer(folder / "base")
    chain = {"prompt": "1+1+1=\n", "completions": ["1+1=2\n", "2+1=3"], "labels": [True, False]}
    (row,) = stepwise(pa.Table.from_pylist([chain]), tokenizer, 99, "").to_pylist()
    assert tokenizer.decode(row["input_ids"]) == "1+1+1=\n1+1=2\n2+1=3"
    at = [place for place, label in enumerate(row["labels"]) if label != -100]
    assert [row["labels"][place] for place in at] == [1, 0]
    assert [tokenizer.decode(row["input_ids"][: place + 1]) for place in at] == [
        "1+1+1=\n1+1=2\n",
        "1+1+1=\n1+1=2\n2+1=3",
    ]
    (ended,) = stepwise(pa.Table.from_pylist([chain]), tokenizer, 99, ";").to_pylist()
    assert tokenizer.decode(ended["input_ids"]) == "1+1+1=\n1+1=2;2+1=3;"
    (cut,) = stepwise(pa.Table.from_pylist([chain]), tokenizer, at[1], "").to_pylist()
    assert [label for label in cut["labels"] if label != -100] == [1]
    assert not stepwise(pa.Table.from_pylist([chain]), tokenizer, at[0], "").num_rows
    for wrong, told in (
        ({"labels": [True]}, "2 steps and 1 labels"),
        ({"completions": ["", "a"]}, "without a token"),
        ({"labels": [0.9, 0.4]}, r"the label 0\.9: it must be true"),
        ({"labels": [1, 2]}, "the label 2: it must"),
        ({"labels": [-1, 0]}, "the label -1: it must"),
    ):
        with pytest.raises(FactoryError, match=told):
            stepwise(pa.Table.from_pylist([chain | wrong]), tokenizer, 99, "")


def test_mistakes_are_told_before_training(folder, tmp_path):
    write(tmp_path / "data", [plant(Random(number)) for number in range(40)], rule="sentences")
    with pytest.raises(FactoryError, match="chains were cut by 'sentences'"):
        run.train(recipe(tmp_path, folder / "base", tmp_path / "out"))
    words = ("max_length=3", "evaluation_share=0")
    with pytest.raises(FactoryError, match="or no labelled step within"):
        run.train(recipe(folder, folder / "base", tmp_path / "short", *words))

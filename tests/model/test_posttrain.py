"""Post-training by TRL's trainers: our model is as transformers' to them; stages learn, go on where they stopped, and
refuse what was made for another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from factory.corpus.tokens import train_bpe
from factory.engine.errors import FactoryError
from model.posttrain import data, run
from model.posttrain.config import DataConfig, load_recipe
from model.posttrain.data import conversations, load_tokenizer
from model.posttrain.language_model import LanguageModel
from model.posttrain.provenance import hashes
from model.posttrain.rewards import Scorer, model_reward
from model.recipe import read_table
from tests.conftest import REPOSITORY
from tests.engine.build import build, make
from tests.model.posttrain import losses, recipe, stopped, weights

FEW = "[sample]\nmax_new_tokens = 8\n"


def test_it_is_transformers_model_to_trl(place):
    ours, theirs = LanguageModel.load(place / "base"), AutoModelForCausalLM.from_pretrained(place / "base")
    assert set(ours.state_dict()) == set(theirs.state_dict())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, ours.config.vocab_size, (3, 20), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :5] = mask[1, -4:] = mask[2, :2] = mask[2, -3:] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        a = ours(ids, mask).logits
        b = theirs(ids, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(a[mask.bool()], b[mask.bool()], rtol=1e-4, atol=1e-5)
        packed = torch.cat([torch.arange(12), torch.arange(8)])[None]
        parts = [theirs(part).logits for part in ids[:1].split([12, 8], dim=1)]
        together = ours(ids[:1], position_ids=packed).logits
        torch.testing.assert_close(together, torch.cat(parts, 1), rtol=1e-4, atol=1e-5)


def test_labels_are_what_the_assistant_says(place):
    tokenizer = load_tokenizer(place / "base")
    turns = [("user", "1+1=?"), ("assistant", "2"), ("user", "2+2=?"), ("assistant", "4")]
    chat = [{"role": role, "content": content} for role, content in turns]
    (row,) = conversations(pa.table({"messages": [chat]}), tokenizer, 128).to_pylist()
    whole = tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n")
    assert tokenizer.decode(row["input_ids"]) == whole
    spoken = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]
    assert tokenizer.decode(spoken) == "2<|im_end|>4<|im_end|>"
    assert not conversations(pa.table({"prompt": ["1+1=?"] * 2, "response": ["2", "2"]}), tokenizer, 3).num_rows


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sft_learns_and_goes_on_where_it_was_stopped(place, tmp_path, monkeypatch, optimizer):
    words = ("max_length=128", f"optimizer.name={optimizer}")
    whole = run.train(recipe(place, "sft", tmp_path / "whole", *words))
    told = losses(whole)
    assert len(told) == 6 and told[-1] < told[0] - 0.3
    said = json.loads((whole / "recipe.json").read_text())
    assert said["dataset"]["name"] == "chats" and len(said["dataset"]["key"]) > 10

    stopped(recipe(place, "sft", tmp_path / "half", *words), 5, monkeypatch)
    shutil.rmtree(tmp_path / "half" / "cache")  # what was made of the rows is made anew to the same bytes
    saved = tmp_path / "half/checkpoint/trainer"
    last = max(saved.iterdir(), key=lambda path: path.name)
    assert last.name < "checkpoint-6"
    shutil.copytree(last, saved / "checkpoint-6", ignore=shutil.ignore_patterns("whole", "trainer_*"))  # by a kill
    half = run.train(recipe(place, "sft", tmp_path / "half", *words))
    before, after = weights(whole), weights(half)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(FactoryError, match=r"another training: \[optimizer\] differs"):
        run.train(recipe(place, "sft", tmp_path / "half", *words, "learning_rate=1e-4"))


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_what_has_ended_takes_no_step_more(place, tmp_path, stage):
    """The middle of an epoch: the same command again leaves the same weights and losses."""
    made = recipe(place, stage, tmp_path / "out", "max_length=128", "steps=2")
    out = run.train(made)
    before, told = (out / "checkpoint/hf/model.safetensors").read_bytes(), losses(out)
    assert run.train(made) == out
    assert (out / "checkpoint/hf/model.safetensors").read_bytes() == before
    assert losses(out) == told and len(told) == 2


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_of_sft_is_each_conversation_once(place, tmp_path, packing):
    words = (f"packing={str(packing).lower()}", "steps=0", "epochs=2", "max_length=128", "evaluation_share=0")
    out = run.train(recipe(place, "sft", tmp_path / "out", *words, "batch_size=24", "micro_batch_size=8"))
    tokens, steps = duckdb.sql(f"select max(num_tokens), max(step) from '{out}/metrics.parquet'").fetchall()[0]
    tokenizer = data.load_tokenizer(place / "base")
    chats = duckdb.sql(f"select messages from '{place}/runs/chats@1/rows/*.parquet'").fetch_arrow_table()
    said = data.conversations(chats, tokenizer, 128)["input_ids"].to_pylist()
    assert steps == 2 * 3 and tokens == 2 * sum(map(len, said))


def test_dpo_is_that_of_transformers_and_merges_online(place, tmp_path):
    ours = run.train(recipe(place, "dpo", tmp_path / "ours"))
    theirs = run.train(recipe(place, "dpo", tmp_path / "theirs", "implementation=transformers"))
    assert losses(ours) == pytest.approx(losses(theirs), abs=2e-3)
    assert losses(ours)[-1] < losses(ours)[0] - 0.02
    merged = run.train(recipe(place, "dpo", tmp_path / "merged", "merge=ties", "p=0.3", f"base={place}/base"))
    assert losses(merged)[-1] < losses(merged)[0] and losses(merged) != losses(ours)
    with pytest.raises(FactoryError, match=r"say model\.base"):
        recipe(place, "dpo", tmp_path / "without", "merge=dare")
    with pytest.raises(FactoryError, match="merges AdamW's steps"):
        recipe(place, "dpo", tmp_path / "muon", "merge=dare", f"base={place}/base", "optimizer.name=muon")


def test_a_reward_model_is_read_by_transformers(place, tmp_path):
    out = run.train(recipe(place, "reward", tmp_path / "reward", "steps=12", "learning_rate=1e-2"))
    assert losses(out)[-1] < 0.6
    folder = out / "checkpoint" / "hf"
    tokenizer = load_tokenizer(folder)
    texts = ("Question: 1+2=? Answer: 3.", "Question: 1+2=? Answer: 1, so 2?")
    rows = tokenizer([text + tokenizer.eos_token for text in texts])["input_ids"]  # so TRL's trainer has them
    right, wrong = Scorer(folder)(rows)
    assert right > wrong
    theirs = AutoModelForSequenceClassification.from_pretrained(folder)
    theirs.config.pad_token_id = None  # it is the end here, which transformers would take for padding and skip
    with torch.no_grad():
        told = [theirs(torch.tensor([row])).logits.item() for row in rows]
    assert [right, wrong] == pytest.approx(told, abs=1e-4)
    score = model_reward(str(folder))
    assert score(prompts=["Question: 1+2=? Answer:"], completions=[" 3."]) == pytest.approx([right], abs=1e-5)
    more = f'[sample]\nrewards = ["{folder}"]\nmax_new_tokens = 8\n'
    tuned = run.train(recipe(place, "grpo", tmp_path / "tuned", "steps=2", more=more))
    assert duckdb.sql(f"select count(reward) from '{tuned}/metrics.parquet'").fetchall() == [(2,)]


@pytest.mark.parametrize(
    ("stage", "more", "told"),
    [
        ("grpo", "", "sample.rewards is empty"),
        ("grpo", f'{FEW}rewards = ["mathematics:right"]\n', "no function 'right'"),
        ("grpo", f'{FEW}rewards = ["tests.verify.verifiers:ends_with"]\ncolumns = {{ending = "gold"}}\n', "'gold'"),
        ("dpo", "[dpo]\nbata = 1\n", "did you mean 'beta'"),
        ("rl", "", "must be one of 'sft'"),
        ("grpo", '[sample]\nrewards = ["a:b"]\n[train]\nmax_length = 256\n', "no room for a prompt"),
    ],
)
def test_mistakes_are_told_before_training(place, tmp_path, stage, more, told):
    with pytest.raises(FactoryError, match=told):
        run.train(recipe(place, stage, tmp_path / "out", more=more))


def test_a_dataset_of_other_columns_or_another_tokenizer_is_refused(place, tmp_path):
    with pytest.raises(FactoryError, match="stage sft needs messages or prompt, response"):
        run.train(recipe(place, "sft", tmp_path / "out", f"path={place}/runs/prompts@1"))
    train_bpe(iter(["other words"]), 280, tmp_path / "tok")
    source = {"use": "ingest.JsonLines", "glob": str(place / "chats.jsonl")}
    built = Path(build(make(source, name="other"), tmp_path / "runs").folder)
    manifest = json.loads((built / "manifest.json").read_text())
    (built / "tokenizer").mkdir()
    for path in (tmp_path / "tok").iterdir():
        (built / "tokenizer" / path.name).write_bytes(path.read_bytes())
    other, own = hashes(tmp_path / "tok"), hashes(place / "base")
    for more, told in (
        ({"artifacts": {"tokenizer": "tokenizer"}}, "another tokenizer"),
        ({"made_for": {"tokenizer": other["tokenizer"]}}, "another tokenizer"),
        ({"made_for": own | {"template": "0"}}, "another chat template"),
    ):
        (built / "manifest.json").write_text(json.dumps(manifest | more))
        with pytest.raises(FactoryError, match=told):
            run.train(recipe(place, "sft", tmp_path / "out", f"path={built}"))
    (built / "manifest.json").write_text(json.dumps(manifest | {"made_for": own}))
    run.train(recipe(place, "sft", tmp_path / "out", f"path={built}", "steps=1"))


def test_rows_are_mapped_from_disk_and_never_all_in_memory(place, tmp_path):
    text, rows = "long " * 200, 20_000
    table = pa.table(
        {"prompt": [f"{row % 5000} {text}" for row in range(rows)], "response": [f"{row}" for row in range(rows)]}
    )
    folder = tmp_path / "big@1"
    (folder / "rows").mkdir(parents=True)
    shards = []
    for number in range(4):
        pq.write_table(table.slice(number * 5000, 5000), folder / f"rows/{number}.parquet", row_group_size=1000)
        shards.append({"path": f"rows/{number}.parquet", "rows": 5000})
    manifest = {"name": "big", "version": "1", "key": "k", "columns": table.column_names, "rows": shards}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        config = DataConfig(path=str(folder), evaluation_share=0.1)
        found = data.read(config, "sft", str(place / "base"), tmp_path / "cache")
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < table.nbytes / 4
    assert found.evaluation is not None and found.training.cache_files
    both = [*found.training["response"], *found.evaluation["response"]]
    assert sorted(both) == sorted(table["response"].to_pylist())
    assert not set(found.training["prompt"]) & set(found.evaluation["prompt"])
    assert 0.05 * rows < found.evaluation.num_rows < 0.15 * rows


def test_the_reports_recipes_have_the_reports_figures():
    folder = REPOSITORY / "recipes" / "train"
    named = {path.stem: read_table(path).get("stage") for path in folder.glob("*.toml")}
    found = {name: load_recipe(folder / f"{name}.toml") for name, stage in named.items() if isinstance(stage, str)}
    assert {made.stage for made in found.values()} >= {"sft", "reward", "dpo", "online_dpo", "grpo"}
    sft, dpo, grpo = (found[f"qwen25_{stage}"] for stage in ("sft", "dpo", "grpo"))
    assert sft.optimizer.learning_rate == 7e-6
    assert sft.optimizer.learning_rate * sft.optimizer.final_share == pytest.approx(7e-7)
    assert (sft.train.epochs, sft.train.max_length) == (2, 32768)
    assert (sft.optimizer.weight_decay, sft.optimizer.clip) == (0.1, 1.0)
    assert (dpo.optimizer.learning_rate, dpo.train.epochs, dpo.optimizer.merge) == (7e-7, 1, "dare")
    assert (grpo.sample.samples, grpo.train.batch_size) == (8, 2048)
    ultra = found["ultralong_sft"]
    assert (ultra.optimizer.learning_rate, ultra.train.batch_size, ultra.train.max_length) == (5e-6, 128, 8192)


def test_a_linear_fall_ends_at_its_share(place, tmp_path):
    words = ("schedule=linear", "final_share=0.25", "warmup_share=0", "max_length=128")
    out = run.train(recipe(place, "sft", tmp_path / "out", *words))
    told = duckdb.sql(f"select learning_rate from '{out}/metrics.parquet' where loss is not null order by step")
    rates = [rate for (rate,) in told.fetchall()]
    assert rates == pytest.approx([3e-3 * (1 - 0.75 * step / 6) for step in range(6)])


def test_a_run_tells_what_fed_it_back_to_the_first_checkpoint(place, tmp_path):
    (tmp_path / "pre/checkpoint").mkdir(parents=True)
    shutil.copytree(place / "base", tmp_path / "pre/checkpoint/hf")
    web = {"name": "web", "version": "3", "key": "w"}
    told = {"name": "pre", "train": {"start": ""}, "datasets": {"data": web}}
    (tmp_path / "pre/recipe.json").write_text(json.dumps(told))
    words = ("steps=1", "save_every=1", "max_length=128")
    first = run.train(recipe(place, "sft", tmp_path / "sft", *words, f"start={tmp_path}/pre/checkpoint/hf"))
    second = run.train(recipe(place, "dpo", tmp_path / "dpo", *words, f"start={first}/checkpoint/hf"))
    said = json.loads((second / "recipe.json").read_text())
    assert said["dataset"]["name"] == "pairs"
    sft = said["lineage"]["start"]
    assert sft["stage"] == "sft" and [one["name"] for one in sft["datasets"]] == ["chats"]
    assert sft["datasets"][0]["key"] == json.loads((place / "runs/chats@1/manifest.json").read_text())["key"]
    assert sft["start"]["stage"] == "pretrain" and sft["start"]["datasets"] == [web]
    assert not (second / "cache").exists()

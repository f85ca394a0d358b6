"""Post-training of checkpoints that our code does not read, and of several processes; what does not fit is told."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from factory.engine.errors import FactoryError
from model.generate import end_ids
from model.posttrain import data, run
from model.posttrain.heads import ProcessModel, RewardModel, load_headed
from model.posttrain.provenance import hashes
from model.posttrain.rewards import Scorer, model_reward
from tests.model.posttrain import losses, recipe, train_on_two, weights

CHAT = [{"role": "user", "content": "1+2=?"}]


@pytest.fixture(scope="module")
def gpt2(place, tmp_path_factory):
    """A small GPT-2 with random weights and the tokenizer of `place`."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, eos_token_id=tokenizer.eos_token_id
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("ours", [True, False])
def test_a_reward_model_reads_the_same_token_everywhere(place, gpt2, tmp_path, ours):
    start = place / "base" if ours else gpt2
    words = (f"start={start}", "steps=8", "learning_rate=1e-2")
    out = run.train(recipe(place, "reward", tmp_path / "reward", *words))
    assert losses(out)[-1] < 0.6 < losses(out)[0]
    folder = out / "checkpoint" / "hf"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ("Question: 1+2=? Answer: 3.", "Question: 1+2=? Answer: 1, so 2?")
    rows = [data.whole(text, "", tokenizer) for text in texts]
    assert all(row[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id for row in rows)
    right, wrong = Scorer(folder)(rows)
    assert right > wrong
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        told = theirs(**batch).logits[:, 0].tolist()
    assert [right, wrong] == pytest.approx(told, abs=1e-4)
    assert model_reward(str(folder))(prompts=[texts[0][:-3]], completions=[" 3."]) == pytest.approx([right], abs=1e-4)


@pytest.mark.parametrize("ours", [True, False])
def test_tokenizer_and_ends_stay_those_of_the_start(place, gpt2, tmp_path, ours):
    """Of released checkpoints many have merges in one text, which transformers writes otherwise, and several ends."""
    start = tmp_path / "start"
    shutil.copytree(place / "base" if ours else gpt2, start)
    tokenizer = json.loads((start / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    (start / "tokenizer.json").write_text(json.dumps(tokenizer))
    generation = {"eos_token_id": [3, 7], "pad_token_id": 3, "temperature": 0.7, "do_sample": True}
    (start / "generation_config.json").write_text(json.dumps(generation))
    out = (
        run.train(recipe(place, "sft", tmp_path / "sft", f"start={start}", "steps=1", "save_every=1")) / "checkpoint/hf"
    )
    assert hashes(out) == hashes(start)
    assert json.loads((out / "generation_config.json").read_text()) == generation
    assert end_ids(out) == [3, 7]
    run.train(recipe(place, "dpo", tmp_path / "dpo", f"start={out}", "steps=1", "save_every=1"))


def test_another_model_at_the_same_place_is_another_training(place, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(place / "base", start)
    words = (f"start={start}", "steps=2", "save_every=1")
    run.train(recipe(place, "sft", tmp_path / "out", *words))
    run.train(recipe(place, "sft", tmp_path / "out", *words))
    path = start / "model.safetensors"
    save_file({name: value * 1.5 for name, value in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(FactoryError, match=r"another training: \[lineage\] differs"):
        run.train(recipe(place, "sft", tmp_path / "out", *words))


def test_a_head_begins_with_the_same_numbers_and_another_head_is_refused(gpt2, tmp_path):
    before = torch.random.get_rng_state()
    first, second = (load_headed(ProcessModel, gpt2, "auto") for _ in range(2))
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert torch.equal(before, torch.random.get_rng_state())
    AutoModelForSequenceClassification.from_pretrained(gpt2, num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(FactoryError, match="AutoModelForSequenceClassification with 1 outputs"):
        load_headed(RewardModel, tmp_path, "auto")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FactoryError, match="no language model that can be read"):
        run.load_model(str(tmp_path), "auto")


def test_prompts_may_be_messages_and_answers_text(place):
    tokenizer = data.load_tokenizer(place / "base")
    table = pa.table({"prompt": [CHAT, CHAT], "response": ["3", ""]})
    (row,) = data.conversations(table, tokenizer, 128).to_pylist()  # the empty one is left out
    (same,) = data.conversations(
        pa.table({"messages": [[*CHAT, {"role": "assistant", "content": "3"}]]}), tokenizer, 128
    ).to_pylist()
    assert row == same
    answers = [[{"role": "assistant", "content": text}] for text in ("3", "4")]
    table = pa.table({"prompt": [CHAT], "chosen": [answers[0]], "rejected": [answers[1]]})
    (pair,) = data.pairs(table, tokenizer, 128).to_pylist()
    assert pair["prompt_ids"] + pair["chosen_ids"] == row["input_ids"]
    with pytest.raises(FactoryError, match="give both in one form"):
        data.answered("1+2=?", answers[0], tokenizer)


@pytest.mark.parametrize("stage", ["dpo", "reward", "grpo"])
def test_what_is_too_long_is_left_out_and_told(place, tmp_path, capsys, stage):
    more = '[sample]\nrewards = ["tests.verify.verifiers:has_a_one"]\nsamples = 4\nmax_new_tokens = 6\n'
    tokenizer = data.load_tokenizer(place / "base")
    made = recipe(place, stage, tmp_path / "all", "evaluation_share=0", more=more)
    rows = run.begin(made).rows.training.to_list()
    if stage == "grpo":
        longest = [len(tokenizer(row["prompt"])["input_ids"]) + 6 for row in rows]
    else:
        sides = [[data.whole(row["prompt"], row[side], tokenizer) for side in data.ANSWERS] for row in rows]
        longest = [max(map(len, both)) for both in sides]
    limit = max(longest) - 1
    fit = sum(length <= limit for length in longest)
    assert 0 < fit < len(rows)
    words = ("evaluation_share=0", f"max_length={limit}", "batch_size=8")
    trainer = run.STAGES[stage](run.begin(recipe(place, stage, tmp_path / "some", *words, more=more)))
    assert trainer.train_dataset.num_rows == fit
    assert f"warning: {len(rows) - fit} p" in capsys.readouterr().err
    words = ("evaluation_share=0", "max_length=7")
    with pytest.raises(FactoryError, match=r"raise train\.max_length"):
        run.STAGES[stage](run.begin(recipe(place, stage, tmp_path / "none", *words, more=more)))


def test_checkpointed_activations_change_nothing(place, tmp_path):
    words = ("steps=2", "max_length=128")
    plain, again = (
        run.train(recipe(place, "dpo", tmp_path / word, *words, f"checkpoint_activations={word}"))
        for word in ("false", "true")
    )
    before, after = weights(plain), weights(again)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_two_processes_train_as_one(place, tmp_path, stage):
    words = ("steps=3", "max_length=128", "batch_size=8", "micro_batch_size=2")
    alone = run.train(recipe(place, stage, tmp_path / "alone", *words))
    recipe(place, stage, tmp_path / "both")
    given = ("threads=1", "save_every=3", "evaluate_every=6", "learning_rate=3e-3", f"out={tmp_path}/both")
    train_on_two(tmp_path / "both.toml", *given, *words)
    assert losses(tmp_path / "both") == pytest.approx(losses(alone), rel=1e-5)
    before, after = (load_file(out / "checkpoint/hf/model.safetensors") for out in (alone, tmp_path / "both"))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-4)
    assert json.loads((tmp_path / "both/recipe.json").read_text())["stage"] == stage

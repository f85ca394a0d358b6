"""Scoring: the numbers are those of transformers' classes, row by row, and batches and padding do not show."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from factory.engine.errors import FactoryError
from factory.teacher.scoring import DIGITS, Likelihoods, Rewards, Steps
from factory.verify.steps import split
from tests.teacher.small import SENTENCES, classifier

TALK = [{"role": "user", "content": "What is 12 + 30?"}, {"role": "assistant", "content": "Of what?"}]


@pytest.fixture(scope="module")
def reward(checkpoint, tmp_path_factory) -> Path:
    return classifier(checkpoint, tmp_path_factory.mktemp("scoring") / "reward", labels=1)


def answers(count: int) -> tuple[list[str], list[str]]:
    chance = random.Random(1)
    words = " ".join(SENTENCES).split()
    texts = [" ".join(chance.choices(words, k=chance.randrange(1, 25))) for _ in range(2 * count)]
    return texts[:count], [" " + text for text in texts[count:]]


def test_a_reward_is_that_of_the_class_behind_the_end_of_the_text(reward):
    prompts, responses = answers(12)
    tokenizer = AutoTokenizer.from_pretrained(reward)
    model = AutoModelForSequenceClassification.from_pretrained(reward, dtype=torch.float64).eval()
    found = Rewards(str(reward))(prompts, responses)
    for prompt, response, value in zip(prompts, responses, found, strict=True):
        ids = tokenizer(prompt + response + tokenizer.eos_token, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert value == pytest.approx(model.score(model.model(ids).last_hidden_state[0, -1]).item(), rel=1e-6)
    assert len({round(value, 3) for value in found}) > 8
    whole = tokenizer.apply_chat_template([*TALK, {"role": "assistant", "content": "42"}], tokenize=False)
    ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model.score(model.model(ids).last_hidden_state[0, -1]).item()
    assert Rewards(str(reward))([TALK], ["42"]) == [pytest.approx(expected, rel=1e-6)]


def test_a_likelihood_is_the_mean_over_the_answers_tokens(checkpoint):
    prompts, responses = answers(12)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval()
    for prompt, response, value in zip(
        prompts, responses, Likelihoods(str(checkpoint))(prompts, responses), strict=True
    ):
        asked, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, response))
        ids = torch.tensor([asked + said])
        labels = torch.tensor([[-100] * len(asked) + said])
        with torch.no_grad():
            assert value == pytest.approx(-model(ids, labels=labels).loss.item(), rel=1e-5)


def test_rows_that_hold_the_whole_vocabulary_are_padded_too(reward):
    scorer = Rewards(str(reward))
    ids = list(range(scorer.network.config.vocab_size))
    rows = [ids[start : start + 50] for start in range(0, len(ids), 50)]
    together = dict(scorer._logits([*rows, ids[:3]]))
    assert len(together) == len(rows) + 1 > 5
    for row, logits in together.items():
        alone = scorer.network(input_ids=torch.tensor([[*rows, ids[:3]][row]])).logits[0]
        assert logits.item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 100, 1 << 14])
def test_batches_do_not_show(checkpoint, reward, batch_tokens):
    prompts, responses = answers(40)
    order = list(range(40))
    random.Random(batch_tokens).shuffle(order)
    for scorer, folder in ((Rewards, reward), (Likelihoods, checkpoint)):
        together = scorer(str(folder))(prompts, responses)
        mixed = scorer(str(folder), batch_tokens=batch_tokens)(
            [prompts[n] for n in order], [responses[n] for n in order]
        )
        assert [round(together[n], DIGITS) for n in order] == [round(value, DIGITS) for value in mixed]


def test_steps_are_read_at_their_last_tokens(checkpoint, tmp_path):
    folder = classifier(checkpoint, tmp_path / "steps", labels=2)
    chains = ["12 + 30 = 42\nThe answer is 42.\n", "One.\n\nTwo.", ""]
    scorer = Steps(str(folder))
    found = scorer(["What is it?"] * 3, [split(chain, scorer.rule) for chain in chains])
    assert [len(one) if one else None for one in found] == [2, 2, None]
    alone = scorer(["What is it?"], [split(chains[0])[:1]])
    assert alone[0][0] == pytest.approx(found[0][0], abs=1e-6)  # a step knows nothing of what comes after it
    assert all(0 < value < 1 for chain in found[:2] for value in chain)


def test_what_cannot_be_read_has_no_number(checkpoint, reward):
    assert Rewards(str(reward))(["a " * 300, "a"], ["b", "c"])[0] is None
    assert Likelihoods(str(checkpoint))(["", "a"], ["b", ""]) == [None, None]


def test_mistakes_are_told(checkpoint, reward, tmp_path):
    with pytest.raises(FactoryError, match=r"has no score\.weight"):
        Rewards(str(checkpoint))(["a"], ["b"])
    with pytest.raises(FactoryError, match="no such folder"):
        Rewards("./nothing")
    with pytest.raises(FactoryError, match="gives 2 numbers"):
        Rewards(str(classifier(checkpoint, tmp_path / "two", labels=2, kind="Sequence")))(["a"], ["b"])
    bare = tmp_path / "bare"
    shutil.copytree(reward, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(FactoryError, match="no chat template"):
        Rewards(str(bare))([TALK], ["42"])

"""GRPO and online DPO: their losses are those of the formulas on the groups that count, they raise the reward, and go
on where they were stopped."""

from __future__ import annotations

import shutil

import duckdb
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from factory.engine.errors import FactoryError
from model.posttrain import run
from model.posttrain.grpo import choose
from tests.model.posttrain import recipe, stopped, train_on_two, weights

SAMPLE = '[sample]\nrewards = ["tests.verify.verifiers:has_a_one"]\nsamples = 4\nmax_new_tokens = 6\n'


def logps(model, ids, mask, width):
    """[rows, width]: the log-probability of the last tokens of each row, row by row and without its padding."""
    out = torch.zeros(len(ids), width)
    for row, (one, seen) in enumerate(zip(ids, mask.bool(), strict=True)):
        there = model(one[seen][None]).logits[0].log_softmax(-1)[:-1].gather(1, one[seen][1:, None])[:, 0]
        out[row, seen[-width:]] = there[-int(seen[-width:].sum()) :] if seen[-width:].any() else there[:0]
    return out


def sampled(place, tmp_path, stage, *words, more, rewards):
    """A trainer, what it sampled when a sample was rewarded by its number, and transformers' model of the same weights,
    not those of the reference."""
    made = recipe(place, stage, tmp_path / stage, *words, "evaluation_share=0", more=more)
    trainer = run.STAGES[stage](run.begin(made))
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    theirs = AutoModelForCausalLM.from_pretrained(place / "base")
    theirs.load_state_dict(trainer.model.state_dict())
    trainer.reward_funcs = [lambda prompts, **_: rewards]
    trainer.model.train()
    rows = [trainer.train_dataset[number // 4] for number in range(len(rewards))]
    return trainer, trainer._generate_and_score_completions(rows), theirs


def joined(found, prompts="prompt", completions="completion"):
    ids = torch.cat([found[f"{prompts}_ids"], found[f"{completions}_ids"]], 1)
    return ids, torch.cat([found[f"{prompts}_mask"], found[f"{completions}_mask"]], 1)


def same_gradient(ours, loss, theirs):
    loss.backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(dict(ours.named_parameters())[name].grad, parameter.grad, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_groups_without_variance_have_no_part_in_grpo(place, tmp_path, beta):
    nan = None
    rewards = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, nan, 0.25, 1.0, nan, nan, nan, nan]
    more = SAMPLE + f"beta = {beta}\n"
    trainer, found, theirs = sampled(place, tmp_path, "grpo", "batch_size=16", more=more, rewards=rewards)
    loss = trainer.compute_loss(trainer.model, dict(found))
    loss.backward()

    reward = torch.tensor([torch.nan if one is None else one for one in rewards]).view(4, 4)[[0, 2]]
    mean = reward.nanmean(1, keepdim=True)
    spread = torch.stack([row[~row.isnan()].std() for row in reward])[:, None]
    advantage = ((reward - mean) / (spread + 1e-4)).nan_to_num(0).view(-1, 1)
    rows = [0, 1, 2, 3, 8, 9, 10, 11]
    ids, mask = (part[rows] for part in joined(found))
    spoken = found["completion_mask"][rows]
    own = logps(theirs, ids, mask, spoken.shape[1])
    reference = logps(AutoModelForCausalLM.from_pretrained(place / "base"), ids, mask, spoken.shape[1]).detach()
    gap = reference - own
    ratio = (own - own.detach()).exp()
    token = ratio * (beta * (gap.exp() - gap - 1) - advantage)
    direct = (token * spoken).sum() / spoken.sum()
    torch.testing.assert_close(loss.detach(), direct.detach(), rtol=1e-4, atol=1e-5)
    same_gradient(trainer.model, direct, theirs)
    assert trainer._metrics["train"]["groups_dropped"] == [0.5]


@pytest.mark.parametrize("stage", ["grpo", "online_dpo"])
def test_a_step_in_which_no_group_counts_has_no_gradient(place, tmp_path, stage):
    trainer, found, _ = sampled(place, tmp_path, stage, "batch_size=8", more=SAMPLE, rewards=[1.0] * 8)
    assert choose(found)["completion_ids"].numel() <= 2
    loss = trainer.compute_loss(trainer.model, dict(found))
    loss.backward()
    assert loss == 0 and all(not parameter.grad.any() for parameter in trainer.model.parameters())


def test_online_dpo_is_dpo_on_the_best_and_the_worst(place, tmp_path):
    rewards = [0.2, 0.9, 0.1, 0.5, 1.0, 1.0, 1.0, 1.0, None, 0.0, 0.5, 0.5, 0.0, 0.0, 3.0, 0.0]
    more = SAMPLE + "temperature = 0.7\n[dpo]\nbeta = 0.4\nsft_weight = 0.2\n"
    trainer, found, theirs = sampled(place, tmp_path, "online_dpo", "batch_size=4", more=more, rewards=rewards)
    loss = trainer.compute_loss(trainer.model, dict(found))
    loss.backward()
    best = {name: found[name][:, 0] for name in ("completion_ids", "completion_mask", "prompt_ids", "prompt_mask")}
    worst = {name: found[name][:, 1] for name in best}
    kept, base = [0, 2, 3], AutoModelForCausalLM.from_pretrained(place / "base")
    sums = []
    for side in (best, worst):
        (ids, mask), width = joined({name: part[kept] for name, part in side.items()}), best["completion_ids"].shape[1]
        own = logps(theirs, ids, mask, width)
        sums.append((own.sum(1), (own - logps(base, ids, mask, width).detach()).sum(1)))
    (likelihood, better), (_, worse) = sums
    direct = -F.logsigmoid(0.4 * (better - worse)).mean()
    direct = direct - 0.2 * likelihood.sum() / best["completion_mask"][kept].sum()
    torch.testing.assert_close(loss.detach(), direct.detach(), rtol=1e-4, atol=1e-5)
    same_gradient(trainer.model, direct, theirs)
    assert trainer._metrics["train"]["groups_dropped"] == [0.25]


def test_with_two_samples_online_dpo_is_trls_dpo_on_the_pair(place, tmp_path):
    more = SAMPLE.replace("samples = 4", "samples = 2") + "[dpo]\nbeta = 0.4\nsft_weight = 0.2\n"
    made = recipe(place, "online_dpo", tmp_path / "online", "batch_size=3", "evaluation_share=0", more=more)
    online = run.STAGES["online_dpo"](run.begin(made))
    online.reward_funcs = [lambda prompts, **_: [1.0, 0.0, 0.0, 1.0, 0.5, 0.25]]
    online.model.train()
    found = online._generate_and_score_completions([online.train_dataset[number // 2] for number in range(6)])
    plain = run.STAGES["dpo"](run.begin(recipe(place, "dpo", tmp_path / "dpo", "batch_size=3", more=more)))
    sides = [{name: part[:, side] for name, part in found.items() if part.ndim > 1} for side in (0, 1)]
    ids, mask = (torch.cat(parts) for parts in zip(*map(joined, sides), strict=True))
    spoken = torch.cat([torch.cat([side["prompt_mask"] * 0, side["completion_mask"]], 1) for side in sides])
    with torch.no_grad():
        for one in (online, plain):
            one.model.lm_head.weight.mul_(1.5)
        told = plain.compute_loss(plain.model, {"input_ids": ids, "attention_mask": mask, "completion_mask": spoken})
        torch.testing.assert_close(online.compute_loss(online.model, dict(found)), told, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", ["grpo", "online_dpo"])
def test_it_raises_the_reward_and_goes_on_where_it_was_stopped(place, tmp_path, monkeypatch, stage):
    words = ("steps=12", f"batch_size={64 if stage == 'grpo' else 16}", "learning_rate=1e-2", "save_every=8")
    more = SAMPLE + "[dpo]\nbeta = 0.02\n"
    whole = run.train(recipe(place, stage, tmp_path / "whole", *words, more=more))
    sql = f"select reward, groups_dropped from '{whole}/metrics.parquet' where loss is not null order by step"
    rewards, dropped = zip(*duckdb.sql(sql).fetchall(), strict=True)
    assert len(rewards) == 12 and sum(rewards[-3:]) > sum(rewards[:3]) + 0.5
    assert all(0 <= share < 1 for share in dropped) and any(dropped)
    stopped(recipe(place, stage, tmp_path / "half", *words, more=more), 10, monkeypatch)
    half = run.train(recipe(place, stage, tmp_path / "half", *words, more=more))
    before, after = weights(whole), weights(half)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "online_dpo"])
def test_two_processes_raise_the_reward_and_go_on_where_they_were_stopped(place, tmp_path, stage):
    batch = f"batch_size={64 if stage == 'grpo' else 16}"
    words = ("steps=12", batch, "learning_rate=1e-2", "save_every=8", "threads=1", f"out={tmp_path}/run")
    recipe(place, stage, tmp_path / "run", more=SAMPLE + "[dpo]\nbeta = 0.02\n")
    train_on_two(tmp_path / "run.toml", *words)
    sql = f"select reward from '{tmp_path}/run/metrics.parquet' where loss is not null order by step"
    rewards = [reward for (reward,) in duckdb.sql(sql).fetchall()]
    assert len(rewards) == 12 and sum(rewards[-3:]) > sum(rewards[:3]) + 0.5
    before = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoint/trainer/checkpoint-12")
    train_on_two(tmp_path / "run.toml", *words)
    after = weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_samples_serve_several_steps_within_the_clip(place, tmp_path, monkeypatch):
    words = ("steps=4", "save_every=2", "batch_size=64", "learning_rate=1e-2")
    more = SAMPLE + "iterations = 2\n"
    whole = run.train(recipe(place, "grpo", tmp_path / "whole", *words, more=more))
    sql = f"select reward is null from '{whole}/metrics.parquet' where loss is not null order by step"
    assert duckdb.sql(sql).fetchall() == [(False,), (True,), (False,), (True,)]  # sampled in every other step
    stopped(recipe(place, "grpo", tmp_path / "half", *words, more=more), 3, monkeypatch)
    half = run.train(recipe(place, "grpo", tmp_path / "half", *words, more=more))
    tight = run.train(recipe(place, "grpo", tmp_path / "tight", *words, "sample.clip=1e-6", more=more))
    before, after, other = weights(whole), weights(half), weights(tight)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not all(torch.equal(before[name], other[name]) for name in before)
    with pytest.raises(FactoryError, match="must be a multiple"):
        recipe(place, "grpo", tmp_path / "odd", *words, "save_every=3", more=more)


def test_micro_batches_change_nothing_and_prompts_come_in_order(place, tmp_path, monkeypatch):
    seen = []
    words = ("steps=2", "batch_size=16", "evaluation_share=0")
    for micro in (0, 4):
        made = recipe(place, "grpo", tmp_path / str(micro), *words, f"micro_batch_size={micro}", more=SAMPLE)
        trainer = run.STAGES["grpo"](run.begin(made))
        rewarded = trainer._calculate_rewards

        def told(inputs, *more, rewarded=rewarded):
            seen.append([row["prompt"] for row in inputs])
            return rewarded(inputs, *more)

        monkeypatch.setattr(trainer, "_calculate_rewards", told)
        trainer.train()
        seen.append({name: one.detach().clone() for name, one in trainer.model.named_parameters()})
    *asked, a = seen[:3]
    assert seen[3:5] == asked
    sql = f"select prompt from '{place}/runs/prompts@1/rows/*.parquet' limit 8"
    assert [prompt for (prompt,) in duckdb.sql(sql).fetchall()] == [prompt for step in asked for prompt in step[::4]]
    for name, value in seen[5].items():
        torch.testing.assert_close(a[name], value, rtol=1e-3, atol=2e-4)

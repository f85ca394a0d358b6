"""The trainer of each stage: TRL's, with what the recipe says."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import torch
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import DPOConfig, DPOTrainer, GRPOConfig, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from factory.engine.errors import FactoryError
from model.data import find
from model.merging import OnlineMerging
from model.muon import Muon
from model.posttrain.config import SAMPLING, PostRecipe
from model.posttrain.data import Rows, comparisons, conversations, pairs, prompts, tokenized
from model.posttrain.grpo import Grpo, OnlineDpo
from model.posttrain.language_model import score_by_own
from model.posttrain.rewards import rewards

SCHEDULES = {"cosine": "cosine_with_min_lr", "linear": "polynomial", "constant": "constant_with_warmup"}


@dataclass(frozen=True)
class Work:
    """What a stage's trainer is made of."""

    recipe: PostRecipe
    folder: Path
    rows: Rows
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    load: Callable[[str], PreTrainedModel]
    """A language model from a folder, as `model` was loaded."""

    @property
    def cache(self) -> Path:
        """A folder for the rows as trainers take them; it goes when the training ends."""
        return self.folder / "cache"

    def tokenized(
        self, name: str, encode: Callable[..., pa.Table], lost: str, length: int = 0, *more: Any
    ) -> tuple[datasets.Dataset, datasets.Dataset | None]:
        """What `encode` makes of the rows to learn from and of those held out (None: there are none), in at most
        `length` tokens, 0 for train.max_length. Tells how many it left out; FactoryError where it leaves none."""
        length = length or self.recipe.train.max_length
        told = (self.tokenizer, length, encode, *more)
        try:
            training, out = tokenized(self.rows.training, self.cache, name, *told)
            held, held_out = tokenized(self.rows.evaluation, self.cache, f"held_out_{name}", *told)
        except FactoryError as error:
            raise FactoryError(f"{find(self.recipe.data.path)}: {error}") from error
        if training is None:
            less = ", or lower sample.max_new_tokens" if self.recipe.stage in SAMPLING else ""
            raise FactoryError(f"all {out:,} {lost} within {length:,} tokens: raise train.max_length{less}")
        if held is None and self.rows.evaluation is not None:
            print("warning: no held-out row is left: nothing is evaluated", file=sys.stderr)
        if out + held_out:
            print(f"warning: {out + held_out:,} {lost} within {length:,} tokens: left out", file=sys.stderr)
        return training, held

    def arguments(self, rows: int, held: datasets.Dataset | None) -> dict[str, Any]:
        """What the arguments of all trainers share; `rows` are there to learn from, `held` to evaluate on."""
        optimizer, train = self.recipe.optimizer, self.recipe.train
        world = PartialState().num_processes
        share = max(1, train.batch_size // world)
        micro = min(train.micro_batch_size or share, share)
        if train.batch_size % (micro * world):
            raise FactoryError(
                f"train.batch_size = {train.batch_size} is not a whole number of micro-batches of {micro} on {world} "
                "processes"
            )
        steps = train.steps or max(1, round(train.epochs * math.ceil(rows / train.batch_size)))
        return {
            "output_dir": str(self.folder / "checkpoint" / "trainer"),
            "per_device_train_batch_size": micro,
            "per_device_eval_batch_size": micro,
            "gradient_accumulation_steps": share // micro,
            "max_steps": steps,
            "learning_rate": optimizer.learning_rate,
            "lr_scheduler_type": SCHEDULES[optimizer.schedule],
            "lr_scheduler_kwargs": {
                "cosine": {"min_lr_rate": optimizer.final_share},
                "linear": {"lr_end": optimizer.final_share * optimizer.learning_rate, "power": 1.0},
            }.get(optimizer.schedule, {}),
            "warmup_steps": round(optimizer.warmup_share * steps),
            "max_grad_norm": optimizer.clip,
            "bf16": train.dtype == "bfloat16",
            "use_cpu": not torch.cuda.is_available(),
            "gradient_checkpointing": train.checkpoint_activations and self.model.supports_gradient_checkpointing,
            "seed": train.seed,
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
            "save_steps": train.save_every,
            "save_total_limit": 2,
            "eval_strategy": "no" if held is None else "steps",
            "eval_steps": train.evaluate_every,
        }

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW, with `merge` online merging, or Muon; decay on matrices alone."""
        told = self.recipe.optimizer
        common: dict[str, Any] = {"lr": told.learning_rate, "betas": (told.beta1, told.beta2), "eps": told.epsilon}
        if told.name == "muon":
            return Muon(model.named_parameters(), weight_decay=told.weight_decay, **common)
        named = {name: one for name, one in model.named_parameters() if one.requires_grad}
        groups: list[dict[str, Any]] = [
            {"params": [one for one in named.values() if one.ndim >= 2], "weight_decay": told.weight_decay},
            {"params": [one for one in named.values() if one.ndim < 2], "weight_decay": 0.0},
        ]
        if not told.merge:
            return torch.optim.AdamW(groups, fused=True, **common)
        before = dict(self.load(self.recipe.model.base).named_parameters())
        order = [one for group in groups for one in group["params"]]
        names = {id(one): name for name, one in named.items()}
        missing = [name for name in named if name not in before]
        if missing:
            raise FactoryError(
                f"{self.recipe.model.base}: no parameter {missing[0]}: give the model that SFT began with"
            )
        base = [before[names[id(one)]] for one in order]
        merging: dict[str, Any] = {
            "merge": told.merge,
            "alpha": told.alpha,
            "p": told.p,
            "seed": self.recipe.train.seed,
        }
        return OnlineMerging(groups, base, **merging, **common)

    def shared(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "processing_class": self.tokenizer,
            "optimizers": (self.optimizer(self.model), None),
        }


def sft(work: Work) -> Trainer:
    training, held = work.tokenized("tokens", conversations, "conversations have a null or no answer")
    arguments = SFTConfig(
        **work.arguments(training.num_rows, held),
        max_length=None,  # they are cut already
        # Not TRL's packing, whose rows of several conversations would be what a step and an epoch count.
        padding_free=work.recipe.sft.packing,
    )
    return score_by_own(SFTTrainer(args=arguments, train_dataset=training, eval_dataset=held, **work.shared()))


class Dpo(DPOTrainer):
    """TRL's, on rows that are tokens already: its own would cut long answers, and tokenize prompt and answer as one."""

    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any) -> datasets.Dataset:
        return dataset


def dpo(work: Work) -> Trainer:
    told = work.recipe.dpo
    training, held = work.tokenized("pairs", pairs, "pairs have a null or no two answers")
    weighted: dict[str, Any] = {}
    if told.sft_weight:
        weighted = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, told.sft_weight]}
    arguments = DPOConfig(**work.arguments(training.num_rows, held), beta=told.beta, max_length=None, **weighted)
    return score_by_own(
        Dpo(
            ref_model=work.load(work.recipe.model.start),
            args=arguments,
            train_dataset=training,
            eval_dataset=held,
            **work.shared(),
        )
    )


def reward(work: Work) -> Trainer:
    training, held = work.tokenized("comparisons", comparisons, "pairs have a null or no two answers")
    tokenizer = work.tokenizer
    # transformers' reward models read at the last token that is no padding: it must be none that ends a row.
    ends = {tokenizer.eos_token_id, *(ids[-1] for row in training.select(range(1)) for ids in row.values())}
    if tokenizer.pad_token_id in ends:
        ids = (*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, *range(len(tokenizer)))
        tokenizer.pad_token_id = next(id_ for id_ in ids if id_ not in ends)
    arguments = RewardConfig(
        **work.arguments(training.num_rows, held),
        max_length=None,  # longer ones are left out already
        center_rewards_coefficient=work.recipe.reward.center or None,
    )
    return RewardTrainer(args=arguments, train_dataset=training, eval_dataset=held, **work.shared())


def grpo(work: Work) -> Trainer:
    told = work.recipe.sample
    training, held = _prompts(work)
    arguments = work.arguments(_whole_batches(work, training.num_rows * told.samples) * told.iterations, held)
    micro = arguments["per_device_train_batch_size"]
    arguments["per_device_eval_batch_size"] = max(1, micro // told.samples) * told.samples
    return Grpo(
        args=_sampling(work, arguments, temperature=told.temperature, num_iterations=told.iterations),
        reference=work.load(work.recipe.model.start) if told.beta else None,
        divergence=told.beta,
        **_sampled(work, training, held),
    )


def online_dpo(work: Work) -> Trainer:
    told = work.recipe.sample
    training, held = _prompts(work)
    arguments = work.arguments(_whole_batches(work, training.num_rows), held)
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        arguments[name] *= told.samples  # TRL counts samples, the recipe pairs
    return OnlineDpo(
        args=_sampling(work, arguments, generation_kwargs={"temperature": told.temperature}),
        reference=work.load(work.recipe.model.start),
        strength=work.recipe.dpo.beta,
        sft_weight=work.recipe.dpo.sft_weight,
        **_sampled(work, training, held),
    )


def _whole_batches(work: Work, rows: int) -> int:
    """The rows of an epoch: TRL samples for no batch that is not full."""
    batch = work.recipe.train.batch_size
    if rows < batch:
        raise FactoryError(f"train.batch_size = {batch}, but there are prompts for {rows}: lower it")
    return rows // batch * batch


def _sampling(work: Work, arguments: dict[str, Any], **more: Any) -> GRPOConfig:
    told = work.recipe.sample
    if told.vllm:
        more |= {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": told.vllm}
    return GRPOConfig(
        **arguments,
        num_generations=told.samples,
        max_completion_length=told.max_new_tokens,
        top_p=told.top_p,
        top_k=0,
        epsilon=told.clip,
        reward_weights=list(told.weights) or None,
        shuffle_dataset=False,  # the prompts come in the order of the dataset: those of highest variance first
        **more,
    )


def _prompts(work: Work) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    room = work.recipe.train.max_length - work.recipe.sample.max_new_tokens
    return work.tokenized("prompts", prompts, "prompts are null or too long to be answered", room)


def _sampled(work: Work, training: datasets.Dataset, held: datasets.Dataset | None) -> dict[str, Any]:
    return {
        "reward_funcs": list(rewards(work.recipe.sample)),
        "train_dataset": training,
        "eval_dataset": held,
        **work.shared(),
    }

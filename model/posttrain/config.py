"""What a recipe of post-training says: `stage = "sft"`, or another stage, at its top, and these sections.

    stage = "dpo"

    [model]
    start = "runs/train/math_sft/checkpoint/hf"

    [data]
    path = "runs/math_pairs@2026.11.20"

`python -m model.train RECIPE.toml` reads and runs it; any key may be given anew on the command line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from factory.engine.errors import FactoryError, nearest
from model.options import section, typed
from model.recipe import override, read_table

Stage = Literal["sft", "reward", "prm", "dpo", "grpo", "online_dpo"]
SAMPLING: tuple[Stage, ...] = ("grpo", "online_dpo")
MAX_LENGTH = 2048  # where a recipe says none


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What training begins with."""

    start: str
    """A checkpoint folder in Hugging Face's form, with its tokenizer and chat template."""
    implementation: Literal["auto", "factory", "transformers"] = "auto"
    """Whose code runs it. `auto`: ours (model/transformer.py) where it reads the checkpoint, else transformers'."""
    base: str = ""
    """With optimizer.merge: the checkpoint that the SFT began with; `start` minus `base` is what is merged."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The dataset that a recipe of the factory made."""

    path: str = ""
    """Its folder; on the command line `data=FOLDER`. sft: messages, or prompt and response; reward, dpo: prompt,
    chosen, rejected; prm: prompt, completions, labels; grpo, online_dpo: prompt, and the columns that the rewards
    need."""
    evaluation_share: float = 0.05
    """The share of prompts held out, chosen by a hash of the prompt: all rows of one prompt go together."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or with `merge` the Online Merging Optimizer over it (model/merging.py); or Muon."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon on the matrices of the layers, AdamW on the rest, at one learning rate (model/muon.py)."""
    learning_rate: float = 7e-6
    """The highest, after the warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_share: float = 0.1
    """The last learning rate as a share of the highest."""
    warmup_share: float = 0.03
    """The share of all steps in which the rate rises."""
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    """On matrices; not on biases and norms."""
    clip: float = 1.0
    merge: Literal["", "dare", "ties"] = ""
    alpha: float = 1e-7
    """The weight of the merged parameter delta in each step; useful from 1e-7 to 5e-7 (arXiv 2405.17931)."""
    p: float = 5e-4
    """The share of numbers kept by dropout or trimming."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The course of training."""

    epochs: float = 1.0
    steps: int = 0
    """Steps in all; 0 for as many as `epochs` has."""
    batch_size: int = 32
    """Rows in a step over all processes: conversations, pairs (in online_dpo one a prompt), or in grpo completions."""
    micro_batch_size: int = 0
    """At most so many of them are in a process's memory at once; 0 for all of its part."""
    max_length: int = 0
    """Tokens of prompt and answer, at most the start's max_position_embeddings; 0 for 2048, or as many as those where
    they are fewer. sft and prm cut longer ones off at the end; longer pairs are left out, and prompts that leave no
    room for sample.max_new_tokens. What is left out is told."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the layers compute in; weights and the optimizer stay in float32."""
    checkpoint_activations: bool = False
    seed: int = 0
    evaluate_every: int = 100
    save_every: int = 100
    """Steps between saves; a killed training goes on from the last one."""
    threads: int = 0
    """CPU threads; 0 for one on each core."""


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Supervised fine-tuning: the loss is on the assistant's tokens alone."""

    packing: bool = True
    """The conversations of a step stand in one row, without padding; none sees another."""


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """dpo, online_dpo: direct preference optimisation (arXiv 2305.18290)."""

    beta: float = 0.1
    sft_weight: float = 0.0
    """The weight of the chosen answer's negative log-likelihood, added to the loss."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """A reward model on pairs: -log σ(r(chosen) - r(rejected)), Bradley and Terry's model."""

    center: float = 0.0
    """The weight of (r(chosen) + r(rejected))², which keeps rewards around 0 (arXiv 2312.09244)."""


@dataclass(frozen=True, kw_only=True)
class PrmConfig:
    """A process reward model: the cross-entropy of each step's label at the step's last token."""

    rule: Literal["lines", "sentences"] = "lines"
    """How the dataset's chains were cut, as in steps.Split: the checkpoint says it to those who judge by it."""
    separator: str = ""
    """Ends each step, in place of its own line ends; empty: steps are whole as they are."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """grpo, online_dpo: how answers are sampled, and what they are rewarded for."""

    rewards: tuple[str, ...] = ()
    """Functions such as `factory.verify.mathematics:correct`, or folders of reward models; their sum is the reward."""
    weights: tuple[float, ...] = ()
    """One a reward; without them, each 1."""
    columns: dict[str, str] = field(default_factory=dict)
    """What a reward's parameter is called in the data, where the names differ: `answer = "gold"`."""
    samples: int = 8
    """Answers to each prompt (a group)."""
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    beta: float = 0.0
    """grpo: the weight of the Kullback-Leibler divergence from the starting model."""
    iterations: int = 1
    """grpo: steps on each batch of samples (μ in arXiv 2402.03300)."""
    clip: float = 0.2
    """grpo: the ratio of new to old probability is clipped to 1 - clip .. 1 + clip. In the first of `iterations` on a
    batch, or the only one, it is 1."""
    vllm: str = ""
    """URL of a `trl vllm-serve` server that samples; empty: the model in training samples itself."""


@dataclass(frozen=True, kw_only=True)
class PostRecipe:
    """A whole recipe of post-training."""

    stage: Stage
    name: str
    out: str = ""
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    prm: PrmConfig = field(default_factory=PrmConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def check(self) -> None:
        """Raises FactoryError where the numbers do not fit together."""
        bounds = {
            "optimizer": {"learning_rate": (0, math.inf), "clip": (0, math.inf), "epsilon": (0, math.inf)},
            "train": dict.fromkeys(("epochs", "batch_size", "evaluate_every", "save_every"), (0, math.inf)),
            "sample": {"samples": (1, math.inf)}
            | dict.fromkeys(("max_new_tokens", "temperature", "top_p", "clip"), (0, math.inf)),
        }
        for name, fields in bounds.items():
            for key, (low, high) in fields.items():
                value = getattr(getattr(self, name), key)
                if not low < value < high:
                    raise FactoryError(f"{name}.{key} = {value}: must be above {low}")
        for key in ("steps", "micro_batch_size", "max_length", "seed", "threads"):
            if getattr(self.train, key) < 0:
                raise FactoryError(f"train.{key} = {getattr(self.train, key)}: must not be negative")
        if self.sample.top_p > 1:
            raise FactoryError(f"sample.top_p = {self.sample.top_p}: must be above 0 and at most 1")
        for key in ("alpha", "p"):
            if not 0 <= getattr(self.optimizer, key) <= 1:
                raise FactoryError(f"optimizer.{key} = {getattr(self.optimizer, key)}: must lie between 0 and 1")
        for name, key in (("data", "evaluation_share"), ("optimizer", "final_share"), ("optimizer", "warmup_share")):
            if not 0 <= getattr(getattr(self, name), key) < 1:
                raise FactoryError(f"{name}.{key} = {getattr(getattr(self, name), key)}: must be from 0 to below 1")
        if self.optimizer.merge and self.optimizer.name != "adamw":
            raise FactoryError("optimizer.merge: it merges AdamW's steps: leave optimizer.name out")
        if self.optimizer.merge and self.stage in ("reward", "prm"):
            raise FactoryError(
                f"optimizer.merge: stage {self.stage} trains a head, which model.base has not: leave it out"
            )
        if self.optimizer.merge and not self.model.base:
            raise FactoryError("optimizer.merge: say model.base, the checkpoint that the SFT began with")
        if self.stage in SAMPLING:
            if not self.sample.rewards:
                raise FactoryError(f"stage {self.stage}: sample.rewards is empty: name at least one")
            if self.sample.weights and len(self.sample.weights) != len(self.sample.rewards):
                raise FactoryError("sample.weights: give one for each of sample.rewards")
            length = self.train.max_length or MAX_LENGTH
            if self.sample.max_new_tokens >= length:
                raise FactoryError(
                    f"sample.max_new_tokens = {self.sample.max_new_tokens}: leaves no room for a prompt in "
                    f"train.max_length = {length}: raise that"
                )
            for key in ("beta", "clip", "iterations") if self.stage == "online_dpo" else ():
                if getattr(self.sample, key) != getattr(SampleConfig, key):
                    raise FactoryError(f"sample.{key}: stage online_dpo has none: leave it out")
            if self.sample.iterations < 1 or (self.stage == "grpo" and self.train.save_every % self.sample.iterations):
                raise FactoryError(
                    f"sample.iterations = {self.sample.iterations}: train.save_every = {self.train.save_every} must be "
                    "a multiple of it: a save does not hold the samples"
                )
            if self.stage == "grpo" and self.train.batch_size % self.sample.samples:
                raise FactoryError(
                    f"train.batch_size = {self.train.batch_size} completions are not whole groups of "
                    f"sample.samples = {self.sample.samples}"
                )

    def within(self, positions: int | None) -> PostRecipe:
        """The recipe with the train.max_length that it has with a start of so many positions (None: no limit).
        FactoryError where they are too few for what it says."""
        length = self.train.max_length or min(MAX_LENGTH, positions or MAX_LENGTH)
        if positions and length > positions:
            raise FactoryError(
                f"train.max_length = {length:,}, but max_position_embeddings of {self.model.start} is {positions:,}: "
                "lower it, or leave it out"
            )
        if self.stage in SAMPLING and self.sample.max_new_tokens >= length:
            raise FactoryError(
                f"sample.max_new_tokens = {self.sample.max_new_tokens:,}: leaves no room for a prompt in "
                f"max_position_embeddings = {positions:,} of {self.model.start}: lower it"
            )
        return replace(self, train=replace(self.train, max_length=length))


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "sft": SftConfig,
    "dpo": DpoConfig,
    "reward": RewardConfig,
    "prm": PrmConfig,
    "sample": SampleConfig,
}


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> PostRecipe:
    """Read a recipe of post-training; `overrides` are `key=value` words. FactoryError for what does not fit."""
    given = read_table(path)
    known = [*SECTIONS, "stage", "name", "out"]
    for name in given:
        if name not in known:
            raise FactoryError(f"{path}: unknown key {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    for word in overrides:
        override(given, word, SECTIONS)
    values: dict[str, Any] = {"stage": typed("", "stage", given["stage"], Stage)}
    values["name"] = typed("", "name", given.get("name", Path(path).stem), str)
    values["out"] = typed("", "out", given.get("out", ""), str)
    for name, class_ in SECTIONS.items():
        values[name] = section(name, class_, given.get(name, {}), str(path))
    recipe = PostRecipe(**values)
    recipe.check()
    return recipe

"""What scaling laws say: the best learning rate and batch size for a model of N parameters trained on D tokens.

Two published laws are built in; model.scaling fits others and writes them to law.json.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from factory.engine.errors import FactoryError, nearest
from factory.engine.files import write_json
from model.config import ModelConfig, TrainRecipe
from model.scaling import SCALING
from model.transformer import Transformer

Variable = Literal["N", "D", "C"]


class Scale(NamedTuple):
    """How large a training is: N parameters (`parameters`), D tokens, C = M D floating point operations (`compute`)."""

    N: int | float
    D: int | float
    C: float


def parameters(config: ModelConfig) -> int:
    """The parameters that one token uses, without the embedding and the output layer.

    This is Step Law's N of a dense model ("non-embedding", arXiv 2503.04715, appendix A.1) and DeepSeek LLM's N_1. Of a
    mixture of experts those count that a token goes to. FactoryError where vocab_size is not known yet.
    """
    if not config.vocab_size:
        raise FactoryError("model.vocab_size is not known yet: the data's tokenizer says it")
    with torch.device("meta"):  # shapes without memory
        model = Transformer(config)
    tables = 1 if config.tie_word_embeddings else 2
    return model.activated_count() - tables * config.vocab_size * config.hidden_size


def compute(config: ModelConfig, sequence_length: int) -> float:
    """M, the floating point operations of training a token: 6 N + 12 layers width length.

    DeepSeek LLM (arXiv 2401.02954, equation 2) writes 72 layers width² + 12 layers width length: its layers have
    12 width² parameters each, and the second term is attention, counted as if nothing were masked. With grouped queries
    or another feed-forward size the parameters themselves are counted.
    """
    width = config.num_attention_heads * config.head_dim
    return 6.0 * parameters(config) + 12.0 * config.num_hidden_layers * width * sequence_length


def scale_of(config: ModelConfig, tokens: int, sequence_length: int) -> Scale:
    """The scale of a training of `tokens` tokens in sequences of `sequence_length`."""
    return Scale(parameters(config), tokens, compute(config, sequence_length) * tokens)


@dataclass(frozen=True)
class PowerLaw:
    """exp(intercept) times the product of each variable to its exponent; natural logarithms.

    A fitted one also has the covariance of (intercept, exponents in their order), and `t`, by which a standard error is
    multiplied for the ends of a 95% interval.
    """

    intercept: float
    exponents: dict[Variable, float]
    covariance: list[list[float]] | None = None
    t: float | None = None

    def __call__(self, scale: Scale) -> float:
        return math.exp(self.intercept + sum(e * math.log(getattr(scale, v)) for v, e in self.exponents.items()))

    def interval(self, scale: Scale) -> tuple[float, float] | None:
        """The 95% interval of the law's value here; None of a published law. A single optimum scatters more widely."""
        if self.covariance is None or self.t is None:
            return None
        x = [1.0, *(math.log(getattr(scale, v)) for v in self.exponents)]
        pairs = ((a, b, c) for a, row in zip(x, self.covariance, strict=True) for b, c in zip(x, row, strict=True))
        error = self.t * math.sqrt(max(0.0, sum(a * b * c for a, b, c in pairs)))
        value = self(scale)
        return value * math.exp(-error), value * math.exp(error)


@dataclass(frozen=True)
class Law:
    """A law for the highest learning rate and the tokens in a step, and where it holds."""

    name: str
    source: str
    learning_rate: PowerLaw
    batch_tokens: PowerLaw | None
    """None where a grid had too few batch sizes to fit one."""
    range: dict[Variable, tuple[float, float]]
    """The least and the greatest of the points that the law was fitted to."""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of a fitted law: what it was fitted to, its errors, what was left out."""

    def outside(self, scale: Scale) -> list[str]:
        """A line for each variable in which a training lies outside the law's points."""
        return [
            f"{variable} = {getattr(scale, variable):.3g} lies outside the points of the law {self.name!r}, "
            f"{low:.3g} to {high:.3g}: extrapolated"
            for variable, (low, high) in self.range.items()
            if not low * 0.999 <= getattr(scale, variable) <= high * 1.001
        ]

    def save(self, path: Path) -> None:
        write_json(str(path), dataclasses.asdict(self))


BUILT_IN = {
    "deepseek": Law(
        name="deepseek",
        source="DeepSeek LLM, arXiv 2401.02954, equation 1: fitted to budgets of 1e17 to 2e19, tried at 1e20",
        learning_rate=PowerLaw(math.log(0.3118), {"C": -0.1250}),
        batch_tokens=PowerLaw(math.log(0.2920), {"C": 0.3271}),
        range={"C": (1e17, 2e19)},
    ),
    "step": Law(
        name="step",
        source="Step Law, arXiv 2503.04715, equation 1: dense models, cosine down to a fixed rate of 1e-5",
        learning_rate=PowerLaw(math.log(1.79), {"N": -0.713, "D": 0.307}),
        batch_tokens=PowerLaw(math.log(0.58), {"D": 0.571}),
        range={"N": (60e6, 1.07e9), "D": (2e9, 100e9)},
    ),
}


def load_law(name: str) -> Law:
    """A built-in law by name, or one from a law.json. FactoryError for anything else."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    if not path.is_file():
        raise FactoryError(
            f"optimizer.scaling = {name!r}: no such file and not a built-in law{nearest(name, BUILT_IN)}; "
            f"built in: {', '.join(BUILT_IN)}"
        )
    try:
        given = json.loads(path.read_text("utf-8"))
        powers = {key: PowerLaw(**given[key]) if given[key] else None for key in ("learning_rate", "batch_tokens")}
        span = {variable: (float(low), float(high)) for variable, (low, high) in given["range"].items()}
        return Law(**{**given, **powers, "range": span})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FactoryError(f"{path}: not a law that model.scaling wrote: {type(error).__name__}: {error}") from error


def resolve(recipe: TrainRecipe, row_length: int, quiet: bool = False) -> TrainRecipe:
    """The recipe with numbers in place of `scaling`; unless `quiet` says which, by which law, where it extrapolates.

    D is what the recipe trains on: the tokens of all its stages, or steps x batch x `row_length`, the length of the
    data's rows. A stage whose schedule says `scaling` begins at the same rate.
    """
    schedules = [recipe.optimizer, *(stage.optimizer for stage in recipe.stages)]
    asked = [
        name
        for name, found in (
            ("batch_size", recipe.train.batch_size == SCALING),
            ("learning_rate", any(one is not None and one.learning_rate == SCALING for one in schedules)),
        )
        if found
    ]
    if not asked:
        return recipe
    law, said = load_law(recipe.optimizer.scaling), []
    if "batch_size" in asked:
        length = (recipe.stages and recipe.stages[0].sequence_length) or row_length
        batch = sequences(law, recipe, length)
        said.append(f"batch_size = {batch} ({batch * length:,} tokens)")
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, batch_size=batch))
    scale = whole_scale(recipe, row_length)
    if "learning_rate" in asked:
        rate, ends = law.learning_rate(scale), law.learning_rate.interval(scale)
        said.append(f"learning_rate = {rate:.4g}" + (f" (95% {ends[0]:.3g} to {ends[1]:.3g})" if ends else ""))
        recipe = _with_rate(recipe, rate)
    if quiet:
        return recipe
    print(f"{' and '.join(said)} by the law {law.name!r}: N = {scale.N:,}, D = {scale.D:,}, C = {scale.C:.3g}")
    for line in law.outside(scale):
        print(f"warning: {line}", file=sys.stderr)
    return recipe


def _with_rate(recipe: TrainRecipe, rate: float) -> TrainRecipe:
    def filled(part: Any) -> Any:
        return dataclasses.replace(part, learning_rate=rate) if part and part.learning_rate == SCALING else part

    stages = tuple(dataclasses.replace(stage, optimizer=filled(stage.optimizer)) for stage in recipe.stages)
    return dataclasses.replace(recipe, optimizer=filled(recipe.optimizer), stages=stages)


def whole_scale(recipe: TrainRecipe, row_length: int) -> Scale:
    """The scale of all of a recipe's training: its stages, or its steps of sequences of `row_length`."""
    if not recipe.stages:
        return scale_of(recipe.model, recipe.train.steps * recipe.train.batch_size * row_length, row_length)
    tokens, operations, length = 0, 0.0, row_length
    for stage in recipe.stages:
        length = stage.sequence_length or length
        tokens, operations = tokens + stage.tokens, operations + compute(recipe.model, length) * stage.tokens
    return Scale(parameters(recipe.model), tokens, operations)


def sequences(law: Law, recipe: TrainRecipe, length: int) -> int:
    """The law's batch in whole sequences of `length`, at least one.

    It is for the tokens of the stages. Without stages the tokens are those of the recipe's steps, so that it is the
    batch that is right for the tokens that it makes itself: B = f(steps B).
    """
    power = law.batch_tokens
    if power is None:
        raise FactoryError(f"the law {law.name!r} has no batch size: give train.batch_size a number")
    if recipe.stages:
        return max(1, round(power(whole_scale(recipe, length)) / length))
    growth = power.exponents.get("D", 0.0) + power.exponents.get("C", 0.0)
    if growth >= 1:
        raise FactoryError(
            f"the batch of the law {law.name!r} grows as fast as the tokens: give train.batch_size a number"
        )
    one = scale_of(recipe.model, recipe.train.steps, length)  # as if a step had one token
    return max(1, round(power(one) ** (1 / (1 - growth)) / length))

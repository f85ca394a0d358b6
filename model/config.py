"""What a training recipe says: the model's shape, the data, the optimizer, the course of training.

A recipe is a TOML file with the sections [model], [data], [optimizer], [train]; each key is a field below. Any key may
be given on the command line as `key=value` (or `section.key=value`) and then wins. A section [scaling] makes it a grid
of trainings, see model/scaling.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from factory.engine.errors import FactoryError, nearest
from model.attention import DualChunk
from model.presets import PRESETS
from model.rope import RopeScaling
from model.scaling import SCALING, Grid


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a transformer; names and meaning are those of Hugging Face's configurations of the three forms."""

    preset: str = ""
    """A published size, such as `qwen2.5-0.5b` (all: model/presets.py): it gives every value that is not said here."""
    model_type: Literal["qwen2", "qwen2_moe", "llama"] = "qwen2"
    """`qwen2` is dense, `qwen2_moe` a mixture of experts, `llama` dense without bias on q, k and v."""
    vocab_size: int = 0
    """Rows of the embedding; 0 takes the number of tokens of the data's tokenizer."""
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 2048
    """The longest sequence that the model is made for."""
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    """A table [model.rope_scaling] stretches the positions, see model/rope.py."""
    dual_chunk_attention_config: DualChunk | None = None
    """A table [model.dual_chunk_attention_config] turns dual chunk attention on, see model/attention.py."""
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    tie_word_embeddings: bool = True
    """One matrix for the embedding and the output layer."""
    num_experts: int = 0
    """qwen2_moe only, like all below: the routed experts of a layer."""
    num_experts_per_tok: int = 4
    """The experts that each token goes to."""
    moe_intermediate_size: int = 192
    """The size of a routed expert."""
    shared_expert_intermediate_size: int = 768
    norm_topk_prob: bool = False
    """The weights of a token's experts sum to 1."""
    decoder_sparse_step: int = 1
    """Each so many-th layer has experts."""
    mlp_only_layers: tuple[int, ...] = ()
    """Layers without experts in any case, counted from 0."""
    router_aux_loss_coef: float = 0.001
    """The weight of the load-balancing loss."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def sparse(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has experts."""
        if self.model_type != "qwen2_moe" or layer in self.mlp_only_layers:
            return False
        return (layer + 1) % self.decoder_sparse_step == 0

    def check(self) -> None:
        """Raises FactoryError where the numbers do not fit together."""
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rope_theta"):
            if getattr(self, name) <= 0:
                raise FactoryError(f"model.{name} = {getattr(self, name)}: must be above 0")
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise FactoryError(
                f"model.hidden_size = {self.hidden_size} must be an even multiple of "
                f"num_attention_heads = {self.num_attention_heads}"
            )
        if self.num_key_value_heads <= 0 or self.num_attention_heads % self.num_key_value_heads:
            raise FactoryError(
                f"model.num_attention_heads = {self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )
        for part in (self.rope_scaling, self.dual_chunk_attention_config):
            if part is not None:
                part.check()
        if self.model_type != "qwen2_moe":
            if self.num_experts:
                raise FactoryError(
                    f"model.num_experts = {self.num_experts}: only model_type = 'qwen2_moe' has experts, "
                    f"this is {self.model_type!r}"
                )
            return
        for name in ("num_experts", "moe_intermediate_size", "shared_expert_intermediate_size", "decoder_sparse_step"):
            if getattr(self, name) <= 0:
                raise FactoryError(f"model.{name} = {getattr(self, name)}: must be above 0")
        if not 0 < self.num_experts_per_tok <= self.num_experts:
            raise FactoryError(
                f"model.num_experts_per_tok = {self.num_experts_per_tok}: must be between 1 and "
                f"num_experts = {self.num_experts}"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The token shards and how they are read."""

    path: str = ""
    """A dataset folder made by a recipe with `tokens.Pack`; on the command line: `data=FOLDER`."""
    seed: int = 0
    """Decides the order of the sequences."""
    evaluation_share: float = 0.02
    """The share of the data that is held out for evaluation: whole shards where there are enough of them."""
    shuffle_tokens: int = 1 << 26
    """Sequences are shuffled among about so many tokens, which are held in memory (4 bytes a token)."""
    documents: Literal["joined", "masked", "restarted"] = "joined"
    """What a token sees of a packed sequence. `joined`: all before it, other documents too (UltraLong); `masked`: only
    its own document, while positions run on (as in transformers, unless it is given position_ids); `restarted`: and
    positions begin at 0 in each document. The last two differ only with dual chunk attention."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and the learning rate over time."""

    learning_rate: Annotated[float, SCALING] = 1e-3
    """The highest, after the warm-up. `scaling` takes what the law below says; training sees a number."""
    scaling: str = "step"
    """The law for what is `scaling`: `step`, `deepseek`, or a law.json that model.scaling wrote."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: `cosine` falls at once; `wsd` stays at the top and falls in a straight line at the end."""
    warmup_steps: int = 100
    decay_share: float = 0.2
    """wsd only: the share of all steps in which the rate falls."""
    final_share: float = 0.1
    """The last learning rate as a share of the highest."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    """On matrices; not on biases and norms."""
    clip: float = 1.0
    """The gradient's norm is cut to this."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The course of training."""

    steps: int = 1000
    batch_size: Annotated[int, SCALING] = 16
    """Sequences in a step. `scaling` takes what the law optimizer.scaling says."""
    seed: int = 0
    """Decides the initial weights."""
    upcycle: str = ""
    """A dense checkpoint folder in Hugging Face's form from which a qwen2_moe model starts (model/upcycle.py)."""
    evaluate_every: int = 200
    """Steps between evaluations on the held-out data; there is one at the end in any case."""
    evaluation_sequences: int = 128
    """At most so many held-out sequences are used."""
    save_every: int = 200
    """Steps between checkpoints; a killed training goes on from the last one."""
    threads: int = 0
    """CPU threads; 0 for one on each core. Another number may change the last bits of the weights."""
    sample_prompt: str = "Returns a new"
    """What the sample at the end continues."""


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """A whole training recipe."""

    name: str = "model"
    """The run folder is runs/train/NAME; on the command line `out=FOLDER` says another."""
    out: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    scaling: Grid = field(default_factory=Grid)


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "scaling": Grid,
}
TOP = ("name", "out")


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> TrainRecipe:
    """Read a training recipe; `overrides` are `key=value` words. Raises FactoryError for anything that does not fit."""
    try:
        with Path(path).open("rb") as file:
            given = tomllib.load(file)
    except OSError as error:
        raise FactoryError(f"{path}: cannot read the training recipe: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise FactoryError(f"{path}: not valid TOML: {error}") from error
    for name in given:
        if name not in SECTIONS and name not in TOP:
            known = [*SECTIONS, *TOP]
            raise FactoryError(f"{path}: unknown key {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    for word in overrides:
        _override(given, word)
    values: dict[str, Any] = {name: _typed("", name, given[name], str) for name in TOP if name in given}
    values.setdefault("name", Path(path).stem)
    for name, class_ in SECTIONS.items():
        table = given.get(name, {})
        if name == "model" and isinstance(table, dict) and table.get("preset"):
            table = preset(table["preset"]) | table
        values[name] = section(name, class_, table, str(path))
    recipe = TrainRecipe(**values)
    _check(recipe)
    return recipe


def preset(name: Any) -> dict[str, Any]:
    """The keys of a published size."""
    if name not in PRESETS:
        raise FactoryError(
            f"model.preset = {name!r}: unknown{nearest(str(name), PRESETS)}; known: {', '.join(PRESETS)}"
        )
    return PRESETS[name]


def section(name: str, class_: type, given: Mapping[str, Any], path: str) -> Any:
    """A section's dataclass from a table of keys, each checked by name and type."""
    if not isinstance(given, Mapping):
        raise FactoryError(f"{path}: [{name}] must be a table of keys")
    hints = typing.get_type_hints(class_, include_extras=True)
    for key in given:
        if key not in hints:
            raise FactoryError(f"{path}: unknown key {key!r} in [{name}]{nearest(key, hints)}")
    values = {key: _typed(name, key, value, hints[key]) for key, value in given.items()}
    for part in dataclasses.fields(class_):
        if part.default is part.default_factory is dataclasses.MISSING and part.name not in values:
            raise FactoryError(f"{path}: [{name}] has no {part.name}")
    return class_(**values)


def _override(given: dict[str, Any], word: str) -> None:
    key, equals, text = word.partition("=")
    if not equals:
        raise FactoryError(f"{word!r} is not of the form key=value")
    if key == "data":
        key = "data.path"
    if key in TOP:
        given[key] = text
        return
    owner, dot, name = key.rpartition(".")
    fields = {s: [f.name for f in dataclasses.fields(class_)] for s, class_ in SECTIONS.items()}
    places = [s for s in fields if name in fields[s] and (s == owner or not dot)]
    if not places:
        known = [f"{s}.{n}" for s in fields for n in fields[s]] if dot else [n for s in fields for n in fields[s]]
        raise FactoryError(f"unknown key {key!r}{nearest(key, known)} in {word!r}")
    if len(places) > 1:
        raise FactoryError(f"{key!r} is in several sections: say {' or '.join(f'{s}.{name}' for s in places)}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a string without quotes
    table = given.setdefault(places[0], {})
    if isinstance(table, dict):
        table[name] = value


def _typed(section_: str, key: str, value: Any, hint: Any) -> Any:
    where = f"{section_}.{key}" if section_ else key
    instead = ""
    if typing.get_origin(hint) is Annotated:  # a word that may stand for the value
        hint, word = typing.get_args(hint)
        instead = f" or {word!r}"
        if value == word:
            return value
    table = next((part for part in typing.get_args(hint) if dataclasses.is_dataclass(part)), None)
    if isinstance(table, type):
        return section(where, table, value, "the recipe")
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise FactoryError(f"{where} = {value!r}: must be one of {', '.join(map(repr, choices))}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_typed(section_, key, one, typing.get_args(hint)[0]) for one in value)
    if type(value) is not hint:
        kind = hint.__name__ if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) else str(hint)
        raise FactoryError(f"{where} = {value!r}: must be of type {kind}{instead}, not {type(value).__name__}")
    return value


def _check(recipe: TrainRecipe) -> None:
    recipe.model.check()
    recipe.scaling.check()
    positive = {
        "train": ("steps", "batch_size", "evaluate_every", "evaluation_sequences", "save_every"),
        "data": ("shuffle_tokens",),
        "optimizer": ("learning_rate", "clip", "epsilon"),
        "model": ("rms_norm_eps", "rope_theta"),
    }
    not_negative = {
        "train": ("seed", "threads"),
        "data": ("seed",),
        "optimizer": ("warmup_steps", "weight_decay"),
        "model": ("vocab_size", "initializer_range"),
    }
    for name in positive:
        part = getattr(recipe, name)
        for one in dataclasses.fields(part):
            value = getattr(part, one.name)
            if value == SCALING:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise FactoryError(f"{name}.{one.name} = {value}: must be a number")
            if one.name in positive[name] and value <= 0:
                raise FactoryError(f"{name}.{one.name} = {value}: must be above 0")
            if one.name in not_negative[name] and value < 0:
                raise FactoryError(f"{name}.{one.name} = {value}: must not be negative")
    shares = (
        ("data.evaluation_share", recipe.data.evaluation_share),
        ("optimizer.decay_share", recipe.optimizer.decay_share),
        ("optimizer.final_share", recipe.optimizer.final_share),
    )
    for where, value in shares:
        if not 0 <= value <= 1:
            raise FactoryError(f"{where} = {value}: must lie between 0 and 1")
    rates = recipe.optimizer
    for where, value in (("beta1", rates.beta1), ("beta2", rates.beta2)):
        if not 0 <= value < 1:
            raise FactoryError(f"optimizer.{where} = {value}: must be at least 0 and below 1")
    falling = round(rates.decay_share * recipe.train.steps)
    if rates.schedule == "wsd" and rates.warmup_steps + falling > recipe.train.steps:
        raise FactoryError(
            f"optimizer.warmup_steps = {rates.warmup_steps} and a decay of {falling} steps are more than "
            f"train.steps = {recipe.train.steps}"
        )
    if recipe.data.evaluation_share > 0.5:
        raise FactoryError(f"data.evaluation_share = {recipe.data.evaluation_share}: at most 0.5, the rest trains")

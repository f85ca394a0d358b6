"""Reads a training recipe: TOML, with any key given anew on the command line, checked before any work.

`key=value` or `section.key=value` on the command line wins; a stage's key is `stage.NAME.key=value`.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from factory.engine.errors import FactoryError, nearest
from model.checkpoint import configuration
from model.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    Schedule,
    StageConfig,
    TrainConfig,
    TrainRecipe,
)
from model.options import section, typed, value
from model.presets import PRESETS
from model.scaling import SCALING, Grid

SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "probe": ProbeConfig,
    "scaling": Grid,
}
TOP = ("name", "out")
STAGES = "stage"


def read_table(path: str | Path) -> dict[str, Any]:
    """The TOML table of a training recipe."""
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise FactoryError(f"{path}: cannot read the training recipe: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise FactoryError(f"{path}: not valid TOML: {error}") from error


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> TrainRecipe:
    """Read a training recipe; `overrides` are `key=value` words. Raises FactoryError for anything that does not fit."""
    given = read_table(path)
    known = [*SECTIONS, *TOP, STAGES]
    for name in given:
        if name not in known:
            raise FactoryError(f"{path}: unknown key {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    _name_stages(given, str(path))
    for word in overrides:
        override(given, word, SECTIONS)
    _name_stages(given, str(path))  # a word can give a stage another name
    values: dict[str, Any] = {name: typed("", name, given[name], str) for name in TOP if name in given}
    values.setdefault("name", Path(path).stem)
    for name, class_ in SECTIONS.items():
        table = given.get(name, {})
        if name == "model" and isinstance(table, dict):
            table = _shape(table, given.get("train")) | table
        values[name] = section(name, class_, table, str(path))
    values["stages"] = tuple(_stage(table, values["optimizer"], str(path)) for table in given.get(STAGES, []))
    if values["stages"] and "steps" in given.get("train", {}):
        raise FactoryError(f"{path}: train.steps says nothing where there are stages: each has its own tokens")
    recipe = TrainRecipe(**values)
    _check(recipe)
    return recipe


def _shape(table: Mapping[str, Any], train: Any) -> dict[str, Any]:
    """The keys of [model] that come from a published size, or from the checkpoint that training begins with."""
    start = train.get("start") if isinstance(train, dict) else None
    if start and not table.get("preset"):
        return {name: value for name, value in configuration(str(start)).items() if value is not None}
    return preset(table["preset"]) if table.get("preset") else {}


def _name_stages(given: dict[str, Any], path: str) -> None:
    """Each stage a name of its own: its number where it has none."""
    stages = given.get(STAGES, [])
    if not isinstance(stages, list) or not all(isinstance(one, dict) for one in stages):
        raise FactoryError(f"{path}: a stage is written [[{STAGES}]], with two brackets")
    for number, table in enumerate(stages, 1):
        table["name"] = table.get("name") or str(number)
    names = [str(table["name"]) for table in stages]
    for name in names:
        if names.count(name) > 1:
            raise FactoryError(f"{path}: two stages have the name {name!r}")
        if "/" in name:
            raise FactoryError(f"{path}: stage {name!r}: a folder is called so, its name cannot have a /")


def _stage(table: dict[str, Any], optimizer: OptimizerConfig, path: str) -> StageConfig:
    where = f"stage {table['name']}"
    schedule = table.get("optimizer")
    if isinstance(schedule, dict):
        common = {part.name: getattr(optimizer, part.name) for part in dataclasses.fields(Schedule)}
        table = table | {"optimizer": common | schedule}
    return section(where, StageConfig, table, path)


def preset(name: Any) -> dict[str, Any]:
    """The keys of a published size."""
    if name not in PRESETS:
        raise FactoryError(
            f"model.preset = {name!r}: unknown{nearest(str(name), PRESETS)}; known: {', '.join(PRESETS)}"
        )
    return PRESETS[name]


def override(given: dict[str, Any], word: str, sections: Mapping[str, type]) -> None:
    """Take over a `key=value` word of the command line; the key's section is found by its name where it is not said."""
    key, equals, text = word.partition("=")
    if not equals:
        raise FactoryError(f"{word!r} is not of the form key=value")
    if key == "data":
        _one_dataset(given, text)
        return
    if key in TOP:
        given[key] = text
        return
    *owners, name = key.split(".")
    if owners[:1] == [STAGES] and len(owners) > 1:
        named = {table["name"]: table for table in given.get(STAGES, [])}
        if owners[1] not in named:
            raise FactoryError(f"no stage {owners[1]!r}{nearest(owners[1], named)} in {word!r}")
        table, inner = named[owners[1]], owners[2:]
    else:
        table, inner = given.setdefault(_section_of(key, owners, name, word, sections), {}), owners[1:]
    for part in inner:
        table = table.setdefault(part, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise FactoryError(f"{word!r}: {'.'.join(owners)} is not a table of keys")
    table[name] = value(text)


def _one_dataset(given: dict[str, Any], path: str) -> None:
    """`data=FOLDER`: one dataset instead of all that the recipe names, with their weights."""
    tables = [given.setdefault("data", {}), *given.get(STAGES, [])]
    for table in tables:
        for name in ("sets", "weights"):
            if isinstance(table, dict):
                table.pop(name, None)
    if isinstance(tables[0], dict):
        tables[0]["path"] = path


def _section_of(key: str, owners: list[str], name: str, word: str, sections: Mapping[str, type]) -> str:
    """The section of a key on the command line, said or found by the key's name."""
    fields = {s: [f.name for f in dataclasses.fields(class_)] for s, class_ in sections.items()}
    first = owners[1] if len(owners) > 1 else name
    places = [s for s in fields if first in fields[s] and s in (owners[:1] or [s])]
    if not places:
        known = [f"{s}.{n}" for s in fields for n in fields[s]] if owners else [n for s in fields for n in fields[s]]
        raise FactoryError(f"unknown key {key!r}{nearest(key, known)} in {word!r}")
    if len(places) > 1:
        raise FactoryError(f"{key!r} is in several sections: say {' or '.join(f'{s}.{name}' for s in places)}")
    return places[0]


def _check(recipe: TrainRecipe) -> None:
    recipe.model.check()
    recipe.scaling.check()
    positive = {
        "train": ("steps", "batch_size", "evaluate_every", "evaluation_sequences", "save_every", "context_parallel"),
        "data": ("shuffle_tokens",),
        "optimizer": ("learning_rate", "clip", "epsilon"),
        "model": ("rms_norm_eps", "rope_theta"),
        "probe": ("every", "count", "max_new_tokens"),
    }
    not_negative = {
        "train": ("seed", "threads", "micro_batch_size"),
        "data": ("seed",),
        "optimizer": ("warmup_steps", "weight_decay"),
        "model": ("vocab_size", "initializer_range"),
        "probe": (),
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
    if not 0 <= recipe.data.evaluation_share <= 0.5:
        raise FactoryError(
            f"data.evaluation_share = {recipe.data.evaluation_share}: must lie between 0 and 0.5, the rest trains"
        )
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(recipe.optimizer, name) < 1:
            raise FactoryError(f"optimizer.{name} = {getattr(recipe.optimizer, name)}: must be at least 0 and below 1")
    if not recipe.stages:
        recipe.optimizer.check("optimizer", recipe.train.steps)
    if recipe.train.start and recipe.train.upcycle:
        raise FactoryError("train.start and train.upcycle: a training begins with one checkpoint, give one of them")
    if bool(recipe.probe.data) != bool(recipe.probe.reward):
        raise FactoryError("[probe] needs both: data, the questions, and reward, which judges the answers")
    if recipe.data.path and recipe.data.sets:
        raise FactoryError("data.path and data.sets: give one dataset, or name several")
    _check_weights("data.weights", recipe.data.weights, recipe.data)
    for stage in recipe.stages:
        _check_stage(f"stage {stage.name}", stage, recipe)


def _check_stage(where: str, stage: StageConfig, recipe: TrainRecipe) -> None:
    if stage.tokens <= 0:
        raise FactoryError(f"{where}: tokens = {stage.tokens}: say how many tokens it trains on")
    for name in ("sequence_length", "batch_size", "rope_theta"):
        if not 0 <= getattr(stage, name) < math.inf:
            raise FactoryError(f"{where}: {name} = {getattr(stage, name)}: must be a number, not negative")
    if stage.maximum_share is not None and not 0 < stage.maximum_share <= 1:
        raise FactoryError(f"{where}: maximum_share = {stage.maximum_share}: must be above 0 and at most 1")
    if not 0 <= stage.until <= 1:
        raise FactoryError(f"{where}: until = {stage.until}: must be from 0 to 1")
    if stage.until and not recipe.probe.data:
        raise FactoryError(f"{where}: until = {stage.until}, but nothing is asked: say data and reward in [probe]")
    for part in (stage.rope_scaling, stage.dual_chunk_attention_config):
        if part is not None:
            part.check()
    scaling = stage.rope_scaling
    if scaling is not None and scaling.rope_type != "linear" and not scaling.original_max_position_embeddings:
        raise FactoryError(
            f"{where}: rope_scaling has no original_max_position_embeddings: say the length that was trained before it"
        )
    if stage.optimizer is not None:
        rate, warmup = stage.optimizer.learning_rate, stage.optimizer.warmup_steps
        if rate != SCALING and not 0 < rate < math.inf:
            raise FactoryError(f"{where}: learning_rate = {rate}: must be a number above 0")
        if warmup < 0:
            raise FactoryError(f"{where}: warmup_steps = {warmup}: must not be negative")
    _check_weights(f"{where}: weights", stage.weights, recipe.data)


def _check_weights(where: str, weights: Mapping[str, float], data: DataConfig) -> None:
    if weights and not data.sets:
        raise FactoryError(f"{where}: there is one dataset only: name several in [data.sets]")
    for name, weight in weights.items():
        if name not in data.sets:
            raise FactoryError(f"{where}: no set {name!r} in [data.sets]{nearest(name, data.sets)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise FactoryError(f"{where}: {name} = {weight}: must be a number, not negative")
    if weights and not any(weights.values()):
        raise FactoryError(f"{where}: all are 0")

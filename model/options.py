"""Tables of a recipe as checked values: every key by its name, every value by its type."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from factory.engine.errors import FactoryError, nearest


def section(name: str, class_: type, given: Mapping[str, Any], path: str) -> Any:
    """A section's dataclass from a table of keys, each checked by name and type."""
    if not isinstance(given, Mapping):
        raise FactoryError(f"{path}: [{name}] must be a table of keys")
    hints = typing.get_type_hints(class_, include_extras=True)
    for key in given:
        if key not in hints:
            raise FactoryError(f"{path}: unknown key {key!r} in [{name}]{nearest(key, hints)}")
    values = {key: typed(name, key, value, hints[key]) for key, value in given.items()}
    for part in dataclasses.fields(class_):
        if part.default is part.default_factory is dataclasses.MISSING and part.name not in values:
            raise FactoryError(f"{path}: [{name}] has no {part.name}")
    return class_(**values)


def typed(section_: str, key: str, value: Any, hint: Any) -> Any:
    """A value as a field of the type `hint` holds it. FactoryError names the key where it does not fit."""
    where = f"{section_}.{key}" if section_ else key
    instead = ""
    if typing.get_origin(hint) is Annotated:  # a word that may stand for the value
        hint, word = typing.get_args(hint)
        if value == word:
            return value
        instead = f" or {word!r}"
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    if type(None) in typing.get_args(hint) and len(parts) == 1:
        hint = parts[0]  # TOML has no null: a key that is there has a value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else section(where, hint, value, "the recipe")
    if typing.get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise FactoryError(f"{where} = {value!r}: must be a table of keys")
        return {name: typed(where, name, one, parts[1]) for name, one in value.items()}
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise FactoryError(f"{where} = {value!r}: must be one of {', '.join(map(repr, choices))}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if hint is int and type(value) is float and value.is_integer():
        return int(value)  # 16e12 tokens
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(typed(section_, key, one, parts[0]) for one in value)
    if type(value) is not hint:
        kind = hint.__name__ if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) else str(hint)
        raise FactoryError(f"{where} = {value!r}: must be of type {kind}{instead}, not {type(value).__name__}")
    return value


def value(text: str) -> Any:
    """What stands behind the `=` of a word on the command line: TOML, or the text as it is."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a string without quotes

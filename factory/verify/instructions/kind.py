"""Kinds of instructions: each a function that judges a response, with its arguments, words for a prompt, and a draw.

    @instruction("startend:first_word", describe=lambda word: f"Begin with {word!r}.", draw=lambda rng: {"word": "So"})
    def first_word(response: str, *, word: str) -> Check:
        return Check(response.split()[:1] == [word], "it begins otherwise")

The arguments are the function's keywords, their types its annotations; one with a default may be left out. A function
that has a keyword `prompt` is given the prompt of the response. The reason of its Check is read where it is not passed.
It must judge any text, and soon: no pattern that backtracks, no recursion that a long text makes deep.
"""

from __future__ import annotations

import inspect
import random
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from factory.engine.errors import FactoryError, nearest
from factory.verify.check import Check

Relation = Literal["less than", "at least"]
"""How a count compares with the number that an instruction names."""
Function = Callable[..., Check]


@dataclass(frozen=True)
class Kind:
    """A kind of instruction, under its id `group:name`."""

    id: str
    function: Function
    describe: Callable[..., str]
    draw: Callable[[random.Random], dict[str, Any]]
    types: Mapping[str, TypeAdapter[Any]]
    required: frozenset[str]
    asks_prompt: bool

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function takes them. A null counts as not given, as in tables of all kinds' arguments.

        FactoryError names one that is unknown, missing or of another type.
        """
        found = {name: value for name, value in given.items() if value is not None}
        known = ", ".join(self.types) or "none"
        for name in found:
            if name not in self.types:
                raise FactoryError(
                    f"instruction {self.id}: unknown argument {name!r}{nearest(name, self.types)}; it takes: {known}"
                )
        for name in self.types:
            if name in self.required and name not in found:
                raise FactoryError(f"instruction {self.id}: the argument {name!r} is missing; it takes: {known}")
        for name, value in found.items():
            try:
                self.types[name].validate_python(value)
            except ValidationError as error:
                first = error.errors()[0]
                raise FactoryError(
                    f"instruction {self.id}: {name} = {value!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
                ) from None
        return found


_KINDS: dict[str, Kind] = {}


def instruction(
    id: str, *, describe: Callable[..., str], draw: Callable[[random.Random], dict[str, Any]] = lambda rng: {}
) -> Callable[[Function], Function]:
    """Make a function a kind of instruction. `describe(**arguments)` are words for a prompt, `draw(rng)` arguments."""

    def register(function: Function) -> Function:
        hints = typing.get_type_hints(function, include_extras=True)
        keywords = {
            name: parameter
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        asks_prompt = keywords.pop("prompt", None) is not None
        strict = ConfigDict(strict=True)
        made = Kind(
            id,
            function,
            describe,
            draw,
            {name: TypeAdapter(hints[name], config=strict) for name in keywords},
            frozenset(name for name, one in keywords.items() if one.default is inspect.Parameter.empty),
            asks_prompt,
        )
        other = _KINDS.setdefault(id, made)
        if other is not made:
            raise FactoryError(
                f"instruction {id}: {function.__module__}.{function.__name__} and {other.function.__module__}."
                f"{other.function.__name__} have the same id: give one another"
            )
        return function

    return register


def kinds() -> tuple[str, ...]:
    """The ids of all kinds: IFEval's, ours, and those of modules that were imported."""
    return tuple(_KINDS)


def kind(id: str) -> Kind:
    """The kind of an id. FactoryError names the nearest where there is none."""
    if id not in _KINDS:
        raise FactoryError(
            f"instruction {id!r} is of no known kind{nearest(str(id), _KINDS)}; one of your own is known once its "
            "module is imported"
        )
    return _KINDS[id]


def describe(id: str, arguments: Mapping[str, Any]) -> str:
    """The instruction in words, to stand in a prompt."""
    found = kind(id)
    return found.describe(**found.arguments(arguments))


def draw(id: str, rng: random.Random) -> dict[str, Any]:
    """Arguments for an instruction of this kind, as a person might choose them."""
    return kind(id).draw(rng)

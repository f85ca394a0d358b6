"""The factory's verifiers by name: what answers are scored by in evaluation, and rewarded by in training."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROWS = "rows of the dataset"
"""TRL gives a reward function no column that is called `prompt` or `completion`: here are all."""


def _room() -> Any:
    # By its name: what a verifier is made of is the factory's affair, and a model is trained without one as well.
    return importlib.import_module("factory.verify.verifier")


def verifier(name: str, columns: Mapping[str, str] | None = None) -> Any:
    """The `factory.verify.verifier.Verifier` of this name; `columns` says which column a parameter is.

    FactoryError where there is no such function, or it has no such parameter.
    """
    return _room().Verifier(name, columns or {})


def reward(name: str, columns: Mapping[str, str] | None = None) -> Callable[..., list[float | None]]:
    """The same as a reward function of TRL, in whose arguments `ROWS` may have the rows that were asked."""
    made: Callable[..., list[float | None]] = _room().reward(name, columns or {})

    def score(prompts: Sequence[Any], completions: Sequence[Any], **given: Any) -> list[float | None]:
        rows = given.pop(ROWS, None) or [{"prompt": prompt} for prompt in prompts]
        own = {column: [row[column] for row in rows] for column in rows[0]}
        return made(completions, **given | {"prompts": prompts} | own)

    score.__name__ = made.__name__  # TRL logs it by this name
    return score

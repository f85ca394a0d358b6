"""The factory's verifiers by name: what answers are scored by in evaluation, and rewarded by in training."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def _room() -> Any:
    # By its name: what a verifier is made of is the factory's affair, and a model is trained without one as well.
    return importlib.import_module("factory.verify.verifier")


def verifier(name: str, columns: Mapping[str, str] | None = None) -> Any:
    """The `factory.verify.verifier.Verifier` of this name; `columns` says which column a parameter is.

    FactoryError where there is no such function, or it has no such parameter.
    """
    return _room().Verifier(name, columns or {})


def reward(name: str, columns: Mapping[str, str] | None = None) -> Callable[..., list[float | None]]:
    """The same as a reward function of TRL."""
    made: Callable[..., list[float | None]] = _room().reward(name, columns or {})
    return made

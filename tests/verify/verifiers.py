"""Verifiers of the tests' own."""

from __future__ import annotations

import random

from factory.engine.errors import FactoryError
from factory.verify.check import Check

LIBRARIES = ("numpy",)
KEPT = ("by_lot",)


def ends_with(response: str, ending: str, *, minimum: int = 0, exact: bool = True) -> Check:
    """The response has an ending, in its own case or any, and a length."""
    if not ending:
        raise FactoryError("the ending is empty")
    if not exact:
        response, ending = response.lower(), ending.lower()
    if len(response) < minimum:
        return Check(False, "short", 0.25)
    return Check(response.endswith(ending), "" if response.endswith(ending) else f"not {ending}")


def has_a_one(response: str) -> Check:
    """There is a 1 in it."""
    return Check("1" in response)


def answers(response: str, prompt: str, completion: str) -> Check:
    """The prompt is one of the sums, and the completion that of its row."""
    if completion != f"of {prompt}":
        raise FactoryError(f"{completion!r} is not of {prompt!r}")
    return Check("1" in response)


def by_lot(response: str, ending: str) -> Check:
    """Another verdict each time, and none where the ending is empty."""
    if not ending:
        raise FactoryError("the ending is empty")
    return Check(random.random() < 0.5, f"drawn {random.random()}", random.random())

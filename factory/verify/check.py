"""What a verifier says of a text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyarrow as pa

from factory.engine.errors import FactoryError


@dataclass(frozen=True)
class Check:
    """Whether a text passed, why not, and a score from 0 to 1: that of `passed` where the verifier has none finer, or
    what it has is not a number."""

    passed: bool
    reason: str = ""
    """One short line: what was wrong, or how it was settled."""
    score: float = -1.0

    def __post_init__(self) -> None:
        if not 0 <= self.score < math.inf:
            object.__setattr__(self, "score", float(self.passed))


def columns(name: str) -> dict[str, pa.DataType]:
    """The four columns of a critic: whether a row passes (null: it has no opinion), how much from 0 to 1, why, and how
    sure it is, from 0 to 1."""
    return {
        name: pa.bool_(),
        f"{name}_score": pa.float32(),
        f"{name}_reason": pa.large_string(),
        f"{name}_confidence": pa.float32(),
    }


def check_verdict(schema: pa.Schema, name: str) -> None:
    """FactoryError where a column is there and holds no verdicts."""
    if name in schema.names and not pa.types.is_boolean(schema.field(name).type):
        raise FactoryError(f"column {name!r} holds {schema.field(name).type}: a verdict is true or false")

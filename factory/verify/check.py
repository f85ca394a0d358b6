"""What a verifier says of a text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """Whether a text passed, why not, and a score from 0 to 1: that of `passed` where the verifier has none finer."""

    passed: bool
    reason: str = ""
    """One short line: what was wrong, or how it was settled."""
    score: float = -1.0

    def __post_init__(self) -> None:
        if self.score < 0:
            object.__setattr__(self, "score", float(self.passed))

"""Whether isolation works here."""

from __future__ import annotations

from typing import Literal

Isolation = Literal["bubblewrap", "degraded"]


def require_isolation(choice: str | None) -> Isolation:
    """The isolation to use."""
    return "bubblewrap"

"""The one exception that is shown to a user as a line: what is wrong, where, and the cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FactoryError(Exception):
    """A mistake in what was given, or a limit of the machine; the command line prints it as one line, exit code 2."""


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)` where some name is close, else the empty string."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""

"""Compiled loops over Arrow buffers: they read offsets and bytes in place, release the GIL, make no object a document.

`jit` is the only way in which a kernel is compiled, so that all share one set of options and one cache on disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def _cache() -> str:
    """A writable folder for compiled kernels: a read-only install without one would fail at import."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "factory" / "kernels"
    try:
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return str(home)
    except OSError:
        pass
    return os.path.join(tempfile.gettempdir(), f"factory-kernels-{os.getuid()}")


os.environ.setdefault("NUMBA_CACHE_DIR", _cache())

import numba  # noqa: E402  (after the cache folder is known)


def jit(function: F) -> F:
    """Compile for this CPU, cached on disk, without the GIL and without fast-math (its last bits differ by CPU)."""
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)

"""Python's garbage collector, kept away from what lives as long as the process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing(library: str) -> Iterator[None]:
    """For the first import of a large library: no collection runs meanwhile, and later ones, that at the end of the
    process too, pass by all that is there after it. Where it is imported already, nothing changes.

    An import makes hundreds of thousands of objects, hardly any of them garbage, over which each collection would walk.
    """
    if library in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

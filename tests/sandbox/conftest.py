"""A sandbox for the tests of this folder."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.engine.errors import FactoryError
from factory.sandbox.judge import Sandbox
from factory.sandbox.limits import Limits


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """Judges with limits that wrong programs reach soon; tests that use it are skipped where no box can be made."""
    try:
        made = Sandbox(limits=Limits(seconds=5, memory=256 << 20))
    except FactoryError as error:
        pytest.skip(str(error))
    with made:
        yield made


def let_in(folder: Path, mode: int = 0o755) -> None:
    """Let everyone into a folder of pytest's: it closes those above it, of which there are two, or three where tests
    run beside each other, below the system's own."""
    for path in (folder, *folder.parents[:3]):
        if path.stat().st_mode & stat.S_ISVTX:
            break
        path.chmod(mode)

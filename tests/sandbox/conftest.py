"""A sandbox for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

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

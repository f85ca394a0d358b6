"""A small checkpoint, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.teacher.small import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("teacher") / "small")

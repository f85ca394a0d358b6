"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    """Where the real test data lies: FACTORY_DATA, else shared/data beside the repository."""
    return Path(os.environ.get("FACTORY_DATA") or REPOSITORY.parent / "shared" / "data")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real test data; tests that use it are skipped where it is absent."""
    folder = data_folder()
    if not folder.is_dir():
        pytest.skip(f"real test data is not at {folder} (set FACTORY_DATA to where it lies)")
    return folder

"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# The same code gets the same examples, so that a run says something of the change before it.
# HYPOTHESIS_PROFILE=search draws new ones.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


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

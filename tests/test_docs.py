"""The documentation is true: its commands run, its recipes load, its Python runs, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from factory.engine import recipe
from factory.report import reference
from tests.conftest import REPOSITORY
from tests.test_recipes import small_quickstart

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "benchmarks" / "README.md"]
PROSE = [page for page in PAGES if page.name != "reference.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text()) if kind == language]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A checkout in small: the recipes on two packages, nothing else."""
    folder = tmp_path_factory.mktemp("checkout")
    small_quickstart(folder)
    shutil.copytree(REPOSITORY / "recipes" / "train", folder / "recipes" / "train")
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "120"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    # make demo and make test are run from a clean checkout; benchmarks take minutes.
    return [w for w in words if w and w[0] != "make" and not (len(w) > 1 and w[1].startswith("benchmarks/"))]


def test_the_commands_run(workspace):
    """All pages in order, in one workspace, as a reader would go through them."""
    count = 0
    for page in PROSE:
        for words in commands(page):
            program = [sys.executable, "-m", "factory"] if words[0] == "factory" else [sys.executable]
            assert words[0] in ("factory", "python"), f"{page.name}: {words}"
            result = run([*program, *words[1:]], workspace)
            assert result.returncode == 0, f"{page.name}: {shlex.join(words)}\n{result.stderr[-2000:]}"
            count += 1
    assert count > 15


def test_the_python_runs(workspace):
    for page in PROSE:
        for code in blocks(page, "python"):
            result = run([sys.executable, "-c", code], workspace)
            assert result.returncode == 0, f"{page.name}:\n{code}\n{result.stderr[-2000:]}"


@pytest.mark.parametrize("page", PROSE, ids=lambda p: p.stem)
def test_the_recipes_load(page):
    for block in blocks(page, "toml"):
        table = tomllib.loads(block)
        if "step" in table:
            recipe.build({"name": "example", "version": "1", **table}, str(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} → {target}"


def test_the_reference_is_what_the_steps_say():
    written = (REPOSITORY / "docs" / "reference.md").read_text()
    assert written == reference.markdown(), "docs/reference.md is old: factory steps --markdown > docs/reference.md"


ROOMS = ["engine", "kernels", "corpus", "model", "prefer", "report", "sandbox", "synth", "teacher", "verify"]


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_page(room):
    assert (REPOSITORY / "docs" / f"{room}.md").exists()

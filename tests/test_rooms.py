"""Who may import whom: the arrows between the rooms, and what the command line must not load."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

ALLOWED = {
    "factory.__main__": {"factory.engine", "factory.report", "factory.sandbox"},
    "factory.engine": {"factory.engine"},
    "factory.kernels": {"factory.kernels", "factory.engine"},
    "factory.corpus": {"factory.corpus", "factory.kernels", "factory.teacher", "factory.engine"},
    "factory.report": {"factory.report", "factory.engine"},
    "factory.sandbox": {"factory.sandbox", "factory.engine.errors", "factory.engine.files"},
    "factory.teacher": {"factory.teacher", "factory.engine"},
    "factory.verify": {
        *("factory.verify", "factory.sandbox", "factory.teacher", "factory.kernels"),
        *("factory.engine.errors", "factory.engine.files"),
    },
    "factory.synth": {"factory.synth", "factory.teacher", "factory.verify", "factory.sandbox", "factory.engine"},
    "factory.prefer": {"factory.prefer", "factory.teacher", "factory.verify", "factory.kernels", "factory.engine"},
    "model": {"model", "factory.engine"},
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> list[Path]:
    return sorted(p for room in ("factory", "model") for p in (REPOSITORY / room).rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return "model" if parts[0] == "model" else ".".join(parts[:2])


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_rooms_import_only_what_they_may(path):
    room = room_of(path)
    if room == "factory.__init__":
        return
    for name in imports(path):
        if name.split(".")[0] not in ("factory", "model") or name in ("factory", "factory.__version__"):
            continue
        assert any(name == other or name.startswith(other + ".") for other in ALLOWED[room]), f"{path} imports {name}"


def operators() -> list[Path]:
    """The modules of steps: not the parts that a package of them shares."""
    return sorted(p for room in ("corpus", "synth", "prefer") for p in (REPOSITORY / "factory" / room).glob("*.py"))


@pytest.mark.parametrize("path", operators(), ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_steps_never_import_each_other(path):
    for name in imports(path):
        if name.startswith(f"factory.{path.parent.name}."):
            assert name.split(".")[2] == path.stem, f"{path.stem} imports {name}"


def test_files_can_be_held_in_the_head():
    long = {str(p): n for p in modules() if (n := len(p.read_text().splitlines())) > 450}
    assert not long

"""The script of the closed loop, killed in every stage, comes to the same bytes (test_recipes.py runs it whole)."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow.parquet as pq
import pytest

from factory.engine import recipe, run
from tests.conftest import REPOSITORY

SMALL = {
    "FAST": "1",
    "NUMBERS": "corpus=4000 test=100 samples=120 pairs=120 prompts=80 until=0.15 anneal=10240 steps=3 batch=32 hold=",
}
COMMAND = re.compile(r"\x1b\[1m\$ (.*)\x1b\[0m\n")
KILLS = 5  # at least: a command may end before its kill comes, or two have the same
LIMIT = 3600.0  # seconds that a test may take on a busy machine


class Said(NamedTuple):
    """A command as the script prints it before it runs, and when."""

    command: str
    at: float


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset of the quickstart, in a folder of runs of its own."""
    root = tmp_path_factory.mktemp("text")
    settings = {"packages": '["fsspec"]', "stdlib": "false"}
    run.run(recipe.load(str(REPOSITORY / "recipes/quickstart.toml"), settings), run.Options(str(root), quiet=True))
    return root


def begin(root: Path, text: Path, numbers: dict[str, str]) -> subprocess.Popen[str]:
    """The script in a process group of its own, with `root` as its folder of runs, which has the text already."""
    root.mkdir(exist_ok=True)
    for dataset in text.glob("quickstart@*"):
        if not (root / dataset.name).exists():
            (root / dataset.name).symlink_to(dataset)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "FACTORY_RUNS": str(root), **numbers}
    environment.pop("FACTORY_CACHE", None)
    return subprocess.Popen(
        [str(REPOSITORY / "recipes/loop.sh")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


class Watched:
    """A run of the script, read as it goes. `each` is called with every command that it tells."""

    def __init__(self, process: subprocess.Popen[str], each: Callable[[str], None] = lambda command: None) -> None:
        self.process, self.each = process, each
        self.said: list[Said] = []
        self.lines: list[str] = []
        self.ended = 0.0

    def end(self) -> str:
        """What it printed. Kills it when the test's time is over."""
        late = threading.Timer(LIMIT, self.kill)
        late.start()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := COMMAND.fullmatch(line):
                self.said.append(Said(found[1], time.monotonic()))
                self.each(found[1])
        self.process.wait()
        self.ended = time.monotonic()
        late.cancel()
        return "".join(self.lines)

    def kill(self) -> None:
        """kill -9 of the script, and of all that it started, what runs beside it too."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


def whole(root: Path, text: Path, numbers: dict[str, str]) -> Watched:
    watched = Watched(begin(root, text, numbers))
    told = watched.end()
    assert watched.process.returncode == 0, told[-5000:]
    return watched


def made(root: Path) -> dict[str, str]:
    """SHA-256 of every row that a dataset of a folder of runs has or dropped, and of every model, by its path."""
    paths = [*root.glob("*@*/rows/*.parquet"), *root.glob("*@*/dropped/*.parquet")]
    paths += root.glob("train/*/checkpoint/*/model.safetensors")
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def scores(root: Path) -> list[tuple[object, ...]]:
    """What each model answered to each question, with its score."""
    columns = "model, subtask, id, sample, answer, score"
    sql = f"select {columns} from '{root}/accuracy/*/results.parquet' order by all"
    return duckdb.sql(sql).fetchall()


@pytest.mark.slow
def test_killed_in_every_stage_it_comes_to_the_same_bytes(text: Path, tmp_path: Path) -> None:
    calm = whole(tmp_path / "calm", text, SMALL)
    times = [*(one.at for one in calm.said), calm.ended]
    took = [later - at for at, later in pairwise(times)]
    commands = [one.command.replace(str(tmp_path / "calm"), str(tmp_path / "rough")) for one in calm.said]
    assert len(commands) == len(set(commands)) == 12
    # One of the first, when the corpus and the tokens are made, and each from the base model on.
    rng = random.Random(0)
    first = next(place for place, command in enumerate(commands) if "math_base.toml" in command)
    victims = {rng.randrange(first), *range(first, len(commands))}
    waits = {commands[place]: rng.uniform(0.1, 0.9) * took[place] for place in victims}
    assert len(waits) >= KILLS
    kills = 0
    while True:
        watched = Watched(begin(tmp_path / "rough", text, SMALL))

        def each(command: str, watched: Watched = watched) -> None:
            if (wait := waits.pop(command, None)) is not None:
                threading.Timer(wait, watched.kill).start()

        watched.each = each
        told = watched.end()
        if watched.process.returncode != -signal.SIGKILL:
            break
        kills += 1
    assert watched.process.returncode == 0, told[-5000:]
    print(f"killed {kills} times")
    assert kills >= KILLS and not waits
    expected, found = made(tmp_path / "calm"), made(tmp_path / "rough")
    assert len(expected) > 20
    assert found == expected
    assert scores(tmp_path / "rough") == scores(tmp_path / "calm")
    table = "accuracy/accuracy.parquet"
    assert pq.read_table(tmp_path / "rough" / table) == pq.read_table(tmp_path / "calm" / table)

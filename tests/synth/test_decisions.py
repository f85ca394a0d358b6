"""The recipes of the closed loop keep and reject the same samples, whichever engine and server they come from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest

from factory.engine import recipe, run
from factory.engine.manifest import Manifest
from tests.conftest import REPOSITORY
from tests.engine.build import check_law, content
from tests.solver import MOST, TOP, solver
from tests.teacher.vllm_server import serving

PROBLEMS = 200
SAMPLES = "math_samples"
N = "8"  # as the judging recipes ask
JUDGES = ("math_sft", "math_pairs", "grpo_prompts")
GREEDY = {"temperature": "0", "n": "1"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Teacher:
    """How a recipe asks it, and the folder of the runs that did."""

    root: Path
    engine: str
    model: str
    urls: tuple[str, ...] = ()

    def run(self, name: str, made: str = "", **changes: str) -> Manifest:
        """A shipped recipe, of the same problems for all; `made` is the dataset's name."""
        settings = {"engine": self.engine, "model": self.model, "count": str(PROBLEMS), "seed": "0", "top": str(TOP)}
        settings |= {"steps": str(MOST), **({"urls": str(list(self.urls))} if self.urls else {}), **changes}
        loaded = recipe.load(str(REPOSITORY / "recipes" / f"{name}.toml"), settings, made or name)
        built = run.run(loaded, run.Options(str(self.root), 0, quiet=True))
        check_law(built)
        return built

    def judge(self, name: str, samples: Manifest) -> Manifest:
        """What the recipe's steps after the teacher make of samples that lie in a dataset here."""
        loaded = recipe.load(str(REPOSITORY / "recipes" / f"{name}.toml"), {"engine": self.engine, "model": self.model})
        after = 1 + next(n for n, entry in enumerate(loaded.steps) if entry.use == "respond.Respond")
        steps: list[Row] = [{"use": "ingest.Dataset", "name": samples.dataset}]
        steps += [{"use": entry.use, **entry.options} for entry in loaded.steps[after:]]
        again = recipe.build({"name": f"{name}_again", "version": "1", "step": steps}, "again.toml")
        return run.run(again, run.Options(str(self.root), 0, quiet=True))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return solver(tmp_path_factory.mktemp("solver") / "solver")


@pytest.fixture(scope="module")
def embedded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return Teacher(tmp_path_factory.mktemp("embedded"), "transformers", str(checkpoint))


@dataclass(frozen=True)
class Served:
    """What the recipes made with a server, which is gone."""

    teacher: Teacher
    greedy: Manifest
    samples: Manifest
    judged: dict[str, Manifest]


@pytest.fixture(scope="module")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with serving(checkpoint, folder / "log", "--dtype", "float32") as server:
        teacher = Teacher(folder / "runs", "openai", "small", (server.url,))
        greedy = teacher.run("math_sft", "greedy", **GREEDY)
        samples = teacher.run(SAMPLES, n=N)
        judged = {name: teacher.run(name) for name in JUDGES}
    yield Served(teacher, greedy, samples, judged)


def rows(built: Manifest, kind: str = "rows") -> list[Row]:
    found: list[Row] = duckdb.sql(f"select * from '{built.folder}/{kind}/*.parquet'").to_arrow_table().to_pylist()
    return found


def decisions(built: Manifest) -> dict[str, tuple[Any, ...]]:
    """Of each sample its prompt and response, the verdict with its reason, and why it was dropped, if it was."""
    told = ("prompt", "response", "verdict", "verdict_reason", "verdict_score")
    kept = {row["id"]: (*(row[name] for name in told), None) for row in rows(built)}
    sql = f"select * from '{built.folder}/dropped/*.parquet' where step = 'rejection.RejectionSample'"
    gone = duckdb.sql(sql).to_arrow_table().to_pylist()
    return kept | {row["id"]: (*(row[name] for name in told), row["reason"]) for row in gone}


def judged_again(samples: Manifest, teacher: Teacher, name: str, root: Path) -> Manifest:
    """In a folder of its own, where no verdict is known."""
    shutil.copytree(samples.folder, root / samples.dataset, dirs_exist_ok=True)
    return Teacher(root, teacher.engine, teacher.model).judge(name, samples)


def check_same(made: Manifest, again: Manifest) -> None:
    """The same rows in the same order, the same dropped for the same reasons, and the same counts at each step."""
    assert rows(made) == rows(again)
    if made.name == "math_sft":
        assert decisions(made) == decisions(again)
    counted = [(step["use"], step["rows_in"], step["reasons"], step.get("tally")) for step in again.funnel[1:]]
    assert [(s["use"], s["rows_in"], s["reasons"], s.get("tally")) for s in made.funnel][-len(counted) :] == counted


def test_samples_are_judged_alike_in_the_run_and_from_a_dataset(embedded: Teacher, tmp_path: Path) -> None:
    samples = embedded.run(SAMPLES, n=N)
    assert len({row["response"] for row in rows(samples)}) > PROBLEMS
    for name in JUDGES:
        check_same(embedded.run(name), judged_again(samples, embedded, name, tmp_path))


@pytest.mark.slow
def test_greedy_answers_of_vllm_and_of_transformers_are_decided_alike(embedded: Teacher, served: Served) -> None:
    ours, theirs = decisions(embedded.run("math_sft", "greedy", **GREEDY)), decisions(served.greedy)
    assert ours.keys() == theirs.keys()
    alike = [id_ for id_ in ours if ours[id_][:2] == theirs[id_][:2]]
    print(f"{len(alike)} of {len(ours)} greedy answers are alike")
    assert len(alike) >= 0.98 * len(ours)
    assert [ours[id_] for id_ in alike] == [theirs[id_] for id_ in alike]
    reasons = [ours[id_][-1] for id_ in alike]
    assert 0.2 < reasons.count("wrong") / len(reasons) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", JUDGES)
def test_what_vllm_sampled_is_decided_alike_wherever_it_is_judged(
    embedded: Teacher, served: Served, name: str, tmp_path: Path
) -> None:
    """By the recipe that asked the server, and from the samples as they lie in a dataset by the one that asks none."""
    made = served.judged[name]
    assert made.counts["rows_kept"] > 0
    check_same(made, judged_again(served.samples, embedded, name, tmp_path))


@pytest.mark.slow
def test_the_same_words_have_the_same_verdict_whoever_said_them(embedded: Teacher, served: Served) -> None:
    both = (embedded.run("math_sft"), served.judged["math_sft"])
    ours, theirs = ({row[:2]: row[2:5] for row in decisions(one).values()} for one in both)
    shared = ours.keys() & theirs.keys()
    assert len(shared) > PROBLEMS / 2
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
    assert {ours[key][0] for key in shared} == {True, False}


@pytest.mark.slow
def test_without_the_server_the_answers_that_are_kept_make_the_same_bytes(served: Served, tmp_path: Path) -> None:
    teacher, root = served.teacher, tmp_path / "runs"
    shutil.copytree(teacher.root / ".answers", root / ".answers")
    alone = Teacher(root, teacher.engine, teacher.model, teacher.urls)
    for name in JUDGES:
        again = alone.run(name)
        assert content(again, "rows", "dropped") == content(served.judged[name], "rows", "dropped")
    again = alone.run("math_sft", "greedy", **GREEDY)
    assert content(again, "rows", "dropped") == content(served.greedy, "rows", "dropped")

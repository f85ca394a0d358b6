"""Run a recipe: stage after stage, then the dataset's folder, its manifest last.

Killed at any moment and started again, a run repeats no finished task and ends in the same bytes: receipts, emitted
marks and exchange files say what is done, all of them written aside and renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.engine import files, gather, manifest, plan, receipt, shard
from factory.engine.decisions import Decided, run_gather
from factory.engine.errors import FactoryError
from factory.engine.finish import finish, tidy
from factory.engine.local import Events, Job, Local
from factory.engine.manifest import Manifest
from factory.engine.plan import Plan
from factory.engine.progress import Progress
from factory.engine.recipe import Recipe
from factory.engine.stage import Stage, has_rows, is_done
from factory.engine.step import Context, Gather

LEAST_MEMORY = 192 << 20


@dataclass(frozen=True)
class Options:
    """How to run, not what: none of it changes a byte of what comes out.

    `workers` processes (0: in this process, for debugging, without a guard against crashes), `memory` bytes that one
    may hold, `seconds` that one call of a step may take before the document in it is given up.
    """

    root: str = "runs"
    workers: int = 0
    memory: int = 0
    seconds: float = 120.0
    annotate: bool = False
    dropped: str | None = None
    quiet: bool = False

    def resolved(self) -> Options:
        """With the defaults of this machine: a worker a core, and four fifths of its memory shared among them."""
        if 0 < self.memory < LEAST_MEMORY:
            raise FactoryError(f"--memory {self.memory}: a worker needs {LEAST_MEMORY >> 20} MiB before it reads a row")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = self.workers if self.workers >= 0 else cores
        return dataclasses.replace(self, workers=workers, memory=self.memory or _memory() * 4 // 5 // max(workers, 1))


def _memory() -> int:
    """Bytes of this machine, or of the container that it is."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such limit
        return total


def run(recipe: Recipe, options: Options | None = None) -> Manifest:
    """Build the dataset of a recipe, or return it where it is built already."""
    options = (options or Options()).resolved()
    planned = plan.make(recipe, options.root, options.annotate, options.dropped)
    if (built := _built(planned, options)) is not None:
        return built
    files.make_folder(files.join(options.root, ".stages"))
    with _lock(options, planned), Local(options.workers, options.memory, options.seconds) as executor:
        # Another run may have built it while this one waited.
        return _built(planned, options) or _Run(planned, options, executor).all()


def _built(planned: Plan, options: Options) -> Manifest | None:
    """The dataset where it is built; FactoryError where it is, but from something else."""
    built = manifest.find(options.root, planned.dataset)
    if built is None:
        return None
    if built.key != planned.key:
        if planned.recipe.version == "dev":
            return None
        changed = plan.differences(built.recipe, planned.recipe.resolved())
        if built.inputs != planned.inputs:
            changed = [c for c in changed if c != plan.UNSEEN] + ["the input: files were added, removed or changed"]
        raise FactoryError(
            f"{planned.recipe.path}: {planned.dataset} is already built from another recipe: {'; '.join(changed)}. "
            f"Give the recipe a new version, or remove {files.join(options.root, planned.dataset)}"
        )
    if options.dropped and options.dropped != built.dropped_policy:
        raise FactoryError(
            f"{planned.dataset} is already built, its dropped rows kept as {built.dropped_policy!r}: "
            f"remove {built.folder} to build it with --dropped {options.dropped}"
        )
    tidy(options.root, built)
    return built


@contextlib.contextmanager
def _lock(options: Options, planned: Plan) -> Iterator[None]:
    """One run at a time below a root: two would write aside in the same stages. Released however the run ends."""
    if not files.is_local(options.root):
        yield
        return
    path = os.path.join(files.locate(options.root)[1], ".stages", "lock")
    with files.locked(path, f"{planned.dataset}: waiting for another run in {options.root} to end"):
        files.remove_leftovers(os.path.dirname(path))
        files.remove_leftovers(files.join(options.root, planned.dataset))
        yield


class _Run:
    def __init__(self, planned: Plan, options: Options, executor: Local) -> None:
        self.plan, self.options, self.executor = planned, options, executor
        self.done: list[Stage] = []
        self.receipts: list[list[dict[str, Any]]] = []
        self.exchanges: list[dict[str, Any]] = []

    def all(self) -> Manifest:
        inputs: list[str] = []
        decided: Decided | None = None
        artifacts: dict[str, str] = {}
        for entry in self.plan.recipe.steps:
            artifacts |= entry.step.folders()
        begin = self._kept()
        for number in range(len(self.plan.stages)):
            if number <= begin and begin:
                known = Stage.load(plan.stage_folder(self.plan.root, self.plan.stages[number].key))
                inputs, decided = known.inputs, known.decided
                artifacts = {**known.artifacts, **artifacts}
                if number < begin:
                    self._add(known)
                    continue
            stage = self.plan.stage(number, inputs, decided, dict(artifacts))
            self._check_begun(stage)
            stage.save()
            self._stage(stage)
            inputs = self._add(self._repair_seams(stage))
            decided = None
            emits = self.plan.stages[number].emits
            if emits is not None:
                step = emits[1].step
                assert isinstance(step, Gather)
                exchange = gather.Exchange(
                    stage.folder, os.path.dirname(stage.emitted), inputs, stage.partitions, self._exchange, artifacts
                )
                decided = run_gather(step, exchange, shard.unpack_schema(stage.after))
                self.exchanges += [{"number": emits[0], "name": name, **used} for name, used in exchange.used.items()]
        self._check_inputs()
        return finish(self.plan, self.done, self.receipts, self.exchanges, artifacts)

    def _kept(self) -> int:
        """The last stage whose rows an earlier run kept whole, with the receipts of those before it; else 0."""
        for number in range(len(self.plan.stages) - 1, 0, -1):
            if not self.plan.stages[number].keep:
                continue
            before = [plan.stage_folder(self.plan.root, stage.key) for stage in self.plan.stages[: number + 1]]
            if not all(files.exists(files.join(folder, "stage.json")) for folder in before):
                continue
            stages = [Stage.load(folder) for folder in before]
            mine = dataclasses.replace(stages[-1], emitted=self.plan.stage(number, [], None, {}).emitted)
            receipts = (receipt.receipt_path(s.folder, n) for s in stages[:-1] for n in range(s.tasks))
            if all(has_rows(mine, n) for n in range(mine.tasks)) and all(files.exists(path) for path in receipts):
                return number
        return 0

    def _add(self, stage: Stage) -> list[str]:
        """A stage is done: its receipts, and the shards that it wrote."""
        receipts = [files.read_json(receipt.receipt_path(stage.folder, n)) for n in range(stage.tasks)]
        self.done.append(stage)
        self.receipts.append(receipts)
        return [files.join(stage.folder, output["path"]) for one in receipts for output in one["outputs"]]

    # Passes.

    def _check_begun(self, stage: Stage) -> None:
        """A stage that was begun with another pyarrow would end in shards of two kinds."""
        path = files.join(stage.folder, "stage.json")
        begun = files.read_json(path)["pyarrow"] if files.exists(path) else stage.pyarrow
        if begun != stage.pyarrow:
            raise FactoryError(
                f"{stage.folder}: begun with pyarrow {begun}, and this is {stage.pyarrow}: "
                f"install pyarrow=={begun}, or remove the folder to begin it anew"
            )

    def _stage(self, stage: Stage) -> None:
        if not all(has_rows(stage, n) for n in range(stage.tasks)):
            # Exchanges that looked at shards which are written anew are no longer true.
            for folder in files.matching(files.join(stage.folder, "gather-*")):
                if any(files.exists(files.join(folder, name)) for name in ("exchanges", "artifacts")):
                    files.remove_tree(folder)
        tasks = [n for n in range(stage.tasks) if not is_done(stage, n)]
        title = f"stage {stage.number + 1}/{len(self.plan.stages)} {self.plan.stages[stage.number].title}"
        weights = self._weights(stage)
        jobs = [
            Job(("stage", stage.folder, n), f"{self.plan.dataset}, stage {stage.number + 1}, shard {n}", weights[n])
            for n in tasks
        ]
        self._show(title, jobs, ("warm", stage.folder))

    def _weights(self, stage: Stage) -> list[int]:
        if stage.splits:
            return [max(split.bytes, 1) for split in stage.splits]
        return [max(output["content_bytes"], 1) for one in self.receipts[-1] for output in one["outputs"]]

    def _exchange(self, name: str, tasks: list[gather.ExchangeTask]) -> None:
        jobs = [Job(task, f"{self.plan.dataset}, exchange {name}, partition {task.number}", 1) for task in tasks]
        self._show(f"    {name}", jobs, None)

    def _show(self, title: str, jobs: list[Job], warm: Any) -> None:
        if not jobs:
            return
        weight, brief = sum(job.weight for job in jobs), warm is None
        progress = Progress(title, len(jobs), weight, quiet=self.options.quiet, brief=brief)
        events = Events(
            progress.start,
            progress.read,
            lambda job: progress.finish_task(job.weight),
            lambda text: print(text, file=sys.stderr),
        )
        self.executor.run(jobs, events, warm)
        progress.close()

    def _repair_seams(self, stage: Stage) -> Stage:
        """Redo each split that began elsewhere than where the one before it in the file ended, from the true place."""
        if not stage.splits:
            return stage
        splits = list(stage.splits)
        for number in range(1, len(splits)):
            if splits[number].path != splits[number - 1].path:
                continue
            before, mine = (
                files.read_json(receipt.receipt_path(stage.folder, n))["seam"] for n in (number - 1, number)
            )
            if before is None or mine is None or before[1] == mine[0]:
                continue
            splits[number] = dataclasses.replace(splits[number], start=before[1], exact=True)
            stage = dataclasses.replace(stage, splits=splits)
            stage.save()
            files.remove(receipt.receipt_path(stage.folder, number))
            self.executor.run([Job(("again", stage.folder, number), f"seam of shard {number}")], Events())
        return stage

    def _check_inputs(self) -> None:
        source = self.plan.recipe.steps[0].step
        now = source.identities(Context(self.options.root), self.plan.splits)  # type: ignore[attr-defined]
        if now != [known for known in self.plan.inputs if "dataset" not in known]:
            raise FactoryError(f"{self.plan.recipe.path}: the input changed while it was read: run again")


def parse_bytes(text: str) -> int:
    """500MB, 1.5GiB or 1000 as bytes."""
    match = re.fullmatch(r"([0-9.]+) *(?:([KMGT])(i?)B?|B)?", text.strip(), re.IGNORECASE)
    try:
        number = float(match[1]) if match else -1.0
    except ValueError:
        number = -1.0
    if match is None or number <= 0:
        raise FactoryError(f"{text!r}: not a size: write 500MB or 4GiB")
    power = " KMGT".index((match[2] or " ").upper())
    return int(number * (1024 if match[3] else 1000) ** power)

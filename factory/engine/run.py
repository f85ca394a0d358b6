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
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import factory
from factory.engine import files, gather, manifest, plan, receipt, shard
from factory.engine.errors import FactoryError
from factory.engine.local import Events, Job, Local
from factory.engine.manifest import Manifest
from factory.engine.plan import Plan
from factory.engine.progress import Progress
from factory.engine.recipe import Recipe
from factory.engine.stage import FAILED, Stage
from factory.engine.step import Context, Gather


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
        workers = self.workers if self.workers >= 0 else len(os.sched_getaffinity(0))
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return dataclasses.replace(self, workers=workers, memory=self.memory or total * 4 // 5 // max(workers, 1))


def run(recipe: Recipe, options: Options | None = None) -> Manifest:
    """Build the dataset of a recipe, or return it where it is built already."""
    options = (options or Options()).resolved()
    planned = plan.make(recipe, options.root, options.annotate, options.dropped)
    built = manifest.find(options.root, planned.dataset)
    if built is not None:
        if built.key == planned.key:
            return built
        if recipe.version != "dev":
            changed = plan.differences(built.recipe, recipe.resolved())
            if built.inputs != planned.inputs:
                changed.append("the input: files were added, removed or changed")
            raise FactoryError(
                f"{recipe.path}: {planned.dataset} is already built from another recipe: {'; '.join(changed)}. "
                f"Give the recipe a new version, or remove {files.join(options.root, planned.dataset)}"
            )
    files.make_folder(files.join(options.root, ".stages"))
    with _lock(options, planned), Local(options.workers, options.memory, options.seconds) as executor:
        return _Run(planned, options, executor).all(built)


@contextlib.contextmanager
def _lock(options: Options, planned: Plan) -> Iterator[None]:
    """One run at a time below a root: two would write aside in the same stages. Released however the run ends."""
    if not files.is_local(options.root):
        yield
        return
    import fcntl

    path = os.path.join(files.locate(options.root)[1], ".stages", "lock")
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"{planned.dataset}: waiting for another run in {options.root} to end", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        files.remove_leftovers(os.path.dirname(path))
        yield


class _Run:
    def __init__(self, planned: Plan, options: Options, executor: Local) -> None:
        self.plan, self.options, self.executor = planned, options, executor
        self.done: list[Stage] = []
        self.receipts: list[list[dict[str, Any]]] = []

    def all(self, replaced: Manifest | None) -> Manifest:
        inputs: list[str] = []
        decisions: dict[str, str] = {}
        artifacts: dict[str, str] = {}
        for number in range(len(self.plan.stages)):
            stage = self.plan.stage(number, inputs, decisions, dict(artifacts))
            self._check_begun(stage)
            stage.save()
            self._stage(stage)
            stage = self._repair_seams(stage)
            receipts = [files.read_json(receipt.receipt_path(stage.folder, n)) for n in range(stage.tasks)]
            self.done.append(stage)
            self.receipts.append(receipts)
            inputs = [files.join(stage.folder, output["path"]) for one in receipts for output in one["outputs"]]
            decisions = {}
            emits = self.plan.stages[number].emits
            if emits is not None:
                step = emits[1].step
                assert isinstance(step, Gather)
                exchange = gather.Exchange(
                    stage.folder, os.path.dirname(stage.emitted), inputs, stage.partitions, self._exchange, artifacts
                )
                decisions = gather.run_gather(step, exchange)
        self._check_inputs()
        return self._finish(replaced, artifacts)

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
        tasks = [n for n in range(stage.tasks) if not self._is_done(stage, n)]
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

    def _is_done(self, stage: Stage, number: int) -> bool:
        if not files.exists(receipt.receipt_path(stage.folder, number)):
            return False
        return stage.emits is None or files.exists(gather.emitted_done(stage.emitted, number))

    def _exchange(self, name: str, tasks: list[gather.ExchangeTask]) -> None:
        jobs = [Job(task, f"{self.plan.dataset}, exchange {name}, partition {task.number}", 1) for task in tasks]
        self._show(f"    {name}", jobs, None)

    def _show(self, title: str, jobs: list[Job], warm: Any) -> None:
        if not jobs:
            return
        weight, brief = sum(job.weight for job in jobs), warm is None
        progress = Progress(title, len(jobs), weight, quiet=self.options.quiet, brief=brief)
        events = Events(
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
            fs, path = files.locate(receipt.receipt_path(stage.folder, number))
            fs.rm(path)
            self.executor.run([Job(("stage", stage.folder, number), f"seam of shard {number}")], Events())
        return stage

    def _check_inputs(self) -> None:
        source = self.plan.recipe.steps[0].step
        now = source.identities(Context(self.options.root), self.plan.splits)  # type: ignore[attr-defined]
        if now != [known for known in self.plan.inputs if "dataset" not in known]:
            raise FactoryError(f"{self.plan.recipe.path}: the input changed while it was read: run again")

    # The dataset's folder.

    def _finish(self, replaced: Manifest | None, artifacts: dict[str, str]) -> Manifest:
        folder = files.join(self.options.root, self.plan.dataset)
        if replaced is not None:  # version "dev": from here on the old one is no longer there
            fs, path = files.locate(files.join(folder, "manifest.json"))
            fs.rm(path)
        rows = self._share(folder, "rows", [o for one in self.receipts[-1] for o in one["outputs"]], len(self.done) - 1)
        dropped, failed = (
            self._share_all(
                folder, kind, [(s, o[kind]) for s, all_ in enumerate(self.receipts) for o in all_ if o[kind]]
            )
            for kind in ("dropped", "failed")
        )
        for name, source in artifacts.items():
            fs, path = files.locate(source)
            target = files.locate(files.join(folder, name))[1]
            if fs.exists(target):
                fs.rm(target, recursive=True)
            fs.copy(path, target, recursive=True)
        everything = [one for stage in self.receipts for one in stage]
        target = files.join(folder, "receipts", "receipts.parquet")
        with files.aside(target) as scratch:
            pq.write_table(receipt.to_table(everything, self.plan.dataset), scratch, compression="zstd")
        schema = self.plan.stages[-1].after
        assert schema is not None
        finished = Manifest(
            name=self.plan.name,
            version=self.plan.recipe.version,
            key=self.plan.key,
            recipe=self.plan.recipe.resolved(),
            inputs=self.plan.inputs,
            stages=[{"key": s.key, "keep": p.keep} for s, p in zip(self.done, self.plan.stages, strict=True)],
            columns=shard.schema_to_json(schema),
            schema=shard.pack_schema(schema),
            rows=rows,
            dropped=dropped,
            failed=failed,
            counts=_counts(self.receipts),
            funnel=_funnel(everything),
            artifacts={name: name for name in artifacts},
            dropped_policy=self.plan.dropped_policy,
            code={"factory": factory.__version__, "pyarrow": pa.__version__},
            description=self.plan.recipe.description,
        )
        finished.save(folder)
        self._tidy(replaced)
        return dataclasses.replace(finished, folder=folder)

    def _share(self, folder: str, kind: str, outputs: list[dict[str, Any]], stage: int) -> list[dict[str, Any]]:
        return self._share_all(folder, kind, [(stage, output) for output in outputs])

    def _share_all(self, folder: str, kind: str, outputs: list[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
        """Give the stages' files their place in the dataset, numbered in dataset order, and remove any other."""
        listed = []
        for number, (stage, output) in enumerate(outputs):
            path = f"{kind}/part-{number:07d}.parquet"
            source, target = files.join(self.done[stage].folder, output["path"]), files.join(folder, path)
            if kind == "dropped" and shard.column_names(source) != self.plan.dropped.names:
                # The stage was kept by another recipe, whose other steps add other columns.
                shard.rewrite(source, target, self.plan.dropped)
            else:
                files.share(source, target)
            listed.append({"path": path, "rows": output["rows"], "bytes": output["bytes"]})
        if not outputs:  # an empty file, so that `dropped/*.parquet` can always be read
            path = f"{kind}/part-0000000.parquet"
            schema = FAILED if kind == "failed" else self.plan.dropped
            with files.aside(files.join(folder, path)) as scratch:
                shard.ShardWriter(scratch, schema).close()
            listed.append({"path": path, "rows": 0, "bytes": 0})
        fs, base = files.locate(files.join(folder, kind))
        wanted = {os.path.basename(file["path"]) for file in listed}
        for name in fs.ls(base, detail=False):
            if os.path.basename(name) not in wanted:
                fs.rm(name)
        return listed

    def _tidy(self, replaced: Manifest | None) -> None:
        """Remove the stages that nothing will read again: those of a version keep only what the recipe keeps, those
        of "dev" stay until the next "dev"."""
        mine = {stage.key for stage in self.done}
        gone = {old["key"] for old in replaced.stages if not old["keep"]} - mine if replaced else set()
        if self.plan.recipe.version != "dev":
            gone |= {s.key for s, p in zip(self.done, self.plan.stages, strict=True) if not p.keep}
        in_use = {
            old["key"]
            for other in manifest.all_manifests(self.options.root)
            if other.dataset != self.plan.dataset
            for old in other.stages
            if other.version == "dev" or old["keep"]
        }
        for key in gone - in_use:
            files.remove_tree(plan.stage_folder(self.options.root, key))


def _counts(receipts: list[list[dict[str, Any]]]) -> dict[str, int]:
    """Rows of the whole: in at the first stage, out of the last, and what happened between."""
    everything = [one for stage in receipts for one in stage]
    sums = {f"rows_{n}": sum(one[f"rows_{n}"] for one in everything) for n in ("made", "dropped", "failed", "consumed")}
    return {
        "rows_in": sum(one["rows_in"] for one in receipts[0]),
        **sums,
        "rows_kept": sum(one["rows_kept"] for one in receipts[-1]),
        "bytes_in": sum(one["bytes_in"] for one in receipts[0]),
        "bytes_out": sum(one["bytes_out"] for one in receipts[-1]),
    }


def _funnel(everything: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by step and reason, over all shards: what `factory show` prints."""
    found: dict[int, dict[str, Any]] = {}
    for one in everything:
        for step in one["steps"]:
            if step["number"] == 0:
                continue  # a stage that only reads: nothing happens there
            total = found.setdefault(step["number"], {"number": step["number"], "use": step["use"], "reasons": {}})
            for name in ("rows_in", "made", "kept", "dropped", "failed", "consumed", "bytes_in", "cpu_seconds"):
                total[name] = total.get(name, 0) + step[name]
            for reason in step["reasons"]:
                total["reasons"][reason["reason"]] = total["reasons"].get(reason["reason"], 0) + reason["rows"]
    return [found[number] for number in sorted(found)]


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

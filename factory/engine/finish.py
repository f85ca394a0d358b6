"""The end of a run: the finished stages' files get their place in the dataset's folder, the manifest comes last, and
what nothing will read again is removed. Ended anywhere, it is done again from the start, and ends the same."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import factory
from factory.engine import files, manifest, plan, receipt, shard
from factory.engine.manifest import Manifest
from factory.engine.plan import Plan
from factory.engine.stage import FAILED, Stage

REPLACED = "replaced.json"
"""The manifest of the "dev" that a new one takes the place of, until its stages are tidied away."""


def finish(
    planned: Plan,
    done: list[Stage],
    receipts: list[list[dict[str, Any]]],
    exchanges: list[dict[str, Any]],
    artifacts: dict[str, str],
) -> Manifest:
    """Give the finished stages' files their place in the dataset's folder, write its manifest, tidy up."""
    folder = files.join(planned.root, planned.dataset)
    if files.exists(files.join(folder, "manifest.json")):  # version "dev": the old one ends here
        files.move(files.join(folder, "manifest.json"), files.join(folder, REPLACED))
    outputs = [(len(done) - 1, output) for one in receipts[-1] for output in one["outputs"]]
    rows = _share_all(planned, done, folder, "rows", outputs)
    dropped, failed = (
        _share_all(
            planned, done, folder, kind, [(n, one[kind]) for n, of in enumerate(receipts) for one in of if one[kind]]
        )
        for kind in ("dropped", "failed")
    )
    for name, source in artifacts.items():
        fs, path = files.locate(source)
        target = files.locate(files.join(folder, name))[1]
        if fs.exists(target):
            fs.rm(target, recursive=True)
        fs.copy(path, target, recursive=True)
    everything = [one for stage in receipts for one in stage]
    target = files.join(folder, "receipts", "receipts.parquet")
    with files.aside(target) as scratch:
        pq.write_table(receipt.to_table(everything, planned.dataset), scratch, compression="zstd")
    schema = planned.stages[-1].after
    assert schema is not None
    finished = Manifest(
        name=planned.name,
        version=planned.recipe.version,
        key=planned.key,
        recipe=planned.recipe.resolved(),
        inputs=planned.inputs,
        stages=_kept_of(planned),
        columns=shard.schema_to_json(schema),
        schema=shard.pack_schema(schema),
        rows=rows,
        dropped=dropped,
        failed=failed,
        counts=_counts(receipts),
        funnel=_funnel(everything, exchanges),
        exchanges=exchanges,
        artifacts={name: name for name in artifacts},
        dropped_policy=", ".join(sorted({one["dropped_policy"] for one in everything})),
        code={"factory": factory.__version__, "pyarrow": pa.__version__},
        description=planned.recipe.description,
        annotated=planned.annotate,
        made_for=planned.made_for,
    )
    finished.save(folder)
    finished = dataclasses.replace(finished, folder=folder)
    tidy(planned.root, finished)
    return finished


def _share_all(
    planned: Plan, done: list[Stage], folder: str, kind: str, outputs: list[tuple[int, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Give the stages' files their place in the dataset, numbered in dataset order, and remove any other."""
    listed = []
    for number, (stage, output) in enumerate(outputs):
        path = f"{kind}/part-{number:07d}.parquet"
        source, target = files.join(done[stage].folder, output["path"]), files.join(folder, path)
        if kind == "dropped" and not shard.has_schema(source, planned.dropped):
            # The stage was kept by another recipe, whose other steps add other columns.
            shard.rewrite(source, target, planned.dropped)
        else:
            files.share(source, target)
        listed.append({"path": path, "rows": output["rows"], "bytes": files.size(target)})
    if not outputs:  # an empty file, so that `dropped/*.parquet` can always be read
        path = f"{kind}/part-0000000.parquet"
        schema = FAILED if kind == "failed" else planned.dropped
        with files.aside(files.join(folder, path)) as scratch:
            shard.ShardWriter(scratch, schema).close()
        listed.append({"path": path, "rows": 0, "bytes": 0})
    fs, base = files.locate(files.join(folder, kind))
    wanted = {os.path.basename(file["path"]) for file in listed}
    for name in fs.ls(base, detail=False):
        if os.path.basename(name) not in wanted:
            fs.rm(name)
    return listed


def _kept_of(planned: Plan) -> list[dict[str, str]]:
    """What stays of each stage: its rows, or the receipts that a kept stage after it needs, or nothing."""
    last = max((n for n, stage in enumerate(planned.stages) if stage.keep), default=-1)
    return [
        {"key": stage.key, "keep": "rows" if stage.keep else "receipts" if number < last else ""}
        for number, stage in enumerate(planned.stages)
    ]


def tidy(root: str, built: Manifest) -> None:
    """Remove what nothing will read again. Of a version's stages only what the recipe keeps stays; those of "dev" stay
    until the next "dev"."""
    replaced_path = files.join(built.folder, REPLACED)
    gone: dict[str, str] = {}
    if files.exists(replaced_path):
        mine = {stage["key"] for stage in built.stages}
        gone = {old["key"]: old["keep"] for old in files.read_json(replaced_path)["stages"] if old["key"] not in mine}
    if built.version != "dev":
        gone |= {stage["key"]: stage["keep"] for stage in built.stages}
    gone = {key: keep for key, keep in gone.items() if keep != "rows" and _left(root, key, keep)}
    if gone:
        in_use = {
            stage["key"]
            for other in manifest.all_manifests(root)
            if other.dataset != built.dataset
            for stage in other.stages
            if other.version == "dev" or stage["keep"] == "rows"
        }
        for key, keep in gone.items():
            if key not in in_use:
                for folder in _left(root, key, keep):
                    files.remove_tree(folder)
    files.remove(replaced_path)


def _left(root: str, key: str, keep: str) -> list[str]:
    """What lies there of a stage and need not: all of it, or its rows and exchanges where its receipts are kept."""
    stage = plan.stage_folder(root, key)
    if not keep:
        return [stage] if files.exists(stage) else []
    patterns = ("rows", "gather-*/emitted", "gather-*/exchanges")
    return [found for pattern in patterns for found in files.matching(files.join(stage, pattern))]


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


def _funnel(everything: list[dict[str, Any]], exchanges: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by step and reason, over all shards: what `factory show` prints. A Gather's CPU seconds are those of what
    the shards contribute, of its exchanges, and of applying what was decided."""
    found: dict[int, dict[str, Any]] = {}
    for one in everything:
        for step in one["steps"]:
            if step["number"] == 0:
                continue  # a stage that only reads: nothing happens there
            new = {"number": step["number"], "use": step["use"], "reasons": {}, "tally": {}}
            total = found.setdefault(step["number"], new)
            for name in ("rows_in", "made", "kept", "dropped", "failed", "consumed", "bytes_in", "cpu_seconds"):
                total[name] = total.get(name, 0) + step[name]
            for reason in step["reasons"]:
                total["reasons"][reason["reason"]] = total["reasons"].get(reason["reason"], 0) + reason["rows"]
            for seen in step.get("tally", ()):  # a kept stage's receipts may be older than tallies
                total["tally"][seen["name"]] = total["tally"].get(seen["name"], 0) + seen["count"]
    for spent in [one["emit"] for one in everything if one["emit"]] + exchanges:
        found[spent["number"]]["cpu_seconds"] += spent["cpu_seconds"]
    return [found[number] for number in sorted(found)]

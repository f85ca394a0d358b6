"""The plan of a recipe: everything that can be known before any work. Schemas, splits, stages and their identities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from factory.engine import files, manifest, shard
from factory.engine.decisions import Decided
from factory.engine.errors import FactoryError, nearest
from factory.engine.recipe import Recipe, StepEntry, describe, located
from factory.engine.stage import DROPPED, Entry, Stage, annotation_fields, label
from factory.engine.step import Context, Gather, Source, Split

ENGINE = 1
"""Bumped when the engine itself writes other bytes for the same steps."""

PARTITION_BYTES = 1 << 30
UNSEEN = "the files that it names (models, prompts), or the engine, changed"

FULL_BELOW = 10 << 30
"""Dropped rows are kept whole where the input is smaller than this."""


@dataclass
class PlannedStage:
    """A stage before its inputs are known: the steps, and what it is called."""

    entries: list[tuple[int, StepEntry]] = field(default_factory=list)
    applied: tuple[int, StepEntry] | None = None
    emits: tuple[int, StepEntry] | None = None
    before: pa.Schema | None = None
    after: pa.Schema | None = None
    cut: bool = False
    keep: bool = False
    key: str = ""

    @property
    def title(self) -> str:
        names = [entry.use for _, entry in self.entries]
        if self.applied:
            names = [f"apply {self.applied[1].use}", *names]
        if self.emits:
            names.append(f"emit {self.emits[1].use}")
        return " → ".join(names) or "copy"


@dataclass
class Plan:
    recipe: Recipe
    root: str
    annotate: bool
    splits: list[Split]
    inputs: list[dict[str, Any]]
    stages: list[PlannedStage]
    dropped: pa.Schema
    dropped_policy: str
    made_for: dict[str, str]

    @property
    def name(self) -> str:
        """Annotated rows are a dataset of their own, beside the one that they annotate."""
        return self.recipe.name + ("_annotated" if self.annotate else "")

    @property
    def dataset(self) -> str:
        return f"{self.name}@{self.recipe.version}"

    @property
    def key(self) -> str:
        return self.stages[-1].key

    @property
    def input_bytes(self) -> int:
        return sum(split.bytes for split in self.splits)

    @property
    def partitions(self) -> int:
        """Of an exchange: so many that one fits in memory. It changes no result."""
        return min(4096, max(4, -(-self.input_bytes // PARTITION_BYTES)))

    def stage(self, number: int, inputs: list[str], decided: Decided | None, artifacts: dict[str, str]) -> Stage:
        """The stage as its workers will read it."""
        planned = self.stages[number]
        folder = stage_folder(self.root, planned.key)
        assert planned.before is not None and planned.after is not None
        emitted = ""
        if planned.emits:
            emitted = files.join(gather_folder(folder, planned.emits[1]), "emitted")
        return Stage(
            key=planned.key,
            number=number,
            folder=folder,
            root=self.root,
            entries=[recipe_entry(self.recipe, n) for n, _ in planned.entries],
            applied=recipe_entry(self.recipe, planned.applied[0]) if planned.applied else None,
            emits=recipe_entry(self.recipe, planned.emits[0]) if planned.emits else None,
            emitted=emitted,
            partitions=self.partitions,
            inputs=inputs,
            splits=self.splits if number == 0 else [],
            before=shard.pack_schema(planned.before),
            after=shard.pack_schema(planned.after),
            dropped=shard.pack_schema(self.dropped),
            shard_bytes=self.recipe.shard_bytes,
            cut=planned.cut,
            annotate=self.annotate,
            dropped_policy=self.dropped_policy,
            decided=decided,
            artifacts=artifacts,
        )


def stage_folder(root: str, key: str) -> str:
    return files.join(root, ".stages", key)


def gather_folder(stage: str, entry: StepEntry) -> str:
    return files.join(stage, f"gather-{files.digest(identity(entry))}")


def recipe_entry(recipe: Recipe, number: int) -> Entry:
    """A step as the workers read it. One of several steps of a name is labelled with its number."""
    entry = recipe.steps[number - 1]
    mine = label(entry.use)
    alone = sum(label(other.use) == mine for other in recipe.steps) == 1
    return Entry(number, entry.use, dict(entry.options), mine if alone else f"{mine}_{number}")


def identity(entry: StepEntry) -> dict[str, Any]:
    """What decides a step's output: its name, version, options, and the content of the files that it names."""
    step = entry.step
    known = describe(entry)
    del known["keep"]
    for name in step.located:
        known["options"].pop(name, None)
    if step.files():
        known["files"] = [files.file_identity(path, path.rsplit("/", 1)[-1]) for path in step.files()]
    return known


def make(recipe: Recipe, root: str, annotate: bool = False, dropped: str | None = None) -> Plan:
    """Resolve a recipe. FactoryError where a step lacks a column, an input is missing, an order makes no sense."""
    context = Context(root)
    first = recipe.steps[0].step
    where = f"{recipe.path}: step 1 ({recipe.steps[0].use})"
    if not isinstance(first, Source):
        raise FactoryError(f"{where}: a recipe begins with a source, such as ingest.JsonLines")
    with located(where):
        splits = first.splits(context, recipe.shard_bytes)
        if not splits:
            raise FactoryError("there is nothing to read")
        inputs = first.identities(context, splits)
    for number, entry in enumerate(recipe.steps, 1):
        with located(f"{recipe.path}: step {number} ({entry.use})"):
            for name in entry.step.datasets():
                inputs.append({"dataset": name, "key": manifest.load(root, name).key})
            for path in entry.step.files():
                if not files.exists(path):
                    raise FactoryError(f"{path}: no such file: give the path of one that is there")
    stages = _cut(recipe, first, context, splits, annotate)
    parent: Any = {"engine": ENGINE, "inputs": inputs, "shard_bytes": recipe.shard_bytes, "annotate": annotate}
    seen: dict[str, pa.Field] = {}
    for stage in stages:
        assert stage.before is not None and stage.after is not None
        steps = [identity(entry) for _, entry in stage.entries]
        applied = identity(stage.applied[1]) if stage.applied else None
        stage.key = files.digest({"parent": parent, "applied": applied, "steps": steps, "cut": stage.cut})
        parent = stage.key
    schema = stages[0].before
    assert schema is not None
    for entry in recipe.steps:
        seen.update({f.name: f for f in schema})
        schema = entry.step.schema(schema)
    seen.update({f.name: f for f in schema})
    own = [pa.field(*column) for column in DROPPED]
    dropped_schema = pa.schema([f for f in seen.values() if f.name not in {o.name for o in own}] + own)
    total = sum(split.bytes for split in splits)
    policy = dropped or recipe.dropped or ("full" if total < FULL_BELOW else "sample")
    return Plan(recipe, root, annotate, splits, inputs, stages, dropped_schema, policy, _made_for(recipe, root))


def _made_for(recipe: Recipe, root: str) -> dict[str, str]:
    """What the rows are for, as the steps say and the datasets that are read. FactoryError where two disagree."""
    found: dict[str, tuple[str, str]] = {}
    for number, entry in enumerate(recipe.steps, 1):
        step = f"step {number} ({entry.use})"
        said = [(step, entry.step.made_for())]
        if isinstance(entry.step, Source):
            said += [(f"{step}: {name}", manifest.load(root, name).made_for) for name in entry.step.datasets()]
        for who, made_for in said:
            for what, mine in made_for.items():
                other, theirs = found.setdefault(what, (who, mine))
                if mine != theirs:
                    raise FactoryError(
                        f"{recipe.path}: {who}: its rows are for another {what} than those of {other}: "
                        f"make them all with one"
                    )
    return {what: found[what][1] for what in sorted(found)}


def _cut(recipe: Recipe, source: Source, context: Context, splits: list[Split], annotate: bool) -> list[PlannedStage]:
    """Cut the steps into stages, and follow the schema through them."""
    with located(f"{recipe.path}: step 1 ({recipe.steps[0].use})"):
        schema = source.start(context)
    stages = [PlannedStage(before=schema)]

    def close(schema: pa.Schema) -> PlannedStage:
        stages[-1].after = schema
        stages.append(PlannedStage(before=schema))
        return stages[-1]

    if not {"id"} <= set(schema.names):
        raise FactoryError(f"{recipe.path}: step 1 ({recipe.steps[0].use}): a source must give the column 'id'")
    held = "cpu"
    for number, entry in enumerate(recipe.steps, 1):
        step = entry.step
        where = f"{recipe.path}: step {number} ({entry.use})"
        if isinstance(step, Source) and number > 1:
            raise FactoryError(f"{where}: a source can only come first; other datasets enter as values")
        for column in step.needs():
            if column not in schema.names:
                hint = nearest(column, schema.names) or f"; there are {', '.join(schema.names)}"
                raise FactoryError(f"{where}: needs the column {column!r} and nothing before it adds one{hint}")
        if isinstance(step, Gather):
            stages[-1].emits = (number, entry)
            stage = close(schema)
            stage.applied = (number, entry)
        else:
            if step.resources != held and stages[-1].entries:
                close(schema)
            held = step.resources
            stages[-1].entries.append((number, entry))
        before = schema
        with located(where):
            schema = step.schema(schema)
        if annotate:
            for column in annotation_fields(recipe_entry(recipe, number), step, before):
                schema = schema.append(column)
        whole = isinstance(step, Source) and any(step.whole(split) for split in splits)
        if whole:
            stages[-1].cut = True
        if (whole or entry.keep) and number < len(recipe.steps):
            stages[-1].keep = entry.keep
            close(schema)
    stages[-1].after = schema
    return stages


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The fields in which two resolved recipes differ, by name."""
    found = [f"{key}: {old.get(key)!r} → {new.get(key)!r}" for key in ("shard_bytes",) if old.get(key) != new.get(key)]
    a, b = old["steps"], new["steps"]
    for number in range(max(len(a), len(b))):
        where = f"step {number + 1}"
        if number >= len(a) or number >= len(b):
            side, verb = (b, "added") if number >= len(a) else (a, "removed")
            found.append(f"{where} ({side[number]['use']}) was {verb}")
        elif a[number]["use"] != b[number]["use"]:
            found.append(f"{where}: use: {a[number]['use']!r} → {b[number]['use']!r}")
        else:
            one, two = a[number], b[number]
            for key in sorted({*one["options"], *two["options"]}):
                if one["options"].get(key) != two["options"].get(key):
                    values = f"{one['options'].get(key)!r} → {two['options'].get(key)!r}"
                    found.append(f"{where} ({one['use']}): {key}: {values}")
            for library in sorted({*one["libraries"], *two["libraries"]}):
                was, now = one["libraries"].get(library), two["libraries"].get(library)
                if was != now:
                    found.append(f"{where} ({one['use']}): made with {library} {was}, here it is {now}")
            if one["keep"] != two["keep"]:
                found.append(f"{where} ({one['use']}): keep_rows: {one['keep']} → {two['keep']}")
            if one["version"] != two["version"]:
                found.append(f"{where} ({one['use']}): its code changed: version {one['version']} → {two['version']}")
    return found or [UNSEEN]

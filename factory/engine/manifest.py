"""Manifests: what a finished dataset is. A dataset without one does not exist yet; it is written last."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from factory.engine import files, shard
from factory.engine.errors import FactoryError, nearest

FORMAT = 2


@dataclass(frozen=True)
class Manifest:
    """`rows`, `dropped` and `failed` list files as {"path", "rows", "bytes"}, relative to the dataset's folder."""

    name: str
    version: str
    key: str
    recipe: dict[str, Any]
    inputs: list[dict[str, Any]]
    stages: list[dict[str, Any]]
    columns: dict[str, str]
    schema: str
    rows: list[dict[str, Any]]
    dropped: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    counts: dict[str, int]
    funnel: list[dict[str, Any]]
    exchanges: list[dict[str, Any]]
    artifacts: dict[str, str]
    dropped_policy: str
    code: dict[str, str]
    description: str = ""
    annotated: bool = False
    made_for: dict[str, str] = field(default_factory=dict)
    """What the rows are for alone, as the steps that made them say (`Step.made_for`)."""
    format: int = FORMAT
    folder: str = ""
    """Where it was loaded from; not part of the file."""

    @property
    def dataset(self) -> str:
        return f"{self.name}@{self.version}"

    def arrow_schema(self) -> pa.Schema:
        return shard.unpack_schema(self.schema)

    def urls(self, kind: str = "rows") -> list[str]:
        """The files of `rows`, `dropped` or `failed`."""
        return [files.join(self.folder, file["path"]) for file in getattr(self, kind)]

    def save(self, folder: str) -> None:
        table = dataclasses.asdict(self)
        del table["folder"]
        files.write_json(files.join(folder, "manifest.json"), table)


def find(root: str, dataset: str) -> Manifest | None:
    """The manifest of `name@version`, or None where it is not built."""
    folder = files.join(root, dataset)
    path = files.join(folder, "manifest.json")
    if not files.exists(path):
        return None
    try:
        table = files.read_json(path)
        if table["format"] != FORMAT:
            raise ValueError(f"its format is {table['format']}, not {FORMAT}")
        return Manifest(**{**table, "folder": folder})
    except (ValueError, TypeError, KeyError) as error:
        raise FactoryError(
            f"{path}: not a manifest that this version of the factory reads ({error}): "
            f"remove {folder} and build the dataset again"
        ) from error


def load(root: str, name: str) -> Manifest:
    """The manifest of `name@version`, of a dataset's folder, or of the newest version of `name`."""
    dataset = name.rstrip("/")
    if "/" in dataset:
        root, _, dataset = dataset.rpartition("/")
    found = find(root, dataset) if "@" in dataset else newest(root).get(dataset)
    if found is None:
        built = [m.dataset for m in all_manifests(root)]
        hint = nearest(dataset, [*built, *{b.split("@")[0] for b in built}])
        raise FactoryError(f"{root}/{dataset}: no such finished dataset{hint}; build it with factory run")
    return found


def all_manifests(root: str) -> list[Manifest]:
    """Every finished dataset below a root, by name and version. Says which cannot be read, and goes on."""
    fs, path = files.locate(root)
    if not fs.exists(path):
        return []
    names = sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))
    found = []
    for name in names:
        try:
            one = find(root, name) if "@" in name else None
        except FactoryError as error:
            print(error, file=sys.stderr)
        else:
            found += [one] if one else []
    return found


def version_order(version: str) -> tuple[Any, ...]:
    """2026.11.9 comes before 2026.11.20, and dev before them all."""
    return tuple((0, int(part), "") if part.isdigit() else (-1, 0, part) for part in version.split("."))


def newest(root: str) -> dict[str, Manifest]:
    """The newest complete version of each name."""
    found: dict[str, Manifest] = {}
    for manifest in sorted(all_manifests(root), key=lambda m: version_order(m.version)):
        found[manifest.name] = manifest
    return found

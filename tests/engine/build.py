"""Helpers of the engine's tests: recipes from lists of steps, datasets as bytes, receipts recounted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import duckdb

from factory.engine import recipe, run
from factory.engine.manifest import Manifest

HERE = "tests.engine.steps:"
COUNTS = ("rows_in", "rows_made", "rows_kept", "rows_dropped", "rows_failed", "rows_consumed")


def make(*steps: dict[str, Any], name: str = "numbers", version: str = "1", **more: Any) -> recipe.Recipe:
    """A recipe of steps given as {"use": "Numbers", ...}."""
    table = [{**s, "use": s["use"] if "." in s["use"] else HERE + s["use"]} for s in steps]
    return recipe.build({"name": name, "version": version, "step": table, **more}, "test.toml")


def build(made: recipe.Recipe, root: Path, workers: int = 0, **more: Any) -> Manifest:
    return run.run(made, run.Options(root=str(root), workers=workers, quiet=True, **more))


def content(dataset: Manifest, *kinds: str) -> dict[str, str]:
    """SHA-256 of every file of a dataset, by its path."""
    folder = Path(dataset.folder)
    paths = [p for kind in kinds or ("rows",) for p in sorted((folder / kind).glob("*.parquet"))]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def check_law(dataset: Manifest) -> None:
    """Every receipt balances, and the sums are what the Parquet files hold."""
    sql = duckdb.connect()
    folder = dataset.folder
    receipts = sql.execute(f"select {', '.join(COUNTS)} from '{folder}/receipts/receipts.parquet'").fetchall()
    assert receipts
    for rows_in, made, kept, dropped, failed, consumed in receipts:
        assert rows_in + made == kept + dropped + failed + consumed
    sums = [sum(column) for column in zip(*receipts, strict=True)]
    for kind, at in (("dropped", 3), ("failed", 4)):
        assert sql.execute(f"select count(*) from '{folder}/{kind}/*.parquet'").fetchone() == (sums[at],)
    last = dataset.stages[-1]["key"]
    kept = sql.execute(f"select sum(rows_kept) from '{folder}/receipts/receipts.parquet' where stage = '{last}'")
    told = kept.fetchone()
    assert sql.execute(f"select count(*) from '{folder}/rows/*.parquet'").fetchone() == told
    by_reason = sql.execute(f"select step, reason, count(*) from '{folder}/dropped/*.parquet' group by all").fetchall()
    told = [(s["use"], r, n) for s in dataset.funnel for r, n in s["reasons"].items()]
    assert sorted(by_reason) == sorted(told)

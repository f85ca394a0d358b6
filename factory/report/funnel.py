"""The funnel of a dataset: rows in, kept, dropped by reason, failed."""

from __future__ import annotations

from factory.engine import manifest
from factory.engine.manifest import Manifest
from factory.report import agreement

BAR = 24


def text(dataset: Manifest) -> str:
    """The funnel as a table, one line a step, one a reason, one a count of what a step tallied."""
    counts = dataset.counts
    lines = [
        f"{dataset.dataset}    {dataset.folder}",
        f"{'step':34} {'rows in':>12} {'made':>10} {'kept':>12} {'dropped':>10} {'failed':>8} {'MB/CPU s':>9}",
    ]
    first = max(counts["rows_in"], 1)
    for step in dataset.funnel:
        rate = f"{step['bytes_in'] / 1e6 / step['cpu_seconds']:9,.1f}" if step["cpu_seconds"] > 0.01 else " " * 9
        bar = "█" * round(BAR * min(1.0, step["kept"] / first)) if not step["made"] else ""
        lines.append(
            f"{step['number']:2} {step['use'][-31:]:31} {step['rows_in']:12,} {step['made']:10,} {step['kept']:12,} "
            f"{step['dropped']:10,} {step['failed']:8,} {rate} {bar}".rstrip()
        )
        for reason, rows in sorted(step["reasons"].items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"   {'':31} {'':12} {'':10} {'':12} {rows:10,} {reason}")
        # A manifest may be older than tallies.
        tally = step.get("tally", {})
        for name, seen in sorted(tally.items(), key=lambda item: (-item[1], item[0])):
            if not name.startswith(agreement.PREFIX):
                lines.append(f"   {'':31} {seen:12,} {name}")
        lines += [f"   {line}" for line in agreement.lines(tally)]
    sums = "  ".join(f"{name.removeprefix('rows_')} {counts[name]:,}" for name in counts if name.startswith("rows_"))
    lines.append(f"rows: {sums}")
    if dataset.exchanges:
        seconds = sum(one["cpu_seconds"] for one in dataset.exchanges)
        peak = max(one["peak_memory_bytes"] for one in dataset.exchanges)
        lines.append(f"exchanges: {len(dataset.exchanges)}, {seconds:,.1f} CPU s, at most {peak / 1e6:,.0f} MB a task")
    lines.append(f"text in {counts['bytes_in'] / 1e6:,.1f} MB, Parquet out {counts['bytes_out'] / 1e6:,.1f} MB")
    return "\n".join(lines)


def listing(root: str) -> str:
    """All finished datasets below a root."""
    found = manifest.all_manifests(root)
    if not found:
        return f"{root}: no finished dataset yet; build one with factory run"
    lines = [f"{'dataset':44} {'rows':>14} {'shards':>8} {'Parquet MB':>12}"]
    for one in found:
        size = sum(file["bytes"] for file in one.rows) / 1e6
        rows = sum(file["rows"] for file in one.rows)
        lines.append(f"{one.dataset:44} {rows:14,} {len(one.rows):8,} {size:12,.1f}")
    return "\n".join(lines)

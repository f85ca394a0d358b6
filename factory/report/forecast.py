"""What a run would do and cost: stages, shards, core-hours and disk, from rates measured by earlier runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from factory.engine import files, manifest, shard
from factory.engine.errors import FactoryError
from factory.engine.plan import Plan

BYTES_A_TOKEN = 4.2
"""UTF-8 bytes of English web text a token, as used for the 18T estimate."""

OTHER = "read, write, emit"
LITTLE = 100e6


@dataclass
class Rate:
    """What a step did in the runs so far: text in, CPU seconds, and how much of the text it let through."""

    bytes_in: float = 0.0
    cpu_seconds: float = 0.0
    rows_in: int = 0
    rows_out: int = 0

    @property
    def bytes_a_second(self) -> float | None:
        return self.bytes_in / self.cpu_seconds if self.bytes_in and self.cpu_seconds > 0 else None

    @property
    def share_kept(self) -> float:
        """Of the text, as far as rows tell; a step that makes rows of rows keeps it all."""
        return self.rows_out / self.rows_in if self.rows_in else 1.0


@dataclass
class Measured:
    """Rates of every step that was ever run below a root, of the reading and writing around them, and how many bytes
    of Parquet a byte of content became."""

    steps: dict[str, Rate]
    other: Rate
    parquet_bytes: int = 0
    content_bytes: int = 0


def measured(root: str) -> Measured:
    """What the receipts and manifests below a root tell."""
    found = Measured({}, Rate())
    for dataset in manifest.all_manifests(root):
        if dataset.annotated:  # where every filter keeps all
            continue
        path = files.join(dataset.folder, "receipts", "receipts.parquet")
        total = shard.read_columns(path, ["stage", "cpu_seconds", "bytes_in"]).to_pydict()
        in_steps = -sum(one["cpu_seconds"] for one in dataset.exchanges)  # which no receipt counts
        for step in dataset.funnel:
            rate = found.steps.setdefault(step["use"], Rate())
            rate.bytes_in += step["bytes_in"]
            rate.cpu_seconds += step["cpu_seconds"]
            rate.rows_in += step["rows_in"]
            rate.rows_out += step["rows_in"] if step["made"] else step["kept"]
            in_steps += step["cpu_seconds"]
        found.other.bytes_in += sum(total["bytes_in"])
        found.other.cpu_seconds += max(0.0, sum(total["cpu_seconds"]) - in_steps)
        last = dataset.stages[-1]["key"]
        given = sum(size for stage, size in zip(total["stage"], total["bytes_in"], strict=True) if stage == last)
        rows_in = dataset.funnel[-1]["rows_in"]
        found.content_bytes += given * dataset.funnel[-1]["kept"] // max(rows_in, 1)
        found.parquet_bytes += sum(file["bytes"] for file in dataset.rows)
    return found


def parse_count(text: str) -> float:
    """18T, 2.5B, 300M or 1000000 → a number."""
    match = re.fullmatch(r"([0-9.]+)([KMBT]?)", text.strip(), re.IGNORECASE)
    try:
        return float(match[1]) * 1000.0 ** " KMBT".index((match[2] or " ").upper()) if match else _bad_count(text)
    except ValueError:
        return _bad_count(text)


def _bad_count(text: str) -> float:
    raise FactoryError(f"--tokens {text}: not a number of tokens: write 18T or 300M")


def text(planned: Plan, tokens: float | None = None) -> str:
    """The plan as a table."""
    known = measured(planned.root)
    size = tokens * BYTES_A_TOKEN if tokens else float(planned.input_bytes)
    total, per_shard = size, planned.recipe.shard_bytes
    lines = [
        f"{planned.dataset}: {_bytes(size)} in"
        + (f" ({tokens:,.0f} tokens of {BYTES_A_TOKEN} bytes)" if tokens else f", {len(planned.splits):,} splits"),
        f"{'stage':6} {'step':34} {'text in':>10} {'kept':>7} {'MB/CPU s':>10} {'core-hours':>12}",
    ]
    hours, unknown, wide = 0.0, [], 0.0
    for number, stage in enumerate(planned.stages, 1):
        begun = size
        steps = ([stage.applied] if stage.applied else []) + stage.entries
        for _, entry in steps:
            rate = known.steps.get(entry.use, Rate())
            speed = rate.bytes_a_second
            cost = size / speed / 3600 if speed else None
            hours += cost or 0.0
            if speed is None:
                unknown.append(entry.use)
            lines.append(
                f"{number:<6} {entry.use[-34:]:34} {_bytes(size):>10} {rate.share_kept:7.1%} "
                f"{f'{speed / 1e6:,.1f}' if speed else '?':>10} {f'{cost:,.3f}' if cost is not None else '?':>12}"
            )
            size *= rate.share_kept
        speed = known.other.bytes_a_second
        if speed:
            hours += begun / speed / 3600
            shown = f"{speed / 1e6:,.1f}"
            lines.append(f"{number:<6} {OTHER:34} {_bytes(begun):>10} {'':7} {shown:>10} {begun / speed / 3600:12,.3f}")
        lines.append(
            f"{'':6} → {max(1, round(size / per_shard)):,} shards of {_bytes(per_shard)} of text, {_bytes(size)}"
        )
        wide = max(wide, size)
    ratio = known.parquet_bytes / known.content_bytes if known.content_bytes else None
    lines.append(
        f"in all {hours:,.2f} core-hours" + (f" and what is not measured: {', '.join(unknown)}" if unknown else "")
    )
    if ratio:
        gone = (total - size) * ratio if planned.dropped_policy == "full" else 0.0
        lines.append(
            f"disk: {_bytes(size * ratio)} of Parquet for the rows, {_bytes(gone)} for the dropped text "
            f"(dropped = {planned.dropped_policy!r}), {_bytes(wide * ratio)} for the widest stage while it runs"
        )
    if 0 < known.other.bytes_in < LITTLE:
        lines.append(
            f"measured on {_bytes(known.other.bytes_in)} of text only, most of it start-up: run on more to know"
        )
    if unknown:
        lines.append(
            f"steps marked ? have never run below {planned.root}: run the recipe on a sample of the input first, "
            "then plan again"
        )
    return "\n".join(lines)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:,.1f} {unit}" if unit != "B" else f"{size:,.0f} B"
        size /= 1000
    raise AssertionError

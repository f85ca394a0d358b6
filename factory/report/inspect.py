"""Sampled rows of a dataset: the quickest way to see what a filter does."""

from __future__ import annotations

import textwrap

import duckdb

from factory.engine.catalog import reading
from factory.engine.errors import FactoryError, nearest
from factory.engine.manifest import Manifest


def text(dataset: Manifest, reason: str = "", rows: int = 2, width: int = 400) -> str:
    """`rows` kept rows and as many of each reason, chosen by a hash of their ids: the same at every call."""
    connection = duckdb.connect(":memory:")
    connection.execute(f"create view kept as {reading(dataset.urls('rows'))}")
    connection.execute(f"create view dropped as {reading(dataset.urls('dropped'))}")
    shown = next((name for name in ("text", *dataset.columns) if name in dataset.columns and name != "id"), "id")
    found = connection.execute(
        "select step, reason, count(*) from dropped group by all order by 3 desc, 1, 2"
    ).fetchall()
    if reason:
        known = sorted({r for _, r, _ in found})
        if reason not in known:
            raise FactoryError(f"{dataset.dataset}: nothing was dropped for {reason!r}{nearest(reason, known)}")
        found = [one for one in found if one[1] == reason]
    blocks = []
    if not reason:
        total = sum(file["rows"] for file in dataset.rows)
        query = f'select id, "{shown}"::varchar from kept order by hash(id), id limit {rows}'
        blocks.append(_block(f"kept: {total:,} rows", connection.execute(query).fetchall(), width))
    for step, why, count in found:
        query = (
            f'select id, "{shown if shown != "id" else "reason"}"::varchar, kept_id from dropped '
            f"where step = ? and reason = ? order by hash(id), id limit {rows}"
        )
        sample = connection.execute(query, [step, why]).fetchall()
        blocks.append(_block(f"dropped by {step}: {why}, {count:,} rows", sample, width))
    if not reason:
        connection.execute(f"create view failed as {reading(dataset.urls('failed'))}")
        for step, count in connection.execute("select step, count(*) from failed group by 1 order by 1").fetchall():
            query = f"select id, error || '  ' || place from failed where step = ? order by hash(id), id limit {rows}"
            blocks.append(
                _block(f"failed in {step}: {count:,} rows", connection.execute(query, [step]).fetchall(), width)
            )
    return "\n".join(blocks)


def _block(title: str, rows: list[tuple[str, ...]], width: int) -> str:
    lines = [f"── {title} " + "─" * max(0, 96 - len(title))]
    for row in rows:
        lines.append(f"{row[0]}" + (f"   (kept: {row[2]})" if len(row) > 2 and row[2] else ""))
        content = row[1] if row[1] is not None else "(the text of this row was not kept: see --dropped)"
        cut = content[:width] + (f" … {len(content) - width:,} more" if len(content) > width else "")
        lines += textwrap.wrap(cut, 100, initial_indent="    ", subsequent_indent="    ") or ["    (empty)"]
    return "\n".join(lines)

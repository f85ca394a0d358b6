"""`factory sandbox doctor`: which languages can be judged here, each tried with a real program in a real box."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from factory.engine.errors import FactoryError
from factory.sandbox.box import Box, require_isolation
from factory.sandbox.languages import Language, OpenBox, broken_toolchain, language, languages
from factory.sandbox.limits import Limits


@dataclass(frozen=True)
class Finding:
    """What is known of a language on this machine."""

    language: str
    version: str
    isolation: str
    """How its programs are closed in, or empty where nothing was run."""
    works: bool
    why_not: str


def examine(names: Sequence[str] = (), isolation: str | None = None, workers: int = 2) -> Iterator[Finding]:
    """Every language, or those named, in order: its version, and whether its example program passes."""
    rows = [language(name) for name in names] or list(languages().values())
    try:
        found = require_isolation(isolation)
    except FactoryError as error:
        why_not = " ".join(str(error).split())
        yield from (Finding(row.name, "", "", False, row.missing() or why_not) for row in rows)
        return
    open_box = functools.partial(Box, isolation=found)
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda row: _finding(row, open_box, found), rows)


def _finding(row: Language, open_box: OpenBox, isolation: str) -> Finding:
    if missing := row.missing():
        return Finding(row.name, "", "", False, missing)
    limits = row.toolchain_limits(Limits())
    with row.box(open_box, limits) as box:
        done = box.run(row.command(row.version), limits=limits)
    lines = (done.stdout.decode(errors="replace").strip() or done.stderr.decode(errors="replace").strip()).splitlines()
    bad = broken_toolchain(open_box, row)
    why_not = bad.detail.removeprefix(f"{row.name}: ") if bad else ""
    return Finding(row.name, lines[0].strip() if lines else "", isolation, bad is None, " ".join(why_not.split()))


def table(findings: Sequence[Finding], width: int = 120) -> str:
    """The findings as lines of text, and their count."""
    rows = [("language", "isolation", "works", "version, or why not")]
    for found in findings:
        told = found.version if found.works else found.why_not
        rows.append((found.language, found.isolation or "-", "yes" if found.works else "no", told))
    wide = [max(len(row[k]) for row in rows) for k in range(3)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, (*wide, 0), strict=True))[:width].rstrip() for row in rows]
    return "\n".join([*lines, f"{sum(f.works for f in findings)} of {len(findings)} languages work here"])


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False)

"""Verdicts a second of one core: structure, tables, denotations, language.

    python benchmarks/verify_structure.py [--data shared/data] [--seconds 1]

Each check judges real answers again and again: JSON, YAML, XML, CSV and Markdown made of tables of WikiTableQuestions,
its questions' right answers, and GPT-4's answers to IFEval's prompts (about 1,200 characters each). CPU seconds, the
median of three runs. The schema is checked by jsonschema-rs; where jsonschema is installed, it is timed beside it.
"""

from __future__ import annotations

import argparse
import csv as rfc4180
import importlib.util
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import yaml as pyyaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from factory.verify import denotation, language, structure, tables

SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["row"],
        "properties": {"row": {"type": "array", "items": {"type": "string"}}},
    },
}


def rate(check: Callable[[str], object], texts: list[str], seconds: float) -> float:
    """Verdicts a CPU second, the median of three runs over the texts in turn."""
    check(texts[0])
    rates = []
    for _ in range(3):
        start, done = time.process_time(), 0
        while time.process_time() - start < seconds:
            check(texts[done % len(texts)])
            done += 1
        rates.append(done / (time.process_time() - start))
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description="Verdicts a second of one core: structure, tables, language.")
    parser.add_argument("--data", type=Path, default=Path("shared/data"))
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    grids = []
    for path in sorted((options.data / "wtq/WikiTableQuestions/csv").rglob("*.csv"))[:50]:
        rows = list(rfc4180.reader(io.StringIO(path.read_text("utf-8"), newline=""), escapechar="\\"))
        grids.append([[" ".join(cell.split()) or "-" for cell in row] for row in rows[:25]])
    values = [[{"row": row} for row in grid] for grid in grids]
    jsons = [json.dumps(value) for value in values]
    xmls = [
        "<t>" + "".join("<r>" + "".join(f"<c>{escape(c)}</c>" for c in row) + "</r>" for row in grid) + "</t>"
        for grid in grids
    ]
    csvs = []
    for grid in grids:
        out = io.StringIO()
        rfc4180.writer(out).writerows(grid)
        csvs.append(out.getvalue())
    lines = [["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in grid] for grid in grids]
    marks = ["\n".join([one[0], "|" + "---|" * len(grid[0]), *one[1:]]) for one, grid in zip(lines, grids, strict=True)]
    text = (options.data / "wtq/WikiTableQuestions/data/training.tsv").read_text("utf-8")
    answers = [line.split("\t")[3] for line in text.split("\n")[1:3000]]
    path = options.data / "ifeval/IFEval/data/input_response_data_gpt4_20231107_145030.jsonl"
    responses = [json.loads(line)["response"] for line in path.read_text("utf-8").splitlines()]
    schema = json.dumps(SCHEMA)
    checks: list[tuple[str, Callable[[str], object], list[str]]] = [
        ("json", structure.json, jsons),
        ("json with a schema", lambda one: structure.json(one, schema), jsons),
        ("yaml", structure.yaml, [pyyaml.safe_dump(value, allow_unicode=True) for value in values]),
        ("xml", structure.xml, xmls),
        ("csv", tables.csv, csvs),
        ("markdown_table", tables.markdown_table, marks),
        ("same_table", lambda one: tables.same_table(one, one), csvs),
        ("denotation", lambda one: denotation.denotation(one, one), answers),
        ("is_language", lambda one: language.is_language(one, "en"), responses),
        ("not_mixed", lambda one: language.not_mixed(one, "en"), responses),
        ("not_degenerate", language.not_degenerate, responses),
        ("not_refused", language.not_refused, responses),
        ("length (words)", lambda one: language.length(one, 10), responses),
    ]
    print(f"{'check':<22} {'characters':>10} {'verdicts/s':>11}")
    for name, check, texts in checks:
        size = sum(map(len, texts)) / len(texts)
        print(f"{name:<22} {size:>10,.0f} {rate(check, texts, options.seconds):>11,.0f}", flush=True)
    if importlib.util.find_spec("jsonschema"):
        import jsonschema
        import jsonschema_rs

        theirs, ours = jsonschema.Draft202012Validator(SCHEMA), jsonschema_rs.validator_for(SCHEMA)
        slow = rate(lambda one: theirs.is_valid(values[int(one)]), list(map(str, range(50))), options.seconds)
        fast = rate(lambda one: ours.is_valid(values[int(one)]), list(map(str, range(50))), options.seconds)
        print(
            f"validation alone: jsonschema {slow:,.0f}/s, jsonschema-rs {fast:,.0f}/s: {fast / slow:.0f} times as many"
        )


if __name__ == "__main__":
    main()

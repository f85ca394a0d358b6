"""Answers that are tables: CSV, Markdown beside GitHub's own implementation, and tables that are the same."""

from __future__ import annotations

import csv as rfc4180
import io
import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.verify.structure import Malformed
from factory.verify.tables import csv, markdown_table, parse_csv, parse_markdown_table, same_table

CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=6)


@st.composite
def grids(draw: st.DrawFn, cells: st.SearchStrategy[str] = CELLS) -> list[list[str]]:
    width = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=4))
    return [[f"h{k}" for k in range(width)], *rows]


# CSV


def written(rows: list[list[str]], delimiter: str = ",") -> str:
    out = io.StringIO()
    rfc4180.writer(out, delimiter=delimiter, quoting=rfc4180.QUOTE_ALL).writerows(rows)
    return out.getvalue()


@settings(max_examples=200, deadline=None)
@given(grids(), st.sampled_from([",", ";", "\t", "|"]))
def test_csv_that_was_written_is_read(rows: list[list[str]], delimiter: str) -> None:
    text = written(rows, delimiter)
    if re.search(r"(?m)^ {0,3}(```|~~~)", text):
        return  # a cell with a fence in it
    assert parse_csv(text, delimiter=delimiter) == rows
    assert csv(f"Here:\n```csv\n{text}```", rows=len(rows) - 1, delimiter=delimiter).passed


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("a,b\n1,2\n3", "line 3: 1 cells, the header has 2"),
        ("a,b\n1,2,3", "line 2: 3 cells"),
        ("a,b\n1,2\n\n3,4", "line 3: 0 cells"),
        ('a,b\n"1,2', "unexpected end of data"),
        ('a,b\n"1"x,2', "expected after"),
        ("", "no header"),
        (",\n1,2", "no header"),
        ("a,b\n1," + "x" * 200_000, "field limit"),
    ],
)
def test_what_is_no_csv(response: str, reason: str) -> None:
    assert reason in csv(response).reason and not csv(response).passed


def test_columns_and_types() -> None:
    text = 'year,name,share,"open",day\n1990,"Doe, ""J""",.5,true,1990-01-31\n,x,,FALSE,'
    types = {"year": "integer", "name": "string", "share": "number", "open": "boolean", "day": "date"}
    assert csv(text, columns=types, rows=2).passed and csv(text, columns=list(types)).passed
    assert csv(text, rows=3).reason == "2 rows below the header, not 3"
    assert csv(text, columns=["name", "year"]).reason.startswith("the columns are")
    for wrong, cell in (("1990", "x1"), (".5", "half"), ("1990-01-31", "1990-02-31"), ("true", "yes")):
        assert repr(cell) in csv(text.replace(wrong, cell), columns=types).reason
    with pytest.raises(FactoryError, match=r"no type 'int' \(did you mean 'integer'\?\)"):
        csv(text, columns={"year": "int"})


# Markdown

TABLE = "Here you are:\n\n| a | b |\n|:--|--:|\n| 1 \\| 2 | `x` |\n| 3 | |\n\nAnything else?"


def test_markdown_table() -> None:
    table = parse_markdown_table(TABLE, columns=["a", "b"], rows=2)
    assert table.rows == [["a", "b"], ["1 | 2", "`x`"], ["3", ""]] and table.alignment == ["left", "right"]
    assert parse_markdown_table(f"```markdown\n{TABLE}\n```").rows == table.rows
    assert (
        markdown_table(TABLE, columns={"a": "string", "b": "integer"}).reason
        == "row 1, column 'b': '`x`' is no integer"
    )


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("no table | here", "no table"),
        ("| a | b |\n| 1 | 2 |", "no table"),
        ("| a | b |\n|---|\n| 1 | 2 |", "no table"),
        ("| a | b |\n|---|---|\n| 1 | 2 | 3 |", "row 1: 3 cells, the header has 2"),
        ("| a | b |\n|---|---|\n| 1 |", "row 1: 1 cells"),
        ("| a | b |\n|---|---|\nand text below", "row 1: 1 cells"),
        (TABLE + "\n\n" + TABLE, "2 tables"),
        ("    | a | b |\n    |---|---|", "no table"),
        ("```\n| a |\n|---|\n```\n```\n| b |\n|---|\n```", "no table"),
    ],
)
def test_what_is_no_markdown_table(response: str, reason: str) -> None:
    check = markdown_table(response)
    assert not check.passed and check.reason.startswith(reason)


def test_tables_are_those_of_github() -> None:
    cmarkgfm = pytest.importorskip("cmarkgfm", reason="GitHub's Markdown is what we compare with")
    from lxml import html

    lines = st.one_of(
        st.lists(st.sampled_from(["a", " b ", "\\|", "", "-", ":-:", "`c", "\\\\", "*d*"]), max_size=4).map("|".join),
        st.sampled_from(["|-|-|", "-|-", ":-:|-:", "|---|", "| a | b |", "|x|y|", "   |a|b|", "1|2|3", "|", "-", ""]),
        st.sampled_from(["# t", "> q", "- l", "1. n", "***", "<div>", "```", "text"]),
    )

    @settings(max_examples=400, deadline=None)
    @given(st.lists(lines, min_size=2, max_size=7))
    def compare(given_lines: list[str]) -> None:
        text = "\n".join(given_lines)
        tree = html.fromstring(f"<div>{cmarkgfm.github_flavored_markdown_to_html(text)}</div>")
        theirs = [table for table in tree.iter("table") if not any(table.iterancestors("blockquote", "li"))]
        if not theirs and "```" in given_lines:
            return  # an answer's table may stand in a fenced block; to GitHub that is code
        try:
            ours = parse_markdown_table(text)
        except Malformed as error:
            if "no table" in str(error):
                assert not theirs
            elif "tables" in str(error):
                assert len(theirs) == int(str(error).split()[0])
            else:
                assert len(theirs) == 1
            return
        assert len(theirs) == 1
        rows = list(theirs[0].iter("tr"))
        assert len(rows) == len(ours.rows) and {len(row) for row in rows} == {len(ours.rows[0])}
        assert [cell.get("align") or "" for cell in rows[0]] == ours.alignment
        for row, cells in zip(rows, ours.rows, strict=True):
            plain = [re.sub(r"\\(?=[\\|])|[*`]", "", cell) for cell in cells]
            assert [re.sub(r"[*`\\]", "", cell.text_content()) for cell in row] == [c.replace("\\", "") for c in plain]

    compare()


# Whole tables


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


WORDS = st.text("abc é,|\"'1234.-", min_size=1, max_size=5).filter(lambda text: text.strip("| \t") != "")


@settings(max_examples=200, deadline=None)
@given(grids(WORDS), st.randoms(use_true_random=False))
def test_the_same_table_in_another_order_and_notation(rows: list[list[str]], rng: random.Random) -> None:
    order = rng.sample(range(len(rows[0])), len(rows[0]))
    below = rng.sample(rows[1:], len(rows) - 1)
    other = [[row[k] for k in order] for row in [rows[0], *below]]
    assert same_table(written(other), written(rows)).passed
    assert same_table(markdown(other), written(rows)).passed
    assert same_table(written(other), written(rows), ordered=True).passed == (
        [[" ".join(c.split()) for c in r] for r in below] == [[" ".join(c.split()) for c in r] for r in rows[1:]]
    ) or any(c.strip("-.0123456789, ") == "" for row in rows for c in row)
    assert not same_table(written([*other, ["zzz"] * len(order)]), written(rows)).passed
    changed = [rows[0], *rows[1:-1], [rows[-1][0] + "zzz", *rows[-1][1:]]]
    assert not same_table(written(changed), written(rows)).passed


def test_numbers_by_tolerance() -> None:
    table = "name,share\na,1000\nb,0.3333333\nc,2"
    assert same_table('name,share\nc,2.0\na,"1,000"\nb,0.33333334', table).passed
    assert same_table("name,share\na,1001\nb,0.3333\nc,2", table, tolerance=1e-3).passed
    assert not same_table("name,share\na,1001\nb,0.3333\nc,2", table).passed
    assert same_table("name,share\nb,0.3333333\na,1000\nc,2", table, ordered=True).reason == (
        "row 1, column 'name': 'b', not 'a'"
    )
    assert same_table("name\na", table).reason.startswith("the columns are")
    assert same_table("name,share\na,1000", table).reason == "1 rows, not 3"
    assert not same_table("no table", table).passed
    with pytest.raises(FactoryError, match="the table to compare with is none"):
        same_table(table, "a,b\n1")


def test_rows_are_paired_as_well_as_can_be() -> None:
    """1.0 may go to 0.9 or 1.1, which the first that fits would take from 1.2."""
    assert same_table("x\n1.1\n0.9", "x\n1.0\n1.2", tolerance=0.11).passed
    assert same_table("x\n0.9\n1.1", "x\n1.0\n1.2", tolerance=0.11).passed
    assert not same_table("x\n0.9\n0.91", "x\n1.0\n1.2", tolerance=0.11).passed


def test_many_rows_that_differ_a_little_do_not_hang() -> None:
    start = time.process_time()
    given_rows = "x,y\n" + "\n".join(f"{k + 1e-8},{k}" for k in range(600))
    assert same_table(given_rows, "x,y\n" + "\n".join(f"{k},{k}" for k in range(600))).passed
    wide = same_table("x\n" + "\n".join(f"{1 + k * 1e-9}" for k in range(5000)), "x\n" + "\n".join(["1"] * 5000))
    assert wide.passed or "comparisons" in wide.reason
    assert time.process_time() - start < 30


@pytest.mark.parametrize(
    "piece", ["|", "a|b\n-|-\n", "-", "\\|", '"', '",', "a,", "\n", "|-", "a\n:-\n\n", "```\n", ","]
)
def test_nothing_hangs(piece: str) -> None:
    start = time.process_time()
    text = piece * (200_000 // len(piece))
    for check in (csv, markdown_table):
        check(text)
    same_table(text, "a,b\n1,2")
    assert time.process_time() - start < 20


def test_the_tables_of_wikipedia(data: Path) -> None:
    """Tables of WikiTableQuestions: as they are in CSV, and written as Markdown, each is its own and no other's."""
    tables = []
    for path in sorted((data / "wtq/WikiTableQuestions/csv").rglob("*.csv"))[:120]:
        rows = [
            [" ".join(cell.split()) for cell in row]
            for row in rfc4180.reader(io.StringIO(path.read_text("utf-8"), newline=""), escapechar="\\")
        ]
        tables.append([[cell or f"c{k}" for k, cell in enumerate(rows[0])], *rows[1:]])
    assert len(tables) == 120
    for rows, other in zip(tables, tables[1:] + tables[:1], strict=True):
        text = written(rows)
        assert parse_csv(text, columns=rows[0], rows=len(rows) - 1) == rows
        assert parse_markdown_table(markdown(rows)).rows == rows
        shuffled = [rows[0], *random.Random(0).sample(rows[1:], len(rows) - 1)]
        assert same_table(markdown(shuffled), text).passed
        assert not same_table(written(other), text).passed

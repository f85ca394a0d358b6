"""Answers that are tables: CSV, Markdown, and whether two tables are the same."""

from __future__ import annotations

import csv as rfc4180
import io
import math
import re
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import count, repeat

from factory.engine.errors import FactoryError, nearest
from factory.verify.check import Check
from factory.verify.fences import fences
from factory.verify.structure import Malformed, bounded, content, judge, shown

Rows = list[list[str]]
Columns = Sequence[str] | Mapping[str, str]
"""Names of columns in order; a mapping gives each a type: string, integer, number, boolean or date (ISO 8601)."""

# CSV


def parse_csv(response: str, columns: Columns = (), rows: int | None = None, delimiter: str = ",") -> Rows:
    """The rows of a CSV answer (RFC 4180), the header first; every row is as wide as the header.

    With `columns` the header has these names in this order, and each cell the type of its column (an empty cell has
    any). With `rows` there are so many below the header. Raises `Malformed`, `FactoryError` where the delimiter is none
    or a column has no known type.
    """
    if len(delimiter) != 1 or delimiter in '\r\n"':
        raise FactoryError(f"the delimiter {delimiter!r}: give one character, as , or ;")
    reader = rfc4180.reader(io.StringIO(content(response).strip("\r\n"), newline=""), delimiter=delimiter, strict=True)
    found: Rows = []
    try:
        for row in reader:
            if found and len(row) != len(found[0]):
                raise Malformed(f"line {reader.line_num}: {len(row)} cells, the header has {len(found[0])}")
            found.append(row)
    except rfc4180.Error as error:
        raise Malformed(f"line {reader.line_num}: {error}") from None
    return _fits(found, columns, rows)


def csv(response: str, columns: Columns = (), rows: int | None = None, delimiter: str = ",") -> Check:
    """Whether an answer is one CSV table, bare or fenced, with these columns and rows; see `parse_csv`."""
    return judge(lambda: parse_csv(response, columns, rows, delimiter))


_INTEGER = re.compile(r"[-+]?[0-9]+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def _is_date(cell: str) -> bool:
    try:
        date.fromisoformat(cell)
    except ValueError:
        return False
    return True


_TYPES: dict[str, Callable[[str], bool]] = {
    "string": lambda cell: True,
    "integer": lambda cell: _INTEGER.fullmatch(cell) is not None,
    "number": lambda cell: _NUMBER.fullmatch(cell) is not None,
    "boolean": lambda cell: cell.lower() in ("true", "false"),
    "date": _is_date,
}


def _fits(table: Rows, columns: Columns, rows: int | None) -> Rows:
    types = list(columns.values()) if isinstance(columns, Mapping) else []
    for kind in types:
        if kind not in _TYPES:
            raise FactoryError(f"columns: no type {kind!r}{nearest(kind, _TYPES)}; types: {', '.join(_TYPES)}")
    if not table or not any(table[0]):
        raise Malformed("no header")
    names = [cell.strip() for cell in table[0]]
    if columns and names != list(columns):
        raise Malformed(f"the columns are {shown(names)}, not {shown(list(columns))}")
    if rows is not None and len(table) - 1 != rows:
        raise Malformed(f"{len(table) - 1} rows below the header, not {rows}")
    for number, row in enumerate(table[1:], 1):
        for name, kind, cell in zip(names, types, row, strict=False):
            if cell.strip() and not _TYPES[kind](cell.strip()):
                raise Malformed(f"row {number}, column {name!r}: {shown(cell)} is no {kind}")
    return table


# Markdown, as GitHub's specification has it: GFM 0.29, section 4.10

_DELIMITER = re.compile(r"\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?")
_PIPE = re.compile(r"(?<!\\)\|")
# Blocks of another kind: no line of a table.
_OTHER = re.compile(
    r" {4}| {0,3}(\t|>|([-*_])[ \t]*(\2[ \t]*){2,}$|#{1,6}([ \t]|$)|[-+*]([ \t]|$)|\d{1,9}[.)]([ \t]|$)|```|~~~"
    r"|</?[a-zA-Z]+[ \t/>]|<[!?])"
)


# Of these, a block to which the lines below belong as well, up to an empty one.
_GOES_ON = re.compile(r" {0,3}(>|[-+*][ \t]|\d{1,9}[.)][ \t]|(</?[a-zA-Z]+[ \t/>]|<[!?]))")


# A list item whose text begins in the next line, if that is indented as far.
_EMPTY_ITEM = re.compile(r" {0,3}(?:[-+*]|\d{1,9}[.)])[ \t]*")


def _cells(line: str) -> list[str]:
    """The cells of a row: split at each pipe without a backslash before it, also within code."""
    parts = _PIPE.split(line.strip(" \t"))
    if len(parts) > 1:
        parts = parts[not parts[0] : len(parts) - (not parts[-1])]
    return [part.strip(" \t").replace("\\|", "|") for part in parts]


def _tables(text: str) -> list[list[tuple[list[str], str]]]:
    """The tables of a text outside of code: for each its lines as cells, with the line; the second is the delimiter."""
    lines, tables, at, after = re.split(r"\r\n|\r|\n", text), [], 1, 0
    while at < len(lines):
        head, below = lines[at - 1], lines[at]
        # Behind a paragraph `-` would underline a heading, and no empty item begins.
        alone = at - 1 == after or not lines[at - 2].strip() or _OTHER.match(lines[at - 2])
        inside = below.strip() and len(below) - len(below.lstrip(" ")) > len(head.rstrip())
        if alone and inside and _EMPTY_ITEM.fullmatch(head):
            while at < len(lines) and lines[at].strip() and not _OTHER.match(lines[at]):
                at += 1
            at += 1
            continue
        if block := _GOES_ON.match(head):
            while at < len(lines) and lines[at].strip() and (block[2] or not _OTHER.match(lines[at])):
                at += 1
            at += 1
            continue
        fits = (
            _DELIMITER.fullmatch(below.strip())
            and ("|" in below or ":" in below)  # else it makes a heading of the line above
            and not _OTHER.match(head)
            and not _OTHER.match(below)
            and head.strip()
        )
        if not fits:
            at += 1
            continue
        if head.strip() == "|" or len(_cells(head)) != len(_cells(below)):
            # GitHub looks for no other table in the same paragraph.
            while at < len(lines) and lines[at].strip() and not _OTHER.match(lines[at]):
                at += 1
            continue
        end = at + 1
        while end < len(lines) and lines[end].strip() not in ("", "|") and not _OTHER.match(lines[end]):
            end += 1
        tables.append([(_cells(line), line) for line in lines[at - 1 : end]])
        at, after = end + 1, end
    return tables


@dataclass(frozen=True)
class MarkdownTable:
    """Rows, the header first, and how each column is aligned: left, right, center or nothing."""

    rows: Rows
    alignment: list[str]


def parse_markdown_table(response: str, columns: Columns = (), rows: int | None = None) -> MarkdownTable:
    """The one table of a Markdown answer, by GitHub's rules; words may stand around it.

    A table in a fenced block counts where there is none outside. GitHub fills up a row that is narrower than the
    header and cuts one that is wider; here each is an error. `columns` and `rows` as in `parse_csv`. Raises
    `Malformed`.
    """
    text = bounded(response)
    blocks = list(fences(text))
    edges = [0, *(edge for block in blocks for edge in (block.start, block.end)), len(text)]
    outside = "\n".join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    found = _tables(outside) or (_tables(blocks[0].body) if len(blocks) == 1 else [])
    if len(found) != 1:
        raise Malformed(f"{len(found)} tables where one is expected" if found else "no table")
    (table,) = found
    width = len(table[0][0])
    for number, (cells, _) in enumerate(table[2:], 1):
        if len(cells) != width:
            raise Malformed(f"row {number}: {len(cells)} cells, the header has {width}")
    marks = [(cell.startswith(":"), cell.endswith(":")) for cell in table[1][0]]
    alignment = ["center" if left and right else "left" if left else "right" if right else "" for left, right in marks]
    return MarkdownTable(_fits([cells for cells, _ in table[:1] + table[2:]], columns, rows), alignment)


def markdown_table(response: str, columns: Columns = (), rows: int | None = None) -> Check:
    """Whether an answer has one Markdown table, with these columns and rows; see `parse_markdown_table`."""
    return judge(lambda: parse_markdown_table(response, columns, rows))


# Whole tables

COMPARED = 1_000_000
"""Pairs of rows that are compared at most where they differ within the tolerance."""


def read_table(text: str) -> Rows:
    """The rows of a table in Markdown or CSV, the header first. Raises `Malformed`."""
    try:
        return parse_markdown_table(text).rows
    except Malformed:
        return parse_csv(text)


def same_table(response: str, table: str, ordered: bool = False, tolerance: float = 1e-6) -> Check:
    """Whether an answer has the table `table`, both in Markdown or CSV: the same columns in any order, the same rows.

    Two cells are equal as text, single spaces and Unicode's compatible forms (NFKC) apart, or as numbers that differ
    by at most `tolerance`, absolute or relative. `ordered`: the rows come in the same order. `FactoryError` where
    `table` is none.
    """
    try:
        wanted = _by_column(read_table(table))
    except Malformed as error:
        raise FactoryError(f"same_table: the table to compare with is none: {error}; give Markdown or CSV") from None
    try:
        given = _by_column(read_table(response))
    except Malformed as error:
        return Check(False, str(error))
    if given[0] != wanted[0]:
        return Check(False, f"the columns are {shown(given[0])}, not {shown(wanted[0])}")
    if len(given) != len(wanted):
        return Check(False, f"{len(given) - 1} rows, not {len(wanted) - 1}")
    pairs = zip(given[1:], wanted[1:], strict=True)
    if ordered:
        for row, (one, other) in enumerate(pairs, 1):
            for name, cell, right in zip(wanted[0], one, other, strict=True):
                if not _equal(cell, right, tolerance):
                    return Check(False, f"row {row}, column {name!r}: {shown(cell)}, not {shown(right)}")
        return Check(True)
    try:
        missing = _unmatched(given[1:], wanted[1:], tolerance)
    except Malformed as error:
        return Check(False, str(error))
    return Check(False, f"no row {shown(missing)}") if missing is not None else Check(True)


Cell = str | float


def _by_column(rows: Rows) -> list[list[Cell]]:
    """Normalised cells, with the columns in the order of their names; those of one name keep their order."""
    names = [" ".join(unicodedata.normalize("NFKC", name).split()) for name in rows[0]]
    order = sorted(range(len(names)), key=names.__getitem__)
    return [[names[k] for k in order], *([_cell(row[k]) for k in order] for row in rows[1:])]


def _cell(text: str) -> Cell:
    text = " ".join(unicodedata.normalize("NFKC", text).replace("\u2212", "-").split())
    plain = _THOUSANDS.sub("", text)
    found = float(plain) if _NUMBER.fullmatch(plain) else math.inf
    return text if math.isinf(found) else found


def _equal(one: Cell, other: Cell, tolerance: float) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)


def _unmatched(given: list[list[Cell]], wanted: list[list[Cell]], tolerance: float) -> list[Cell] | None:
    """A wanted row that is left over where each given row is taken once; None where there is none.

    Rows that are the same are paired first. The others are few or far off: of each group with the same texts they
    are paired as a bipartite matching (augmenting paths, Kuhn 1955).
    """
    rest = Counter(map(tuple, given))
    left = []
    for row in wanted:
        if rest[tuple(row)]:
            rest[tuple(row)] -= 1
        else:
            left.append(row)
    groups: dict[tuple[str | None, ...], list[tuple[Cell, ...]]] = defaultdict(list)
    for one, times in rest.items():
        groups[_texts(one)] += [one] * times
    taken: dict[tuple[str | None, ...], dict[int, list[Cell]]] = defaultdict(dict)
    steps = count()
    for row in left:
        key = _texts(row)
        if not _augment(row, groups[key], taken[key], tolerance, steps):
            return row
    return None


def _texts(row: Sequence[Cell]) -> tuple[str | None, ...]:
    return tuple(cell if isinstance(cell, str) else None for cell in row)


def _augment(
    row: list[Cell], rows: list[tuple[Cell, ...]], taken: dict[int, list[Cell]], tolerance: float, steps: count[int]
) -> bool:
    """Gives `row` one of `rows`, and another one to the row whose place it takes, and so on. Breadth first."""
    came: dict[int, int | None] = {}
    queue: deque[tuple[list[Cell], int | None]] = deque([(row, None)])
    while queue:
        one, before = queue.popleft()
        for place, other in enumerate(rows):
            if next(steps) > COMPARED:
                raise Malformed(f"more than {COMPARED:,} comparisons of rows: too many differ")
            if place in came or not all(map(_equal, one, other, repeat(tolerance))):
                continue
            came[place] = before
            if place in taken:
                queue.append((taken[place], place))
                continue
            at: int | None = place
            while at is not None:
                previous = came[at]
                taken[at] = row if previous is None else taken[previous]
                at = previous
            return True
    return False

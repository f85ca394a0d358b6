"""The catalog: every dataset below a root as DuckDB views, made from the manifests each time.

A DuckDB file that a run wrote would block its readers, and an open reader would block the run. So the views live in
memory; `catalog.duckdb` is an export of them, replaced by rename.
"""

from __future__ import annotations

import contextlib
import csv
import os
import sys
from collections.abc import Iterator

import duckdb

from factory.engine import files, manifest
from factory.engine.errors import FactoryError, nearest
from factory.engine.manifest import Manifest


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def reading(urls: list[str], options: str = "") -> str:
    """The select over some Parquet files."""
    listed = ", ".join("'" + _place(url).replace("'", "''") + "'" for url in urls)
    return f"select * from read_parquet([{listed}]{options})"


def _place(url: str) -> str:
    """A location as DuckDB reads it: a full path here, a URL elsewhere."""
    fs, path = files.locate(url)
    return path if files.is_local(url) else str(fs.unstrip_protocol(path))


def _views(dataset: Manifest) -> dict[str, str]:
    return {
        "": reading(dataset.urls("rows")),
        "_dropped": reading(dataset.urls("dropped")),
        "_failed": reading(dataset.urls("failed")),
    }


def create_views(connection: duckdb.DuckDBPyConnection, root: str) -> list[str]:
    """Make the views of every dataset: `name`, `name_dropped`, `name_failed` for the newest version, the same with
    `name@version`, and `receipts`. Returns their names. Says which view has lost its files."""
    if not files.is_local(root):
        connection.register_filesystem(files.locate(root)[0])
    statements: dict[str, str] = {}
    receipts = []
    newest = manifest.newest(root)
    for dataset in manifest.all_manifests(root):
        receipts.append(files.join(dataset.folder, "receipts", "receipts.parquet"))
        for suffix, select in _views(dataset).items():
            statements[dataset.dataset + suffix] = select
            if newest[dataset.name].version == dataset.version:
                statements[dataset.name + suffix] = select
    if receipts:
        # Those of an earlier version of the factory may tell less.
        statements["receipts"] = reading(receipts, ", union_by_name = true")
    for name, select in statements.items():
        try:
            connection.execute(f"create or replace view {quoted(name)} as {select}")
        except duckdb.IOException as error:
            print(f"{name}: no view, its files cannot be read: {_line(error)}", file=sys.stderr)
    return list(statements)


def _line(error: Exception) -> str:
    return " ".join(str(error).split("\n\n")[0].split())


def query(root: str, text: str) -> duckdb.DuckDBPyRelation:
    """The result of an SQL query over the datasets below a root; FactoryError in DuckDB's own words where it fails."""
    connection = duckdb.connect(":memory:")
    names = create_views(connection, root)
    if not names:
        raise FactoryError(f"{root}: no finished dataset there: build one with factory run, or give --out")
    with _plain_errors(names):
        statements = connection.extract_statements(text)
        reads = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
        if len(statements) != 1 or statements[0].type not in reads:
            raise FactoryError("factory sql reads only: give one select (or describe, summarize, explain) statement")
        result = connection.sql(text)
    if result is None:
        raise FactoryError("this statement gives no rows: factory sql takes a select")
    return result


def show(root: str, text: str, rows: int, width: int) -> None:
    """Print the first rows of a query's result as a table."""
    result = query(root, text)
    with _plain_errors([]):
        result.show(max_rows=rows, max_width=width)


def show_csv(root: str, text: str) -> None:
    """Print all of a query's result as CSV."""
    result = query(root, text)
    writer = csv.writer(sys.stdout)
    with _plain_errors([]):
        writer.writerow(result.columns)
        for batch in result.to_arrow_reader(10_000):
            writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))


@contextlib.contextmanager
def _plain_errors(names: list[str]) -> Iterator[None]:
    """DuckDB's errors as one line, with the nearest of the views' names."""
    try:
        yield
    except duckdb.CatalogException as error:
        missing = str(error).partition("name ")[2].partition(" ")[0]
        told = _line(error).partition(" Did you mean")[0]
        raise FactoryError(f"{told}{nearest(missing, names)}") from error
    except duckdb.Error as error:
        raise FactoryError(_line(error)) from error


def export(root: str) -> None:
    """Write catalog.duckdb: the same views in a file, for other tools; replaced whole."""
    if not files.is_local(root):
        return
    folder = files.locate(root)[1]
    target = os.path.join(folder, "catalog.duckdb")
    with files.locked(os.path.join(folder, ".stages", "catalog.lock")):
        for name in os.listdir(folder):  # what a killed export left, with its write-ahead log
            if name.startswith(".catalog.duckdb."):
                os.remove(os.path.join(folder, name))
        with files.aside(target) as scratch, duckdb.connect(scratch) as connection:
            create_views(connection, root)

"""The catalog: every dataset below a root as DuckDB views, made from the manifests each time.

A DuckDB file that a run wrote would block its readers, and an open reader would block the run. So the views live in
memory; `catalog.duckdb` is an export of them, replaced by rename.
"""

from __future__ import annotations

import os

import duckdb

from factory.engine import files, manifest
from factory.engine.errors import FactoryError, nearest
from factory.engine.manifest import Manifest


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def reading(urls: list[str]) -> str:
    listed = ", ".join("'" + files.locate(url)[1].replace("'", "''") + "'" for url in urls)
    return f"select * from read_parquet([{listed}])"


def _views(dataset: Manifest) -> dict[str, str]:
    return {
        "": reading(dataset.urls("rows")),
        "_dropped": reading(dataset.urls("dropped")),
        "_failed": reading(dataset.urls("failed")),
    }


def create_views(connection: duckdb.DuckDBPyConnection, root: str) -> list[str]:
    """Make the views of every dataset: `name`, `name_dropped`, `name_failed` for the newest version, the same with
    `name@version`, and `receipts`. Returns their names."""
    statements: dict[str, str] = {}
    receipts = []
    newest = manifest.newest(root)
    for dataset in manifest.all_manifests(root):
        receipts.append(files.join(dataset.folder, "receipts", "receipts.parquet"))
        for suffix, query in _views(dataset).items():
            statements[dataset.dataset + suffix] = query
            if newest[dataset.name].version == dataset.version:
                statements[dataset.name + suffix] = query
    if receipts:
        statements["receipts"] = reading(receipts)
    for name, query in statements.items():
        connection.execute(f"create or replace view {quoted(name)} as {query}")
    return list(statements)


def query(root: str, text: str) -> duckdb.DuckDBPyRelation:
    """The result of an SQL query over the datasets below a root; FactoryError in DuckDB's own words where it fails."""
    connection = duckdb.connect(":memory:")
    names = create_views(connection, root)
    if not names:
        raise FactoryError(f"{root}: no finished dataset there: build one with factory run, or give --out")
    statements = connection.extract_statements(text)
    if len(statements) != 1 or statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        raise FactoryError("factory sql reads only: give one select (or describe, summarize, explain) statement")
    try:
        result = connection.sql(text)
    except duckdb.CatalogException as error:
        missing = str(error).partition("name ")[2].partition(" ")[0]
        raise FactoryError(f"{str(error).splitlines()[0]}{nearest(missing, names)}") from error
    except duckdb.Error as error:
        raise FactoryError(str(error).splitlines()[0]) from error
    if result is None:
        raise FactoryError("this statement gives no rows: factory sql takes a select")
    return result


def export(root: str) -> None:
    """Write catalog.duckdb: the same views in a file, for other tools; replaced whole."""
    if not files.is_local(root):
        return
    target = os.path.join(files.locate(root)[1], "catalog.duckdb")
    with files.aside(target) as scratch, duckdb.connect(scratch) as connection:
        create_views(connection, root)

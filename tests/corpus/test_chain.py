"""The whole chain on real text: same bytes for any workers and any form of the input, every row accounted for."""

from __future__ import annotations

import datasets
import duckdb
import polars
import pytest

from factory.engine import recipe, run
from factory.engine.manifest import Manifest
from tests.engine.build import check_law, content

STEPS = [
    {"use": "language.Keep"},
    {"use": "quality.GopherRepetition"},
    {"use": "quality.Gopher"},
    {"use": "quality.C4"},
    {"use": "quality.FineWeb"},
    {"use": "dedup.Exact"},
    {"use": "dedup.MinHash"},
]


def built(source: dict[str, object], root: object, workers: int = 0, **more: object) -> Manifest:
    table = {"name": "chain", "version": "1", "shard_bytes": 2_000_000, "step": [source, *STEPS], **more}
    options = run.Options(root=str(root), workers=workers, quiet=True)
    return run.run(recipe.build(table, "chain.toml"), options)


@pytest.fixture(scope="module")
def parquet(data, tmp_path_factory) -> Manifest:
    source = {"use": "ingest.Parquet", "glob": str(data / "webtext" / "00000.parquet")}
    return built(source, tmp_path_factory.mktemp("parquet"))


def test_every_row_is_accounted_for(parquet):
    check_law(parquet)
    assert parquet.counts["rows_in"] == 4783
    assert all(step["dropped"] > 0 for step in parquet.funnel[1:] if step["use"] != "dedup.Exact")


def test_workers_change_no_byte(parquet, data, tmp_path):
    source = {"use": "ingest.Parquet", "glob": str(data / "webtext" / "00000.parquet")}
    assert content(built(source, tmp_path, workers=2), "rows", "dropped") == content(parquet, "rows", "dropped")


def test_compressed_json_lines_give_the_same_documents(parquet, data, tmp_path):
    """A file that can only be streamed is cut into shards first; what is decided of each document stays the same."""
    lines = built({"use": "ingest.JsonLines", "glob": str(data / "webtext" / "00000.jsonl.zst")}, tmp_path)
    check_law(lines)
    query = "select text from '{}/rows/*.parquet' order by 1"
    assert duckdb.sql(query.format(lines.folder)).fetchall() == duckdb.sql(query.format(parquet.folder)).fetchall()


def test_a_dropped_duplicate_names_a_row_that_stayed_for_it(parquet):
    """Of the last step the row that is still there; of the step before it, one that the last may have dropped."""
    sql = duckdb.connect()
    sql.execute(f"create view kept as from '{parquet.folder}/rows/*.parquet'")
    sql.execute(f"create view dropped as from '{parquet.folder}/dropped/*.parquet'")
    orphans = "select count(*) from dropped d anti join kept k on d.kept_id = k.id where d.step = 'dedup.MinHash'"
    assert sql.execute(orphans).fetchall() == [(0,)]
    reached = "select id from kept union all select id from dropped where step = 'dedup.MinHash'"
    orphans = f"select count(*) from dropped d anti join ({reached}) k on d.kept_id = k.id where d.kept_id is not null"
    assert sql.execute(orphans).fetchall() == [(0,)]
    named = sql.execute("select count(kept_id), min(similarity) from dropped where step = 'dedup.MinHash'").fetchall()
    assert named[0][0] > 50 and named[0][1] >= 0.52


def test_plain_readers_open_the_shards(parquet, tmp_path):
    glob = f"{parquet.folder}/rows/*.parquet"
    rows = parquet.counts["rows_kept"]
    assert duckdb.sql(f"select count(*) from '{glob}'").fetchall() == [(rows,)]
    assert polars.read_parquet(glob).height == rows
    loaded = datasets.load_dataset("parquet", data_files=glob, split="train", cache_dir=str(tmp_path))
    assert len(loaded) == rows and set(loaded.column_names) >= {"id", "text", "language", "language_score"}


def test_annotated_every_row_has_all_scores_and_reasons(parquet, data, tmp_path):
    source = {"use": "ingest.Parquet", "glob": str(data / "webtext" / "00000.parquet")}
    table = {"name": "chain", "version": "1", "shard_bytes": 2_000_000, "step": [source, *STEPS]}
    noted = run.run(recipe.build(table), run.Options(root=str(tmp_path), annotate=True, quiet=True))
    check_law(noted)
    rows = duckdb.sql(f"select * from '{noted.folder}/rows/*.parquet'").pl()
    assert len(rows) == parquet.counts["rows_in"]
    reasons = {"keep", "gopher_repetition", "gopher", "c4", "fine_web", "exact", "min_hash"}
    assert {f"{name}_reason" for name in reasons} <= set(rows.columns)
    assert rows["c4_sentences"].min() == 0 and rows["gopher_repetition_top_2_gram"].max() <= 1
    # What the language step alone decides is what it decided in the real run.
    dropped = duckdb.sql(f"select id from '{parquet.folder}/dropped/*.parquet' where step = 'language.Keep'").pl()
    assert set(dropped["id"]) == set(rows.filter(rows["keep_reason"].is_not_null())["id"])

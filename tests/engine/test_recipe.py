"""Recipes: what is wrong in one is found before any work, and named."""

from __future__ import annotations

import pyarrow as pa
import pytest

from factory.engine import manifest, recipe, run
from factory.engine.errors import FactoryError
from tests.engine.build import HERE, build, check_law, content, make

GOOD = {"use": "Numbers", "rows": 20, "shards": 2}


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (
            {"use": "Numbers", "rws": 3},
            r"step 1 \(tests.engine.steps:Numbers\): unknown option 'rws' \(did you mean 'rows'\?\)",
        ),
        ({"use": "Numbers", "rows": "3"}, r"option rows = '3': should be a valid integer"),
        ({"use": "Numbers", "rows": 3.5}, r"option rows = 3.5: should be a valid integer"),
        ({"use": "Numbers", "rows": -1}, r"option rows = -1: should be greater than or equal to 0"),
        ({"use": "Numbers", "bad": "yes"}, r"option bad = 'yes': should be a valid boolean"),
        ({"use": "Trouble", "raises": [1]}, r"option raises = \[1\]: should be a valid string"),
        ({"use": "dedup.MinHsh"}, r"unknown step 'dedup.MinHsh' \(did you mean 'dedup.MinHash'\?\)"),
        ({"use": "no.such.package:Step"}, r"unknown step 'no.such.package:Step'"),
        ({"use": "tests.engine.steps:BAG"}, r"unknown step 'tests.engine.steps:BAG'"),
    ],
)
def test_a_wrong_step_is_named(step, said):
    with pytest.raises(FactoryError, match=said):
        make(step)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"verson": "1"}, r"unknown key 'verson' \(did you mean 'version'\?\)"),
        ({"name": "Web EN"}, r"name = 'Web EN'"),
        ({"version": 3}, r"version = 3"),
        ({"shard_bytes": "64MB"}, r"shard_bytes = '64MB': a whole number of bytes"),
        ({"step": ["x"]}, r"a recipe has a list of \[\[step\]\] tables"),
        ({"params": 3}, r"params is a table"),
        ({"step": [{"use": HERE + "Numbers", "keep_rows": "no"}]}, r"keep_rows = 'no': true or false"),
        ({"step": []}, r"a recipe has a list of \[\[step\]\] tables"),
        ({"dropped": "none"}, r"dropped = 'none': one of full, ids, sample"),
        ({"step": [{"rows": 3}]}, r"step 1: needs `use`"),
        ({"step": [{"use": "$source"}]}, r"'\$source': no such parameter"),
    ],
)
def test_a_wrong_recipe_is_named(table, said):
    with pytest.raises(FactoryError, match=said):
        recipe.build({"name": "a", "version": "1", "step": [{"use": HERE + "Numbers"}], **table}, "a.toml")


def test_columns_and_order_are_checked_before_any_work(tmp_path):
    with pytest.raises(FactoryError, match=r"step 2 .*: needs the column 'txt' and nothing before it adds one.*'text'"):
        build(make(GOOD, {"use": "Wants", "column": "txt"}), tmp_path)
    with pytest.raises(FactoryError, match=r"step 2 .*: a source can only come first"):
        build(make(GOOD, GOOD), tmp_path)
    with pytest.raises(FactoryError, match=r"step 1 .*: a recipe begins with a source"):
        build(make({"use": "DropOdd"}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_parameters_are_whole_values_and_part_of_the_identity(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text(
        f'name = "p"\nversion = "1"\n[params]\ncount = 10\n[[step]]\nuse = "{HERE}Numbers"\nrows = "$count"\n'
    )
    root = tmp_path / "runs"
    one = run.run(recipe.load(str(path)), run.Options(root=str(root), quiet=True))
    assert one.counts["rows_kept"] == 10
    with pytest.raises(FactoryError, match=r"p@1 is already built from another recipe: step 1 .*: rows: 10 → 12"):
        run.run(recipe.load(str(path), {"count": "12"}), run.Options(root=str(root), quiet=True))
    with pytest.raises(FactoryError, match=r"--set cout: no such parameter \(did you mean 'count'\?\)"):
        recipe.load(str(path), {"cout": "12"})
    with pytest.raises(FactoryError, match=r"--set count=many: expected int, like 10"):
        recipe.load(str(path), {"count": "many"})


def test_an_edited_recipe_under_a_built_version_names_the_fields(tmp_path):
    build(make(GOOD, {"use": "DropOdd"}), tmp_path)
    with pytest.raises(FactoryError, match=r"numbers@1 is already built .*rows: 20 → 30.*step 3 .*was added"):
        build(make({**GOOD, "rows": 30}, {"use": "DropOdd"}, {"use": "Once"}), tmp_path)
    before = content(manifest.load(str(tmp_path), "numbers@1"))
    again = build(make(GOOD, {"use": "DropOdd"}), tmp_path)
    assert content(again) == before


def test_dev_rebuilds_what_changed_and_reuses_the_rest(tmp_path):
    first = build(make(GOOD, {"use": "DropOdd", "keep_rows": True}, {"use": "Shout"}, version="dev"), tmp_path)
    stage = next(tmp_path.glob(f".stages/{first.stages[0]['key']}/rows/*/*.parquet"))
    inode = stage.stat().st_ino
    second = build(make(GOOD, {"use": "DropOdd", "keep_rows": True}, {"use": "Once"}, version="dev"), tmp_path)
    assert stage.stat().st_ino == inode
    assert first.stages[0]["key"] == second.stages[0]["key"] and first.key != second.key
    assert not (tmp_path / ".stages" / first.stages[1]["key"]).exists()
    check_law(second)


def test_a_finished_version_leaves_only_the_stages_that_it_keeps(tmp_path):
    built = build(make(GOOD, {"use": "DropOdd", "keep_rows": True}, {"use": "Once"}), tmp_path)
    left = {p.name for p in (tmp_path / ".stages").iterdir() if p.is_dir()}
    assert left == {built.stages[0]["key"]}


def test_annotate_keeps_every_row_and_says_why_it_would_go(tmp_path):
    steps = [{**GOOD, "rows": 200, "distinct": 100}, {"use": "DropOdd"}, {"use": "Once"}]
    plain, noted = build(make(*steps), tmp_path), build(make(*steps), tmp_path, annotate=True)
    assert noted.dataset == "numbers_annotated@1" and noted.counts["rows_kept"] == 200
    import duckdb

    rows = duckdb.sql(f"select * from '{noted.folder}/rows/*.parquet'").df()
    assert set(rows["drop_odd_reason"].dropna()) == {"odd"}
    assert (rows["drop_odd_length"] == rows["text"].str.len()).all()
    assert rows["once_reason"].notna().sum() == 100 and rows["once_kept_id"].notna().sum() == 100
    dropped = duckdb.sql(f"select id from '{plain.folder}/dropped/*.parquet' where reason = 'odd'").df()
    assert set(dropped["id"]) == set(rows["id"][rows["drop_odd_reason"].notna()])
    check_law(noted)


@pytest.mark.parametrize(("policy", "texts"), [("full", 10), ("ids", 0)])
def test_dropped_rows_are_kept_as_the_policy_says(tmp_path, policy, texts):
    import duckdb

    built = build(make({**GOOD, "rows": 20, "distinct": 10}, {"use": "Once"}), tmp_path, dropped=policy)
    found = duckdb.sql(
        f"select count(*), count(text), count(kept_id) from '{built.folder}/dropped/*.parquet'"
    ).fetchall()
    assert found == [(10, texts, 10)]


def test_two_recipes_share_a_kept_stage(tmp_path):
    many = {**GOOD, "rows": 200, "distinct": 100}
    first = build(make(many, {"use": "DropOdd", "keep_rows": True}, {"use": "Shout"}, version="1"), tmp_path)
    begun = {p: p.stat().st_mtime_ns for p in tmp_path.glob(".stages/*/rows/*/*")}
    second = build(make(many, {"use": "DropOdd", "keep_rows": True}, {"use": "Once"}, version="2"), tmp_path)
    assert first.stages[0]["key"] == second.stages[0]["key"]
    check_law(first)
    check_law(second)  # whose dropped rows, of a kept stage and of a new one, have the same columns
    assert begun and all(p.stat().st_mtime_ns == t for p, t in begun.items())


def test_a_stage_begun_with_another_pyarrow_is_refused(tmp_path):
    first = build(make(GOOD, {"use": "DropOdd", "keep_rows": True}, {"use": "Shout"}), tmp_path)
    begun = tmp_path / ".stages" / first.stages[0]["key"] / "stage.json"
    begun.write_text(begun.read_text().replace(f'"pyarrow": "{pa.__version__}"', '"pyarrow": "1.2.3"'))
    with pytest.raises(FactoryError, match=r"begun with pyarrow 1\.2\.3"):
        build(make(GOOD, {"use": "DropOdd", "keep_rows": True}, {"use": "Once"}, version="2"), tmp_path)

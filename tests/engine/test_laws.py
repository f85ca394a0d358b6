"""The laws of the engine: rows are all accounted for; the bytes depend on neither workers, batches nor kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.engine import catalog, files, manifest
from factory.engine.errors import FactoryError
from factory.report import funnel
from tests.conftest import REPOSITORY
from tests.engine.build import build, check_law, content, make

OPTIONAL = st.lists(
    st.sampled_from(["Shout", "DropOdd", "Once", "Judged", "Pairs", "Counted", "Sampled"]), min_size=0, max_size=5
)


@given(rows=st.integers(0, 300), shards=st.integers(1, 7), bad=st.booleans(), steps=OPTIONAL, data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_accounted_for(tmp_path_factory, rows, shards, bad, steps, data):
    source = {"use": "Numbers", "rows": rows, "shards": shards, "bad": bad, "distinct": 100}
    fails = {"Sampled": {"n": 2, "fails": ["5-1", "7-0"]}}
    entries = [{"use": step, "keep_rows": data.draw(st.booleans()), **fails.get(step, {})} for step in steps]
    root = tmp_path_factory.mktemp("law")
    built = build(make(source, *entries), root)
    check_law(built)
    assert built.counts["rows_in"] == rows
    assert built.counts["rows_failed"] >= (len([n for n in range(rows) if n % 10 == 3]) if bad else 0)


def test_ids_recount_what_a_regroup_consumed(tmp_path):
    built = build(make({"use": "Numbers", "rows": 101, "shards": 3}, {"use": "Pairs"}), tmp_path)
    ids = duckdb.sql(f"select id from '{built.folder}/rows/*.parquet'").fetchall()
    assert sorted(part for (i,) in ids for part in i.split("+")) == sorted(f"n{n}" for n in range(101))
    assert built.counts["rows_consumed"] == 101 and built.counts["rows_made"] == len(ids)


def test_what_a_regroup_tallies_is_summed_and_shown(tmp_path):
    steps = {"use": "Numbers", "rows": 101, "shards": 3}, {"use": "Counted"}, {"use": "DropOdd"}
    built = [build(make(*steps), tmp_path / str(workers), workers) for workers in (0, 2)]
    tally = {"joined": 51, "ends in 0": 11, "ends in 1": 10, "ends in 2": 10}
    assert [one.funnel[1]["tally"] for one in built] == [tally, tally]
    assert [step["tally"] for step in built[0].funnel] == [{}, tally, {}]
    assert content(built[0], "rows", "dropped", "failed") == content(built[1], "rows", "dropped", "failed")
    check_law(built[0])
    steps_told = "(select unnest(steps) s from receipts)"
    query = f"select t.name, sum(t.count) from (select unnest(s.tally) t from {steps_told}) group by 1"
    assert dict(catalog.query(str(tmp_path / "0"), query).fetchall()) == tally
    lines = funnel.text(built[0]).splitlines()
    at = next(n for n, line in enumerate(lines) if "Counted" in line)
    assert [line.split(maxsplit=1) for line in lines[at + 1 : at + 5]] == [
        ["51", "joined"],
        ["11", "ends in 0"],
        ["10", "ends in 1"],
        ["10", "ends in 2"],
    ]


def test_a_row_that_a_regroup_cannot_make_is_made_and_failed(tmp_path):
    steps = {"use": "Numbers", "rows": 40, "shards": 2}, {"use": "Sampled", "fails": ["7-2", "8-0"]}, {"use": "Once"}
    built = build(make(*steps), tmp_path)
    check_law(built)
    failed = duckdb.sql(f"select id, step, error, data from '{built.folder}/failed/*.parquet'").fetchall()
    assert sorted(row[0] for row in failed) == sorted(f"n{t}{s}" for t in ["", 1, 2, 3] for s in ("7-2", "8-0"))
    assert {row[1:3] for row in failed} == {("tests.engine.steps:Sampled", "cannot be made")}
    assert all(row[3] for row in failed)
    counts = built.counts
    assert (counts["rows_consumed"], counts["rows_made"], counts["rows_failed"]) == (40, 120, 8)
    assert counts["rows_kept"] == 40  # of three equal texts the first that was made stays


def test_a_regroup_that_makes_nothing_is_broken(tmp_path):
    steps = [{"use": "Numbers", "rows": 60, "shards": 1}, {"use": "Sampled", "fails": ["0", "1", "2"]}]
    with pytest.raises(RuntimeError, match="Sampled: all of its first 100 rows failed, the last with cannot be made"):
        build(make(*steps), tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_regroup_that_lost_its_service_ends_the_run_and_goes_on_later(tmp_path, workers):
    flag = tmp_path / "gone"
    flag.touch()
    service = {"use": "Sampled", "fails": ["7-2"], "stops": "n33", "flag": str(flag)}
    steps = {"use": "Numbers", "rows": 40, "shards": 4}, service, {"use": "DropOdd"}
    with pytest.raises(FactoryError, match="the service is gone: start it again"):
        build(make(*steps), tmp_path / "rough", workers)
    flag.unlink()
    rough = build(make(*steps), tmp_path / "rough", workers)
    calm = build(make(*steps), tmp_path / "calm")
    assert content(rough, "rows", "dropped", "failed") == content(calm, "rows", "dropped", "failed")
    check_law(rough)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_gather_drops_for_several_reasons(tmp_path, workers):
    """A row that goes for its own sake names no other."""
    steps = {"use": "Numbers", "rows": 200, "shards": 4, "distinct": 150}, {"use": "Judged"}
    built = build(make(*steps), tmp_path, workers)
    check_law(built)
    assert built.funnel[1]["reasons"] == {"same": 45, "refused": 20}
    told = duckdb.sql(f"select id, reason, kept_id, pair_id, similarity from '{built.folder}/dropped/*.parquet'")
    for id_, reason, kept, pair, similarity in told.fetchall():
        number = int(id_[1:])
        refused = number % 10 == 7
        assert reason == ("refused" if refused else "same")
        assert (kept, pair, similarity) == ((None,) * 3 if refused else (*[f"n{number - 150}"] * 2, 1.0))


STEPS = (
    {"use": "Numbers", "rows": 1200, "shards": 12, "distinct": 700, "bad": True},
    {"use": "Shout"},
    {"use": "DropOdd"},
    {"use": "Once"},
)


def test_bytes_do_not_depend_on_workers(tmp_path):
    built = [build(make(*STEPS), tmp_path / str(workers), workers) for workers in (0, 1, 3)]
    assert built[0].key == built[1].key == built[2].key
    first = content(built[0], "rows", "dropped", "failed")
    assert len(first) >= 24
    assert content(built[1], "rows", "dropped", "failed") == first
    assert content(built[2], "rows", "dropped", "failed") == first


@pytest.mark.parametrize("batch", [7, 64, 1000])
def test_bytes_do_not_depend_on_batches(tmp_path, batch):
    steps = [{**STEPS[0], "bad": False, "batch": batch}, *STEPS[1:]]
    mine = build(make(*steps), tmp_path / "a")
    theirs = build(make({**steps[0], "batch": 33}, *STEPS[1:]), tmp_path / "b")
    assert content(mine) == content(theirs)


def test_a_streamed_file_is_cut_into_shards_and_gives_the_same_rows(tmp_path):
    whole = build(make({**STEPS[0], "bad": False}, *STEPS[1:], name="whole"), tmp_path)
    streamed = {**STEPS[0], "bad": False, "streamed": True}
    cut = build(make(streamed, *STEPS[1:], name="cut", shard_bytes=20_000), tmp_path, workers=2)
    assert len(cut.rows) > 5
    query = "select id, text, length from '{}/rows/*.parquet' order by id"
    assert duckdb.sql(query.format(whole.folder)).fetchall() == duckdb.sql(query.format(cut.folder)).fetchall()
    check_law(cut)


RECIPE = """
name = "killed"
version = "dev"
[[step]]
use = "tests.engine.steps:Numbers"
rows = 3000
shards = 60
distinct = 2000
bad = true
[[step]]
use = "tests.engine.steps:DropOdd"
delay = 0.02
[[step]]
use = "tests.engine.steps:Once"
delay = 0.05
"""
WATCHED = ("receipts", "emitted/done", "exchanges/repeats", "exchanges/ids-asked", "exchanges/ids")


def test_killed_twenty_times_it_ends_in_the_same_bytes(tmp_path):
    """SIGKILL of the whole process tree at 20 moments: ten at random, two inside each of the passes.

    A run that comes to its end is checked, and the next kills fall into a fresh one.
    """
    recipe = tmp_path / "killed.toml"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "factory", "run", str(recipe), "--workers", "2", "--out"]
    subprocess.run([*command, str(tmp_path / "calm")], check=True, cwd=REPOSITORY, capture_output=True)
    calm = manifest.load(str(tmp_path / "calm"), "killed@dev")
    chance = random.Random(0)
    moments: list[str | float] = [chance.uniform(0.3, 1.8) for _ in range(10)] + [w for w in WATCHED for _ in (1, 2)]
    kills, roots, finished = 0, 0, {}
    while moments:
        root = tmp_path / f"rough{roots}"
        process = subprocess.Popen(
            [*command, str(root)],
            cwd=REPOSITORY,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        moment = moments[0]
        begun = time.monotonic()
        before = len(_of(root, moment)) if isinstance(moment, str) else 0
        while process.poll() is None:
            reached = len(_of(root, moment)) > before if isinstance(moment, str) else time.monotonic() - begun > moment
            if reached:
                committed = {path: path.stat().st_ino for path in _committed(root)}
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        if process.wait() == -signal.SIGKILL:
            kills += 1
            finished |= committed
            moments.pop(0)
        else:  # it came to its end first
            _same(root, calm, finished)
            roots, finished = roots + 1, {}
            assert roots < 12, f"no kill came to fall into {moment}"
    subprocess.run([*command, str(root)], check=True, cwd=REPOSITORY, capture_output=True)
    _same(root, calm, finished)
    assert kills == 20


def _same(root: Path, calm: manifest.Manifest, finished: dict[Path, int]) -> None:
    rough = manifest.load(str(root), "killed@dev")
    assert len(rough.rows) == 60
    assert content(rough, "rows", "dropped", "failed") == content(calm, "rows", "dropped", "failed")
    assert all(path.stat().st_ino == inode for path, inode in finished.items()), "a finished shard was written again"
    assert not list(root.rglob("*" + files.TEMPORARY))
    check_law(rough)


def _committed(root: Path) -> list[Path]:
    """The shards of all stages that have their receipt."""
    found = []
    for receipt in _of(root, "receipts"):
        stage = receipt.parents[2]
        found.append(stage / "rows" / receipt.parent.name / f"{receipt.stem}-0000.parquet")
    return found


def _of(root: Path, what: str) -> list[Path]:
    pattern = f".stages/*/{what}/*/*" if what == "receipts" else f".stages/*/gather-*/{what}/*/*"
    return [p for p in root.glob(pattern) if not p.name.endswith(files.TEMPORARY)]


def test_workers_die_with_their_supervisor(tmp_path):
    recipe = tmp_path / "killed.toml"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "factory", "run", str(recipe), "--workers", "2", "--out", str(tmp_path / "r")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    children: list[int] = []
    while process.poll() is None and len(children) < 2:
        children = _children(process.pid)
        time.sleep(0.01)
    assert len(children) == 2
    process.kill()  # the supervisor alone, not its workers
    process.wait()
    until = time.monotonic() + 5
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children) and time.monotonic() < until:
        time.sleep(0.02)
    left = [c for c in children if "factory.engine.worker" in _command(c)]
    assert not left


def test_workers_leave_nothing_behind(tmp_path):
    (tmp_path / "made").mkdir()
    build(
        make({"use": "Numbers", "rows": 9, "shards": 4}, {"use": "Tidy", "folder": str(tmp_path / "made")}), tmp_path, 2
    )
    left = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert left and all(name.endswith(".was") for name in left)


def _children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""

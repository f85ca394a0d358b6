"""The command line as a user meets it: what it prints, and one line for each mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

HERE = "tests.engine.steps:"


def factory(*arguments: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "factory", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def recipe(folder: Path, *steps: str, name: str = "try") -> str:
    path = folder / f"{name}.toml"
    blocks = "\n".join(f"[[step]]\n{step}" for step in steps)
    path.write_text(f'name = "{name}"\nversion = "1"\n{blocks}\n')
    return str(path)


def mistake(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that a mistake gives."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1 and lines[0].startswith("factory: "), result.stderr
    return lines[0]


NUMBERS = f'use = "{HERE}Numbers"\nrows = 20\nshards = 2'


def test_run_show_sql_inspect_plan(tmp_path):
    path = recipe(tmp_path, NUMBERS, f'use = "{HERE}DropOdd"')
    out = str(tmp_path / "runs")
    plan = factory("plan", path, "--out", out)
    assert "never run below" in plan.stdout and not Path(out).exists()
    run = factory("run", path, "--out", out, "--workers", "2")
    assert run.returncode == 0 and "odd" in run.stdout
    assert factory("show", "try", "--out", out).stdout == run.stdout
    assert "try@1" in factory("show", "--out", out).stdout
    assert "kept: " in factory("inspect", "try", "--out", out).stdout
    assert "odd" in factory("sql", "select reason from try_dropped", FACTORY_RUNS=out).stdout
    again = factory("plan", path, "--out", out, "--tokens", "1B")
    assert "core-hours" in again.stdout and "never run" not in again.stdout
    assert "Gopher" in factory("steps").stdout


def test_a_recipe_is_built_under_another_name(tmp_path):
    path, out = recipe(tmp_path, NUMBERS), str(tmp_path / "runs")
    assert "other@1" in factory("plan", path, "--out", out, "--name", "other").stdout
    for name in ([], ["--name", "other"]):
        run = factory("run", path, "--out", out, "--workers", "0", *name)
        assert run.returncode == 0, run.stderr
    counted = factory(
        "sql", "select (select count(*) from try) + (select count(*) from other) n", "--csv", "--out", out
    )
    assert counted.stdout.split() == ["n", "40"]
    line = mistake(factory("run", path, "--out", out, "--name", "Other name"))
    assert "name = 'Other name': a string like 'web_en'" in line


def test_an_annotated_run_does_not_change_the_plan(tmp_path):
    path, out = recipe(tmp_path, NUMBERS, f'use = "{HERE}DropOdd"'), str(tmp_path / "runs")
    assert factory("run", path, "--out", out, "--workers", "0").returncode == 0
    before = [line.split()[4:5] for line in factory("plan", path, "--out", out).stdout.splitlines()]
    assert factory("run", path, "--out", out, "--workers", "0", "--annotate").returncode == 0
    after = factory("plan", path, "--out", out).stdout
    assert [line.split()[4:5] for line in after.splitlines()] == before
    assert "measured on" in after and "disk:" in after


def test_a_broken_manifest_is_said_and_hides_no_other_dataset(tmp_path):
    out = tmp_path / "runs"
    for name in ("one", "two"):
        assert factory("run", recipe(tmp_path, NUMBERS, name=name), "--out", str(out), "--workers", "0").returncode == 0
    (out / "one@1" / "manifest.json").write_text("{")
    shown = factory("sql", "select count(*) as n from two", "--csv", "--out", str(out))
    assert shown.stdout.split() == ["n", "20"] and "one@1/manifest.json: not a manifest" in shown.stderr
    line = mistake(factory("run", str(tmp_path / "one.toml"), "--out", str(out)))
    assert f"remove {out}/one@1 and build the dataset again" in line


def test_a_step_of_ones_own_lies_beside_the_recipe(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from factory.engine.step import Map\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Same(Map):\n"
        "    def __call__(self, batch, memo):\n"
        "        return batch\n"
    )
    (tmp_path / "wrong.py").write_text("def (")
    script = [str(Path(sys.executable).parent / "factory")]
    if not Path(script[0]).exists():
        script = [sys.executable, "-m", "factory"]
    source = f'use = "ingest.Folder"\nglob = "{tmp_path}/*.py"'
    path = recipe(tmp_path, source, 'use = "mine:Same"')
    result = subprocess.run([*script, "run", path, "--workers", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    path = recipe(tmp_path, source, 'use = "wrong:Step"', name="other")
    result = subprocess.run([*script, "run", path], cwd=tmp_path, capture_output=True, text=True)
    assert "other.toml: step 2 (wrong:Step): wrong cannot be imported: SyntaxError" in mistake(result)


@pytest.mark.parametrize(
    "words", [["--seconds", "0"], ["--seconds", "soon"], ["--workers", "-5"], ["--memory", "1MB"], ["--memory", "much"]]
)
def test_limits_that_make_no_sense_are_refused(tmp_path, words):
    result = factory("run", recipe(tmp_path, NUMBERS), "--out", str(tmp_path / "runs"), *words)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_factory_task_does_one_shard_of_a_stage(tmp_path):
    """What other executors call: the stage's key and a shard's number are all that it needs."""
    path = recipe(tmp_path, NUMBERS, f'use = "{HERE}DropOdd"')
    Path(path).write_text(Path(path).read_text().replace('version = "1"', 'version = "dev"'))
    out = tmp_path / "runs"
    assert factory("run", path, "--out", str(out)).returncode == 0
    stage = next(p for p in (out / ".stages").iterdir() if p.is_dir())
    files = sorted(stage.glob("rows/*/*.parquet"))
    before = [p.read_bytes() for p in files]
    files[1].unlink()
    (receipt,) = stage.glob("receipts/*/0000001.json")
    receipt.unlink()
    assert factory("task", stage.name, "1", "--out", str(out)).returncode == 0
    assert receipt.exists() and [p.read_bytes() for p in files] == before
    assert "no such stage" in mistake(factory("task", "nokey", "1", "--out", str(out)))


def test_progress_is_plain_lines_without_a_terminal(tmp_path):
    path = recipe(tmp_path, NUMBERS)
    run = factory("run", path, "--out", str(tmp_path / "runs"))
    assert "2/2 shards" in run.stderr and "rows/s" in run.stderr and "MB/s" in run.stderr and "\r" not in run.stderr


def test_bad_input_is_one_line_with_file_place_and_cure(tmp_path):
    out = tmp_path / "runs"

    def said(*steps: str) -> str:
        line = mistake(factory("run", recipe(tmp_path, *steps), "--out", str(out)))
        assert not out.exists() or not list(out.glob("try*")), "something half-written is left"
        return line

    lines = f'use = "ingest.JsonLines"\nglob = "{tmp_path}'
    assert "try.toml: step 1 (ingest.JsonLines): " in said(f'{lines}/nothing.jsonl"')
    assert "nothing.jsonl" in said(f'{lines}/nothing.jsonl"')
    assert "*.jsonl" in said(f'{lines}/*.jsonl"')
    (tmp_path / "a.parquet").write_text("not parquet")
    assert "a.parquet" in said(f'use = "ingest.Parquet"\nglob = "{tmp_path}/a.parquet"')
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert "needs the column 'html'" in said(f'{lines}/a.jsonl"', 'use = "extract.Html"')
    assert "did you mean 'keep'" in said(f'{lines}/a.jsonl"', 'use = "language.Keep"\nkep = ["en"]')
    missing = said(f'{lines}/a.jsonl"', 'use = "language.Keep"\nmodel = "/nowhere/lid.bin"')
    assert "try.toml: step 2 (language.Keep): /nowhere/lid.bin: no such file" in missing
    assert "unknown step 'factory.engine.step:Filter'" in said(
        f'{lines}/a.jsonl"', 'use = "factory.engine.step:Filter"'
    )
    assert "should be a valid number" in said(f'{lines}/a.jsonl"', 'use = "language.Keep"\nthreshold = "high"')
    assert "did you mean 'quality.Gopher'" in said(f'{lines}/a.jsonl"', 'use = "quality.Gophr"')
    assert "no such recipe file" in mistake(factory("run", str(tmp_path / "trye.toml")))
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n")
    assert "not a TOML file" in mistake(factory("run", str(broken)))
    assert "no such finished dataset" in mistake(factory("show", "nothing", "--out", str(out)))


def test_an_unwritable_output_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    path = recipe(tmp_path, NUMBERS)
    line = mistake(factory("run", path, "--out", str(tmp_path / "file" / "runs")))
    assert "cannot write to this folder" in line and "--out" in line


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here (it needs root)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, small_disk):
    path = recipe(tmp_path, f'use = "{HERE}Numbers"\nrows = 20000\nshards = 20')
    result = factory("run", path, "--out", str(small_disk), "--workers", "2")
    assert result.returncode == 2, result.stderr
    assert "the disk is full" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    assert not list(small_disk.glob("try*/manifest.json"))
    left = list(small_disk.rglob("*.parquet"))
    assert all(p.read_bytes()[-4:] == b"PAR1" for p in left), "a half-written shard is left"
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert factory("run", path, "--out", str(small_disk), "--workers", "2").returncode == 0


def test_import_is_quick_and_light():
    code = "import time; t = time.time(); import factory, sys; print(time.time() - t, *sys.modules)"
    seconds, *modules = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(seconds) < 0.5
    assert not {"torch", "ray", "transformers"} & set(modules)

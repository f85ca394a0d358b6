from __future__ import annotations

import ast
import importlib.metadata
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.corpus import ingest
from factory.corpus.ingest import files
from factory.engine.errors import FactoryError
from factory.engine.step import Context, Failure, Source

CONTEXT = Context()


def collect(step: Source, target: int = 1 << 28, context: Context = CONTEXT) -> tuple[pa.Table, list[Failure]]:
    schema, batches, failures = step.start(context), [], []
    for split in step.splits(context, target):
        for got in step.read(split):
            if isinstance(got, Failure):
                failures.append(got)
            else:
                assert isinstance(got, pa.RecordBatch) and got.schema == schema and got.num_rows
                assert got.nbytes < 12 << 20 or got.num_rows == 1
                got.validate(full=True)
                batches.append(got)
    return pa.Table.from_batches(batches, schema), failures


def test_one_document_a_file(tmp_path: Path) -> None:
    for name, content in {
        "b/two.md": b"\xef\xbb\xbftwo",
        "a.txt": b"one\0",
        "b/c/empty.txt": b"",
        "latin.txt": "caf\xe9".encode("latin-1"),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for target in (1, 5, 1 << 20):
        step = ingest.Folder(glob=f"{tmp_path}/**/*")
        table, failures = collect(step, target)
        assert table.to_pylist() == [
            {"id": "a.txt", "text": "one\0"},
            {"id": "b/c/empty.txt", "text": ""},
            {"id": "b/two.md", "text": "two"},
        ]
        assert [(f.id, f.place, f.data) for f in failures] == [("latin.txt", "latin.txt:3", b"caf\xe9")]
    assert len(step.splits(CONTEXT, 5)) > 1
    table, failures = collect(ingest.Folder(glob=f"{tmp_path}/**/*", kind="html"))
    assert table["html"].to_pylist()[-1] == b"caf\xe9" and not failures


def test_new_files_are_seen_by_the_next_plan(tmp_path: Path) -> None:
    step = ingest.Folder(glob=f"{tmp_path}/*.txt")
    with pytest.raises(FactoryError, match="no file matches"):
        step.splits(CONTEXT, 1)
    for number in range(1, 4):
        (tmp_path / f"{number}.txt").write_text("x" * number)
        assert len(collect(step)[0]) == number and len(step.identities(CONTEXT, [])) == number


def test_many_files_have_one_identity(tmp_path: Path) -> None:
    for number in range(1001):
        (tmp_path / f"{number}.txt").write_text("x")
    step = ingest.Folder(glob=f"{tmp_path}/*.txt")
    (before,) = step.identities(CONTEXT, [])
    (tmp_path / "7.txt").write_text("y")
    assert before["files"] == before["bytes"] == 1001 and step.identities(CONTEXT, []) != [before]


def test_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x\0é\n" * 10_000_000)
    (tmp_path / "b.txt").write_text("b")
    table, failures = collect(ingest.Folder(glob=f"{tmp_path}/*.txt"))
    assert not failures and [len(text) for text in table["text"].to_pylist()] == [40_000_000, 1]
    monkeypatch.setattr(files.read_whole, "__defaults__", (1000,))
    table, failures = collect(ingest.Folder(glob=f"{tmp_path}/*.txt"))
    assert table["id"].to_pylist() == ["b.txt"] and [f.id for f in failures] == ["a.txt"]


def test_a_glob_with_brackets_in_a_real_name(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("x")
    table, _ = collect(ingest.Folder(glob=str(tmp_path / "a[1].txt")))
    assert table["id"].to_pylist() == ["a[1].txt"]


def test_books(data: Path) -> None:
    table, failures = collect(ingest.Folder(glob=f"{data}/books/**/*.txt"), 1 << 20)
    names = sorted(str(path.relative_to(data / "books")) for path in data.glob("books/**/*.txt"))
    assert sorted([*table["id"].to_pylist(), *(f.id for f in failures)]) == names
    for row in table.to_pylist():
        assert row["text"].encode() == (data / "books" / row["id"]).read_bytes().removeprefix(b"\xef\xbb\xbf")
    for failure in failures:
        with pytest.raises(UnicodeDecodeError):
            (data / "books" / failure.id).read_bytes().decode()


def test_an_earlier_dataset(tmp_path: Path) -> None:
    rows = tmp_path / "web@1" / "rows"
    rows.mkdir(parents=True)
    listed = []
    for number in range(3):
        path = rows / f"part-{number:07}.parquet"
        pq.write_table(pa.table({"id": [f"{number}-{i}" for i in range(number)], "text": ["t"] * number}), path)
        listed.append({"path": f"rows/{path.name}", "rows": number, "bytes": path.stat().st_size})
    (tmp_path / "web@1" / "manifest.json").write_text(json.dumps({"key": "k", "rows": listed}))
    context = Context(root=str(tmp_path))
    step = ingest.Dataset(name="web@1")
    assert len(step.splits(context, 1)) == 3 and step.datasets() == ("web@1",)
    table, failures = collect(step, context=context)
    assert not failures and table["id"].to_pylist() == ["1-0", "2-0", "2-1"]
    assert table.schema.field("text").type == pa.large_string()
    (tmp_path / "unfinished@1").mkdir()
    for name, hint in (("webb@1", "did you mean 'web@1'"), ("unfinished@1", "no finished dataset 'unfinished@1'")):
        with pytest.raises(FactoryError, match=hint):
            ingest.Dataset(name=name).start(context)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages on the path, with traps."""
    package = tmp_path / "site" / "trapdoor"
    (package / "inner" / "tests").mkdir(parents=True)
    contents: dict[str, bytes] = {
        "__init__.py": b'"""The package.\n\n    Indented.\n    """\nraise SystemExit("imported!")\n',
        "inner/__init__.py": b"",
        "inner/code.py": (
            b'class A:\n    """Class."""\n    def f(self):\n        """%s\n        end"""\n'
            b'    @property\n    def f(self):\n        """%s"""\n\nasync def g():\n    \'plain\'\n'
        )
        % (b"long " * 400, b"more " * 400),
        "inner/latin.py": b"# -*- coding: latin-1 -*-\n'''caf\xe9'''\n",
        "inner/bad.py": b"'''caf\xe9'''\n",
        "inner/nul.py": b"x = '\0'\n",
        "inner/python2.py": b"print 'x'\n",
        "inner/surrogate.py": b'"""a \\ud800"""\n',
        "inner/tests/test_x.py": b"'''not read'''\n",
        "inner/README.md": b"# Read me\n",
        "inner/data.bin": b"\xff",
    }
    for name, content in contents.items():
        (package / name).write_bytes(content)
    info = tmp_path / "site" / "trapdoor-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trapdoor\nVersion: 1.2\nLicense-Expression: MIT\n")
    (info / "top_level.txt").write_text("trapdoor\n")
    (info / "RECORD").write_text("trapdoor/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return package


def test_packages_are_read_and_not_imported(packages: Path) -> None:
    step = ingest.PythonPackages(packages=("trapdoor", "absent"), stdlib=False)
    for target in (1, 1 << 20):
        table, failures = collect(step, target)
        rows = {row["id"]: row for row in table.to_pylist()}
        assert len(rows) == len(table)
        assert sorted(rows) == sorted(
            [
                f"trapdoor/{name}"
                for name in (
                    "__init__.py",
                    "__init__.py#__doc__",
                    "inner/README.md",
                    "inner/code.py",
                    "inner/code.py#A.f",
                    "inner/code.py#A.f:2",
                    "inner/code.py#__doc__",
                    "inner/latin.py",
                    "inner/latin.py#__doc__",
                    "inner/nul.py",
                    "inner/python2.py",
                    "inner/surrogate.py",
                )
            ]
        )
        assert sorted(f.id for f in failures) == ["trapdoor/inner/bad.py", "trapdoor/inner/surrogate.py#__doc__"]
    assert "trapdoor" not in sys.modules
    docs = rows["trapdoor/__init__.py#__doc__"]
    assert docs["text"] == "The package.\n\nIndented.\n"
    described = [docs[name] for name in ("kind", "package", "license", "source")]
    assert described == ["docs", "trapdoor", "MIT", "trapdoor 1.2"]
    assert rows["trapdoor/inner/code.py#__doc__"]["text"] == "A\n\nClass.\n\n\ng\n\nplain\n"
    assert rows["trapdoor/inner/code.py#A.f"]["text"].endswith("\nend")
    assert "café" in rows["trapdoor/inner/latin.py"]["text"]
    assert rows["trapdoor/inner/README.md"]["kind"] == "text"
    (found,) = step.identities(CONTEXT, [])
    assert found["package"] == "trapdoor 1.2" and found["files"] == 8
    only = collect(ingest.PythonPackages(packages=("trapdoor",), stdlib=False, kinds=("text",)))[0]
    assert only["id"].to_pylist() == ["trapdoor/inner/README.md"]


def test_no_package_at_all() -> None:
    with pytest.raises(FactoryError, match="none of absent is installed"):
        ingest.PythonPackages(packages=("absent",), stdlib=False).splits(CONTEXT, 1)


def test_installed_packages() -> None:
    step = ingest.PythonPackages(packages=("numpy", "pyarrow"), stdlib=False)
    table, failures = collect(step, 1 << 21)
    assert not failures and len(step.splits(CONTEXT, 1 << 21)) >= 2
    again, _ = collect(step, 1 << 21)
    assert again.equals(table)
    ids = table["id"].to_pylist()
    assert len(set(ids)) == len(ids) > 300
    import numpy

    at = ids.index("numpy/__init__.py#__doc__")
    assert table["text"][at].as_py().startswith((numpy.__doc__ or "").strip()[:200])
    assert table["source"][at].as_py() == f"numpy {importlib.metadata.version('numpy')}"
    assert table["license"][at].is_valid
    source = table["text"][ids.index("numpy/linalg/_linalg.py")].as_py()
    assert source == Path(numpy.__file__ or "").parent.joinpath("linalg/_linalg.py").read_text() and ast.parse(source)

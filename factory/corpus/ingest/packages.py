"""The documentation and source of the Python packages that are installed: a corpus that needs no download."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import importlib.util
import inspect
import io
import os
import platform
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import pyarrow as pa
from annotated_types import Ge

from factory.corpus.ingest import files
from factory.corpus.ingest.batch import Rows
from factory.engine.errors import FactoryError
from factory.engine.files import digest
from factory.engine.step import Context, Failure, Source, Split

_SKIPPED = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "testing", "idle_test"}
_TEXTS = (".md", ".rst", ".txt")
_DOCS = 0.2
"""About so much of source files is docstrings, for planning."""
_DOCUMENTED = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class PythonPackages(Source):
    """Technical English and code: docstrings, source and text files of the packages installed beside the factory.

    Columns: `id` (the file's path, `numpy/linalg/_linalg.py`; `#__doc__` or `#Class.method` added for docs), `text`,
    `kind` (docs, source or text), `package`, `license` (as the package's metadata says), `source` (package and
    version). Packages that are not installed are passed over; none at all is an error. Nothing is imported.

    A module's docstrings make one document, in the order of the file; one of `long` characters or more is a document
    of its own. Tests and empty files are left out. A file that cannot be decoded becomes a failed row; one that does
    not parse has no docstrings, and remains source.
    """

    packages: tuple[str, ...] = (
        "numpy",
        "scipy",
        "torch",
        "transformers",
        "pyarrow",
        "polars",
        "duckdb",
        "datatrove",
        "datasets",
        "numba",
        "networkx",
        "fsspec",
        "huggingface_hub",
        "pydantic",
        "jinja2",
    )
    """Names of top-level packages, as they are imported."""
    stdlib: bool = True
    """Read Python's standard library too."""
    kinds: tuple[Literal["docs", "source", "text"], ...] = ("docs", "source", "text")
    """docs: docstrings; source: whole source files; text: Markdown, reStructuredText and plain text files."""
    long: Annotated[int, Ge(1)] = 1500
    """Docstrings of so many characters are documents of their own."""

    def splits(self, context: Context, target: int) -> list[Split]:
        _listing.cache_clear()
        share = ("source" in self.kinds) + _DOCS * ("docs" in self.kinds)
        listed = [
            dataclasses.replace(file, size=int(file.size * share)) if file.name.endswith(".py") else file
            for _, file in self._found()
        ]
        return files.groups(listed, "python-packages", target)

    def identities(self, context: Context, splits: list[Split]) -> list[dict[str, Any]]:
        """Each package's version, and the names and sizes of its files."""
        names: dict[str, list[Any]] = {}
        for package, file in self._found():
            names.setdefault(package.source, []).append([file.name, file.size])
        return [{"package": source, "files": len(listed), "digest": digest(listed)} for source, listed in names.items()]

    def start(self, context: Context) -> pa.Schema:
        columns = ("id", "text", "kind", "package", "license", "source")
        return pa.schema([(name, pa.large_string()) for name in columns])

    def read(self, split: Split) -> Iterator[pa.RecordBatch | Failure]:
        rows = Rows(self.start(Context()))
        for package, file in self._found()[split.start : split.end]:
            with files.open_file(file.path) as opened:
                data = opened.read()
            code = file.name.endswith(".py")
            try:
                text = _decode(data, code)
            except (SyntaxError, UnicodeDecodeError) as error:
                yield Failure(file.name, f"cannot be decoded: {error}", file.name, data[: files.SHOWN])
                continue
            for name, kind, content in self._documents(file.name, text, code):
                try:
                    content.encode()
                except UnicodeEncodeError as error:  # a docstring may hold an escaped lone surrogate
                    yield Failure(name, f"not UTF-8: {error.reason}", file.name, data[: files.SHOWN])
                    continue
                yield from rows.add((name, content, kind, package.name, package.license, package.source))
        yield from rows.flush()

    def _documents(self, name: str, text: str, code: bool) -> Iterator[tuple[str, str, str]]:
        if not code:
            if "text" in self.kinds:
                yield name, "text", text
            return
        if "docs" in self.kinds:
            short: list[str] = []
            own: dict[str, str] = {}
            times: Counter[str] = Counter()  # a name may be defined again: a property's setter, an overload
            for where, docs in _docstrings(text):
                if len(docs) >= self.long and where:
                    times[where] += 1
                    own[f"{where}:{times[where]}" if times[where] > 1 else where] = docs
                elif docs:
                    short.append(f"{where}\n\n{docs}" if where else docs)
            if short:
                yield f"{name}#__doc__", "docs", "\n\n\n".join(short) + "\n"
            for where, docs in own.items():
                yield f"{name}#{where}", "docs", docs
        if "source" in self.kinds:
            yield name, "source", text

    def _found(self) -> list[tuple[_Package, files.File]]:
        ends = (".py",) if {"docs", "source"} & set(self.kinds) else ()
        return _listing(self.packages, self.stdlib, ends + _TEXTS if "text" in self.kinds else ends)


@dataclass(frozen=True)
class _Package:
    name: str
    license: str | None
    source: str


@lru_cache(maxsize=2)
def _listing(packages: tuple[str, ...], stdlib: bool, ends: tuple[str, ...]) -> list[tuple[_Package, files.File]]:
    """All files in the order of their names, each with its package. Kept for a worker's tasks."""
    owners = importlib.metadata.packages_distributions()
    found: list[tuple[_Package, files.File]] = []
    for name in sorted(set(packages)):
        spec = importlib.util.find_spec(name) if "." not in name else None
        places = list(spec.submodule_search_locations or []) if spec else []
        if spec and not places and spec.origin and spec.origin.endswith(".py"):
            places = [spec.origin]
        if places:
            package = _described(name, owners.get(name, []))
            found += [(package, file) for place in places for file in _files(place, name, ends)]
    if stdlib:
        version = platform.python_version()
        package = _Package("python", "PSF-2.0", f"python {version}")
        found += [(package, file) for file in _files(sysconfig.get_path("stdlib"), "python", ends)]
    if not found:
        raise FactoryError(
            f"ingest.PythonPackages: none of {', '.join(packages) or 'no packages'} is installed; name packages that"
            " are, or set stdlib = true"
        )
    return sorted(found, key=lambda pair: pair[1].name)


def _files(place: str, name: str, ends: tuple[str, ...]) -> Iterator[files.File]:
    """The package's files that hold anything, named below `name`."""
    if os.path.isfile(place):
        if ends and place.endswith(ends):
            yield files.File(place, os.path.basename(place), os.path.getsize(place))
        return
    for folder, folders, names in os.walk(place):
        folders[:] = [sub for sub in folders if sub not in _SKIPPED]
        for each in names:
            path = os.path.join(folder, each)
            if each.endswith(ends) and os.path.isfile(path) and (size := os.path.getsize(path)):
                yield files.File(path, f"{name}/{os.path.relpath(path, place)}", size)


def _described(name: str, owners: list[str]) -> _Package:
    """Licence and version from the metadata of the distribution that brought the package."""
    if not owners:
        return _Package(name, None, name)
    meta: Any = importlib.metadata.metadata(sorted(owners)[0])
    classifiers = [c.rpartition(" :: ")[2] for c in meta.get_all("Classifier") or [] if c.startswith("License ::")]
    said = (meta.get("License-Expression") or "").strip()
    free = (meta.get("License") or "").strip()
    # Some packages put their whole licence there: then the classifier says it shorter.
    if not said:
        said = free if free and len(free) < 60 else " AND ".join(classifiers) or free.partition("\n")[0]
    return _Package(name, said or None, f"{meta['Name']} {meta['Version']}")


def _decode(data: bytes, code: bool) -> str:
    encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0] if code else "utf-8-sig"
    return data.decode(encoding)


def _docstrings(text: str) -> Iterator[tuple[str, str]]:
    """Each docstring of a module, dedented, with the dotted name of what it documents; the module's own has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # not Python, or of another version: the file remains as source
    ahead: list[tuple[str, Any]] = [("", tree)]
    while ahead:
        where, node = ahead.pop()
        docs = ast.get_docstring(node, clean=False)
        if docs:
            yield where, inspect.cleandoc(docs)
        inner = [child for child in node.body if isinstance(child, _DOCUMENTED)]
        ahead += [(f"{where}.{child.name}" if where else child.name, child) for child in reversed(inner)]

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("datatrove")

from factory.corpus import datatrove
from factory.engine.errors import FactoryError
from factory.engine.step import Mapped, Memo

FILTERS = "datatrove.pipeline.filters"


def batch(texts: list[str], **columns: Any) -> pa.RecordBatch:
    ids = pa.array([str(i) for i in range(len(texts))], pa.large_string())
    made = {name: value if isinstance(value, pa.Array) else pa.array(value) for name, value in columns.items()}
    return pa.RecordBatch.from_pydict({"id": ids, "text": pa.array(texts, pa.large_string()), **made})


def run(path: str, rows: pa.RecordBatch, alive: list[bool] | None = None, **options: Any) -> Mapped:
    step, memo = datatrove.step(path, options), Memo(rows.num_rows)
    if alive:
        memo.alive[:] = alive
    mapped = step(rows, memo)
    assert mapped.batch.schema == step.schema(rows.schema) == rows.schema
    mapped.batch.validate(full=True)
    return mapped


@pytest.fixture
def blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's own blocks, in a module on the path."""
    (tmp_path / "ownblocks.py").write_text(
        """
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
class Own(BaseFilter):
    name = "own"
    def __init__(self, bad="bad", batch_size=1):
        super().__init__(batch_size=batch_size)
        self.bad = bad
    def filter(self, doc):
        if "raise" in doc.text:
            raise RuntimeError("asked to")
        doc.text += "!"
        doc.metadata["n"] = (doc.metadata.get("n") or 0) + 1
        doc.metadata["unknown"] = 1
        return (False, "has " + self.bad) if self.bad in doc.text else "keep" in doc.text
class Batched(Own):
    def filter_batch(self, batch):
        return [self.filter(doc) for doc in batch]
class Lines(PipelineStep):
    name, type = "lines", "x"
    def run(self, data, rank=0, world_size=1):
        for doc in data:
            for line in doc.text.splitlines():
                doc.text = line
                yield doc
class Spoil(PipelineStep):
    name, type = "spoil", "x"
    def run(self, data, rank=0, world_size=1):
        for doc in data:
            doc.metadata["n"] = doc.text
            yield doc
class Nothing: pass
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ownblocks", raising=False)
    return "ownblocks"


@pytest.mark.parametrize("block", ["Own", "Batched"])
def test_a_filter_keeps_drops_edits_and_raises(blocks: str, block: str) -> None:
    texts = ["keep", "bad", "no", "raise", "keep raise", "keep gone"]
    rows = batch(texts, n=pa.array([1, 2, 3, 4, 5, None], pa.int64()))
    mapped = run(f"{blocks}.{block}", rows, [True] * 5 + [False], batch_size=1 if block == "Own" else 4)
    assert mapped.reasons is not None and mapped.errors is not None
    assert mapped.reasons.to_pylist()[:5] == [None, "has bad", block, None, None]
    assert mapped.errors.to_pylist()[:5] == [None, None, None, *["RuntimeError: asked to"] * 2]
    assert mapped.batch["text"].to_pylist()[:3] == ["keep!", "bad", "no"]
    assert mapped.batch["n"].to_pylist()[:3] == [2, 2, 3]


def test_any_block_runs_on_each_document_alone(blocks: str) -> None:
    mapped = run(f"{blocks}.Lines", batch(["one", "", "a\nb"]))
    assert mapped.reasons is not None and mapped.errors is not None
    assert mapped.batch["text"].to_pylist()[0] == "one"
    assert mapped.reasons.to_pylist() == [None, "Lines", None]
    assert "2 documents of one" in mapped.errors.to_pylist()[2]


def test_a_value_that_does_not_fit_its_column_fails_its_row(blocks: str) -> None:
    mapped = run(f"{blocks}.Spoil", batch(["x", "y"], n=pa.array([1, 2], pa.int64())))
    assert mapped.errors is not None and mapped.errors.null_count == 0
    assert mapped.batch["n"].to_pylist() == [1, 2]


def test_c4_beside_datatrove_itself(data: Path) -> None:
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter

    table = pq.read_table(data / "webtext" / "00000.parquet").slice(0, 60)
    rows = batch(table["text"].to_pylist(), url=table["url"].combine_chunks())
    mapped = run(f"{FILTERS}.C4QualityFilter", rows, filter_no_terminal_punct=False)
    expected = {}
    block = C4QualityFilter(filter_no_terminal_punct=False)
    for doc in block.run(Document(text=t, id=str(i)) for i, t in enumerate(table["text"].to_pylist())):
        expected[doc.id] = doc.text
    assert mapped.reasons is not None and mapped.errors is not None and mapped.errors.null_count == 60
    given = [mapped.batch["id"].to_pylist(), mapped.batch["text"].to_pylist(), mapped.reasons.to_pylist()]
    kept = {id_: text for id_, text, reason in zip(*given, strict=True) if reason is None}
    assert kept == expected and 0 < len(kept) < 60
    assert mapped.batch["url"].to_pylist() == table["url"].to_pylist()


def test_a_formatter_edits() -> None:
    rows = batch(["write to jo@corp.org now", "", "a\0b", "x" * 100])
    mapped = run("datatrove.pipeline.formatters.PIIFormatter", rows)
    assert mapped.errors is not None and mapped.errors.null_count == 4
    texts = mapped.batch["text"].to_pylist()
    assert "jo@corp.org" not in texts[0] and texts[1:] == ["", "a\0b", "x" * 100]


def test_zero_rows_and_fifty_megabytes() -> None:
    path = f"{FILTERS}.RegexFilter"
    assert run(path, batch([]), regex_exp="x").batch.num_rows == 0
    mapped = run(path, batch(["word\0 " * 8_000_000, "secret"]), regex_exp="secret")
    assert mapped.reasons is not None and mapped.reasons.is_null().to_pylist() == [True, False]


def test_identity_holds_block_options_and_version() -> None:
    from importlib.metadata import version

    a, b = (datatrove.step(f"{FILTERS}.RegexFilter", {"regex_exp": x}) for x in "ab")
    assert a != b and a == datatrove.step(f"{FILTERS}.RegexFilter", {"regex_exp": "a"})
    assert a.datatrove == version("datatrove") and json.loads(a.options) == {"regex_exp": "a"}


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (f"{FILTERS}.C4QualtyFilter", {}, "did you mean 'C4QualityFilter'"),
        (f"{FILTERS}.C4QualityFilter", {"min_word": 3}, r"no option 'min_word' \(did you mean"),
        (f"{FILTERS}.RegexFilter", {}, "regex_exp"),
        ("datatrove.pipeline.filtrs.X", {}, "datatrove.pipeline.filtrs"),
        ("datatrove.pipeline.readers.JsonlReader", {"data_folder": "x"}, "document by document"),
        ("datatrove.pipeline.dedup.MinhashDedupSignature", {"output_folder": "x"}, "document by document"),
    ],
)
def test_mistakes_are_named(path: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FactoryError, match=message):
        datatrove.step(path, options)


def test_without_datatrove(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datatrove.pipeline.base", None)
    with pytest.raises(FactoryError, match="cannot import datatrove"):
        datatrove.step(f"{FILTERS}.C4QualityFilter", {})

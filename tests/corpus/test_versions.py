"""A step of the corpus whose output changed has a new version: identities are made of versions, so without
one a dataset would be called the same and be another.

`python -m tests.corpus.test_versions` writes golden.json anew: bump the `version` of each step that it names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from factory.corpus import tokens
from factory.engine.recipe import all_steps, make_step
from factory.engine.step import Context, Filter, Gather, Map, Mapped, Memo, Regroup, Source
from tests.corpus.exchange import InMemory

GOLDEN = Path(__file__).with_name("golden.json")
SOME = "the be to of and that have with cat sat on a mat while it rained over Rome, and nobody saw why. Then"
WORDS = SOME.split(" ")


def documents() -> list[str]:
    """Some hundred texts of many kinds: prose, lists, code, repetition, other scripts, nothing."""
    chance = np.random.default_rng(7)

    def prose(sentences: int) -> str:
        lengths = chance.integers(4, 20, sentences)
        return " ".join(" ".join(chance.choice(WORDS, n)).capitalize() + "." for n in lengths)

    found = [prose(int(n)) for n in chance.integers(1, 60, 60)]
    found += ["\n".join(prose(2) for _ in range(n)) for n in range(2, 12)]
    found += ["\n".join(f"- {w}" for w in chance.choice(WORDS, 30)), "same line here\n" * 40, "a b c d e f g " * 50]
    found += [f"def f(x):\n    return {{x: {n}}}  # {prose(1)}\n" * 5 for n in range(3)]
    found += ["lorem ipsum " + prose(9), prose(9) + " javascript", "Terms of use. " + prose(6), "#### ... ####" * 30]
    found += [
        "统一码是一种字符编码标准,它为每一个字符指定一个号码。" * 8,
        "ภาษาไทยเขียนโดยไม่มีช่องว่างระหว่างคำ " * 9,
        "Привет, мир. " * 20,
    ]
    found += ["", " ", "\n\n", "\x00", "word", found[3], found[4] + " One word more.", found[5].upper()]
    return found


def digest(name: str, options: dict[str, str]) -> str:
    """SHA-256 of what a step makes of the documents."""
    step = make_step(name, options, name)
    step.open(Context())
    texts = documents()
    ids = pa.array([f"d{n}" for n in range(len(texts))], pa.large_string())
    pages = [f"<html><body><nav>Home</nav><article><p>{t}</p></article></body></html>".encode() for t in texts]
    columns = {"id": ids, "text": pa.array(texts, pa.large_string()), "html": pa.array(pages, pa.large_binary())}
    if name == "order.Sort":
        columns["length"] = pa.array([len(text) for text in texts])
    batch, memo, found = pa.record_batch(columns), Memo(len(texts)), hashlib.sha256()

    def add(*values: object) -> None:
        for value in values:
            found.update(json.dumps(value, ensure_ascii=False, default=str).encode())

    def rows(batch: pa.RecordBatch) -> list[dict[str, object]]:
        made = batch.to_pylist()
        return [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in made]

    if isinstance(step, Filter):
        add(step(batch, memo).to_pylist())
    elif isinstance(step, Map):
        result = step(batch, memo)
        mapped = result if isinstance(result, Mapped) else Mapped(result)
        why = mapped.reasons.to_pylist() if mapped.reasons is not None else [None] * len(texts)
        add(why, [row for row, reason in zip(rows(mapped.batch), why, strict=True) if reason is None])
    elif isinstance(step, Gather):
        for key, value in sorted(step.emit(batch, memo, np.arange(len(texts), dtype=np.uint64)).items()):
            add(key, value.tolist() if isinstance(value, np.ndarray) else value.payload.to_pylist())
        if name.startswith("dedup."):
            # Twice the same shard, and between them one whose texts are cut short: near-duplicates of both.
            short = batch.set_column(1, "text", pa.array([t[: len(t) * 9 // 10] for t in texts], pa.large_string()))
            decided = InMemory(step, [[(batch, None)], [(short, None)], [(batch, None)]]).dropped()
            add([[round(float(field), 4) for field in record] for record in decided.tolist()])
        if step.arranges:
            add(InMemory(step, [[(batch, None)]] * 3).dropped().tolist())
    elif isinstance(step, Regroup):
        prepared = step.prepare(batch, memo)
        assert isinstance(prepared, pa.RecordBatch)
        for made in step(iter([prepared])):
            add(rows(made))
    step.close()
    return found.hexdigest()


CORPUS = {name: step for name, step in all_steps().items() if step.__module__.startswith("factory.corpus.")}
NAMES = sorted(n for n, s in CORPUS.items() if not issubclass(s, Source) and n != "datatrove.Block")


OPTIONS = {"order.Sort": {"by": "length"}, "order.Together": {"by": "text"}}


def outputs(folder: Path) -> dict[str, dict[str, object]]:
    tokens.train_bpe(iter(documents()), 320, folder)
    found: dict[str, dict[str, object]] = {}
    for name in NAMES:
        options = {"tokenizer": str(folder)} if name == "tokens.Pack" else OPTIONS.get(name, {})
        output = digest(name, options)
        if "words" in {field.name for field in dataclasses.fields(CORPUS[name])}:
            output += digest(name, {**options, "words": "spacy"})
        found[name] = {"version": CORPUS[name].version, "output": output}
    made = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    found["tokens.Train"]["output"] = hashlib.sha256((str(found["tokens.Train"]["output"]) + made).encode()).hexdigest()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, object]]:
    return outputs(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_output_has_a_new_version(name, found):
    golden = json.loads(GOLDEN.read_text())[name]
    if found[name] != golden:
        assert found[name]["version"] != golden["version"], (
            f"{name} makes another output than version {golden['version']} did: bump its version, then "
            "run python -m tests.corpus.test_versions"
        )
        pytest.fail(f"{name} has a new version: run python -m tests.corpus.test_versions")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps(outputs(Path(scratch)), indent=1) + "\n")

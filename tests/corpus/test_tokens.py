"""tokens.Train and tokens.Pack: nothing is lost, ids are those of the reference library, bad input is refused."""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from factory.corpus import tokens
from factory.corpus.tokens import END, Encoder, Pack, Train, cuts, train_bpe
from factory.engine.errors import FactoryError
from factory.engine.step import Context, Memo

TEXTS = (
    "The quick brown fox jumps over 12 lazy dogs.\n\nReturns a new array of the given shape.\n",
    "def area(x):\n    return x ** 2  # it's the square\n\n\n",
    "Ещё немного текста, и ещё. 日本語の文章もある。 e\u0301cole",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_bpe(iter(TEXTS * 20), 400, path)
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> Tokenizer:
    """The plain library, told to read control tokens as text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def batch(texts: list[str], ids: list[str] | None = None) -> pa.RecordBatch:
    names = ids or [f"d{number}" for number in range(len(texts))]
    arrays = [pa.array(names, pa.large_string()), pa.array(texts, pa.large_string())]
    return pa.RecordBatch.from_arrays(arrays, ["id", "text"])


def opened(folder: Path, length: int) -> Pack:
    step = Pack(sequence_length=length)
    step.open(Context(artifacts={"tokenizer": str(folder)}))
    return step


def run(step: Pack, batches: list[pa.RecordBatch]) -> pa.Table:
    def prepared() -> Iterator[pa.RecordBatch]:
        for one in batches:
            yield step.prepare(one, Memo(len(one)))

    out = list(step(prepared()))
    return pa.Table.from_batches(out, step.schema(pa.schema([])))


def flat(table: pa.Table, name: str) -> list:
    return [value for row in table[name].to_pylist() for value in row]


def check(table: pa.Table, texts: list[str], reference: Tokenizer, length: int) -> None:
    """Everything that Pack promises, worked out again the slow way from the texts."""
    end = reference.token_to_id(END)
    stream: list[int] = []
    owner: list[str] = []
    starts: dict[int, str] = {}
    for number, text in enumerate(texts):
        starts[len(stream)] = f"d{number}"
        document = [*reference.encode(text, add_special_tokens=False).ids, end]
        stream += document
        owner += [f"d{number}"] * len(document)
    assert flat(table, "input_ids") == stream
    counts = table["token_count"].to_pylist()
    assert all(count == length for count in counts[:-1])
    assert sum(counts) == len(stream) and all(0 < count <= length for count in counts)
    begin = {name: place for place, name in starts.items()}
    at = 0
    for row in table.to_pylist():
        span = range(at, at + row["token_count"])
        assert len(row["input_ids"]) == len(span)
        assert row["document_starts"] == [place - at for place in span if place in starts]
        assert row["document_ids"] == list(dict.fromkeys(owner[place] for place in span))
        assert row["id"] == f"{owner[at]}@{at - begin[owner[at]]}"
        at += len(span)
    assert len(set(table["id"].to_pylist())) == table.num_rows


characters = st.sampled_from(
    ["a", "B", " ", "\n", "\t", "\0", "1", ".", "é", "e\u0301", "日", "🙂", "'s", END, "\r\n", "the "]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.lists(characters, max_size=30).map("".join), max_size=12),
    length=st.integers(2, 40),
    cut=st.integers(1, 5),
)
def test_nothing_is_lost(texts: list[str], length: int, cut: int, folder: Path, reference: Tokenizer) -> None:
    whole = batch(texts)
    parts = [whole.slice(at, cut) for at in range(0, len(texts), cut)]
    table = run(opened(folder, length), parts)
    check(table, texts, reference, length)


def test_the_arrival_of_rows_does_not_matter(folder: Path) -> None:
    whole = batch(list(TEXTS) * 5)
    step = opened(folder, 16)
    one = run(step, [whole])
    many = run(step, [whole.slice(at, 1) for at in range(len(whole))])
    assert one.combine_chunks().equals(many.combine_chunks())


@pytest.mark.parametrize("texts", [[], [""], ["", "", ""], ["\0"], ["x"]])
def test_small_shards(texts: list[str], folder: Path, reference: Tokenizer) -> None:
    table = run(opened(folder, 8), [batch(texts)])
    check(table, texts, reference, 8)


def test_output_is_cut_into_batches_of_bounded_size(
    folder: Path, reference: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "OUT", 64)
    texts = ["a long document " * 200, "short", TEXTS[1]]
    step = opened(folder, 16)
    prepared = step.prepare(batch(texts), Memo(3))
    out = list(step(iter([prepared])))
    assert len(out) > 5 and all(len(part) <= 4 for part in out)
    check(pa.Table.from_batches(out), texts, reference, 16)


def test_dropped_rows_cost_nothing_and_keep_their_place(folder: Path) -> None:
    step = opened(folder, 8)
    memo = Memo(3)
    memo.alive[1] = False
    lists = step.prepare(batch(list(TEXTS)), memo).column("input_ids").to_pylist()
    everything = step.prepare(batch(list(TEXTS)), Memo(3)).column("input_ids").to_pylist()
    assert len(lists) == 3
    assert lists[0] == everything[0] and lists[2] == everything[2]
    assert len(lists[1]) == 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(characters | st.text(max_size=4), max_size=80).map("".join), size=st.integers(1, 12))
def test_cut_places_do_not_change_the_tokens(text: str, size: int, reference: Tokenizer) -> None:
    """At the places that SAFE finds, the tokens of the pieces are those of the whole."""
    raw = text.encode()
    places = [0, *(found.start() for found in tokens.SAFE.finditer(raw)), len(raw)]
    pieces = [raw[a:b].decode() for a, b in itertools.pairwise(places)]
    ids = [token for piece in pieces for token in reference.encode(piece, add_special_tokens=False).ids]
    assert ids == reference.encode(text, add_special_tokens=False).ids
    data = np.frombuffer(raw, np.uint8)
    edges = cuts(np.array([0, len(raw)]), data, size)
    assert "".join(raw[a:b].decode() for a, b in itertools.pairwise(edges)) == text
    assert np.diff(edges).max() <= 6 * size + 4


def test_fast_and_reference_encoders_agree(folder: Path, data: Path) -> None:
    encoder = Encoder(folder / "tokenizer.json")
    assert encoder.fast is not None
    texts = [path.read_text("utf-8") for path in sorted((data / "udhr").rglob("*.xml"))[:60]]
    raw = "".join(texts).encode()
    edges = np.cumsum([0] + [len(text.encode()) for text in texts])
    fast = encoder._fast(edges, np.frombuffer(raw, np.uint8))
    slow = encoder._slow(edges, np.frombuffer(raw, np.uint8))
    assert np.array_equal(fast[0], slow[0]) and np.array_equal(fast[1], slow[1])


def test_an_added_token_spelled_out_is_plain_text_to_both_encoders(folder: Path, tmp_path: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())
    form = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    model["added_tokens"].append({"id": 5000, "content": "<tool_call>", **form})
    (tmp_path / "tokenizer.json").write_text(json.dumps(model))
    encoder = Encoder(tmp_path / "tokenizer.json")
    text = np.frombuffer(f"a <tool_call> b {END} c".encode(), np.uint8)
    edges = np.array([0, len(text)])
    slow = encoder._slow(edges, text)[0]
    assert 5000 not in slow and encoder.end not in slow
    assert encoder.fast is not None and np.array_equal(encoder._fast(edges, text)[0], slow)


def test_a_tokenizer_that_the_fast_library_reads_otherwise_falls_back(folder: Path, tmp_path: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())
    model["normalizer"] = {"type": "Replace", "pattern": {"String": "twice"}, "content": "once"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(model))
    step = opened(tmp_path, 8)
    wanted = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("say it twice").ids
    assert flat(run(step, [batch(["say it twice"])]), "input_ids")[:-1] == wanted


@pytest.mark.parametrize("kind", ["words", "one word", "nul"])
def test_a_document_of_50_megabytes(kind: str, folder: Path) -> None:
    text = {"words": "some words and 12 numbers\n", "one word": "abcdefghij", "nul": "\0"}[kind]
    text *= 50_000_000 // len(text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = run(opened(folder, 2048), [batch(["before", text, "after"])])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert table["document_ids"][0].as_py()[:2] == ["d0", "d1"]
    ids = np.concatenate([chunk.flatten().to_numpy() for chunk in table["input_ids"].chunks])
    assert int((ids == tokenizer.token_to_id(END)).sum()) == 3
    sizes = np.array([len(tokenizer.decode([token], skip_special_tokens=False)) for token in range(400)])
    assert sizes[ids].sum() == len(text) + len("before") + len("after") + 3 * len(END)
    assert grown < 1500, f"{grown:.0f} MB"


def test_training_is_the_same_every_time(folder: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]);"
        "from tests.corpus.test_tokens import TEXTS; from factory.corpus.tokens import train_bpe;"
        "train_bpe(iter(TEXTS * 20), 400, sys.argv[1])"
    )
    root = str(Path(__file__).resolve().parents[2])
    for number, threads in enumerate(("1", "4")):
        env = os.environ | {"RAYON_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / str(number)), root], check=True, env=env, cwd=root)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / str(number) / name).read_bytes() == (folder / name).read_bytes()


def test_the_folder_loads_in_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "é"
    assert len(tokenizer) == 400 and tokenizer.eos_token == tokenizer.pad_token == END
    assert [tokenizer.convert_tokens_to_ids(t) for t in tokens.CONTROL] == [397, 398, 399]
    assert tokenizer.encode("<|im_start|>") == [398]
    # Digits one by one, as Qwen2 cuts them.
    assert [tokenizer.decode([token]) for token in tokenizer.encode("2026")] == list("2026")
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    own = [{"role": "system", "content": "Be brief."}, chat[0]]
    assert tokenizer.apply_chat_template(own, tokenize=False).startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_the_sample_does_not_depend_on_batches_or_shards() -> None:
    step = Train(share=0.5)
    texts = [f"document number {number}" for number in range(200)]
    whole = batch(texts)
    docs = np.arange(200, dtype=np.uint64)
    one = step.emit(whole, Memo(200), docs)["sample"]
    parts = [step.emit(whole.slice(at, 7), Memo(len(whole.slice(at, 7))), docs[at : at + 7]) for at in range(0, 200, 7)]
    assert np.array_equal(one.records["key"], np.concatenate([part["sample"].records["key"] for part in parts]))
    assert one.payload.to_pylist() == [text for part in parts for text in part["sample"].payload.to_pylist()]
    assert 60 < len(one.records) < 140
    assert len(Train().emit(whole, Memo(200), docs)["sample"].records) == 200
    memo = Memo(200)
    memo.alive[:] = False
    assert len(Train().emit(whole, memo, docs)["sample"].records) == 0


def test_training_stops_after_sample_bytes() -> None:
    texts = pa.array(["a" * 100] * 10, pa.large_string())
    assert len(list(Train(sample_bytes=250)._sample(texts))) == 3
    assert len(list(Train(sample_bytes=250)._sample(texts.slice(8)))) == 2


def test_bad_tokenizers_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FactoryError, match=r"tokens\.Train"):
        Pack().open(Context())
    with pytest.raises(FactoryError, match=r"no tokenizer\.json"):
        Pack(tokenizer=str(tmp_path)).open(Context())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FactoryError, match="not a tokenizer"):
        Pack(tokenizer=str(tmp_path)).open(Context())
    model = json.loads((folder / "tokenizer.json").read_text())
    model["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(model))
    with pytest.raises(FactoryError, match="endoftext"):
        Pack(tokenizer=str(tmp_path)).open(Context())
    with pytest.raises(RuntimeError, match="open"):
        Pack().prepare(batch(["x"]), Memo(1))

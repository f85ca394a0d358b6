"""The kernel against the fastText library itself, on real text and on models of every kind."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.engine.step import Memo
from factory.kernels import fasttext_model
from factory.kernels.fasttext import predict
from factory.kernels.fasttext_model import Model, load, shipped

fasttext = pytest.importorskip("fasttext", reason="the fastText library is what we compare with")
library = functools.cache(fasttext.load_model)


@pytest.fixture(scope="module")
def path(request: pytest.FixtureRequest) -> str:
    try:
        return shipped()
    except FactoryError:
        return str(request.getfixturevalue("data") / "models/url2ref/fasttext/lid.176.ftz")


def ours(texts: list[str], model: Model, alive: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    memo = Memo(len(texts))
    if alive is not None:
        memo.alive &= alive
    return memo(predict, pa.array(texts, pa.large_string()), model)


def differences(texts: list[str], path: str) -> tuple[int, float]:
    """(rows with another label, the largest difference of probability where the label is the same)."""
    model, theirs = load(path), library(path)
    labels, scores = ours(texts, model)
    other, most = 0, 0.0
    for text, label, score in zip(texts, labels, scores, strict=True):
        names, probabilities = theirs.predict(text.replace("\n", " "), k=2)
        # Losses whose probabilities come from a table of 512 values tie often; either label is then right.
        best = [name for name, p in zip(names, probabilities, strict=True) if p == probabilities[0]]
        if f"__label__{model.labels[label]}" in best:
            most = max(most, abs(probabilities[0] - score))
        else:
            other += 1
    return other, most


def test_as_the_library_on_web_text(data: Path, path: str) -> None:
    texts = pq.read_table(data / "webtext/00001.parquet").column("text").to_pylist()[:1000]
    other, most = differences(texts, path)
    assert other <= len(texts) // 1000
    assert most < 1e-3


def test_as_the_library_on_sentences_of_75_languages(data: Path, path: str) -> None:
    texts = []
    for file in sorted((data / "lid-lingua").rglob("sentences/*.txt")):
        texts += file.read_text("utf-8").split("\n")[:40]
    assert len(texts) > 2500
    other, most = differences(texts, path)
    assert other <= len(texts) // 1000
    assert most < 1e-3


ODD = [
    "",
    "\0",
    " \t\v\f\r\n",
    "a\0b c",
    "</s>",
    "hello </s> bonjour tout le monde",
    "x</s>",
    "__label__en",
    "__label__en le chat est sur la table",
    "__label__",
    "a" * 31 + " " + "b" * 32 + " " + "c" * 33 + " " + "é" * 16 + " " + "é" * 17,
    "語" * 1000,
    "ends in a long word " + "z" * 300,
]


def test_odd_text(path: str) -> None:
    other, most = differences(ODD, path)
    assert other == 0
    assert most < 1e-3


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("abcé語ж </s>_l\0\n\tI")) | st.characters(codec="utf-8"), max_size=60))
def test_any_text(path: str, text: str) -> None:
    model, theirs = load(path), library(path)
    labels, scores = ours([text], model)
    names, probabilities = theirs.predict(text.replace("\n", " "), k=2)
    assert abs(scores[0] - probabilities[0]) < 1e-4
    if probabilities[0] - probabilities[1] > 1e-5:
        assert model.labels[labels[0]] == names[0].removeprefix("__label__")


LANGUAGES = {
    "en": "the cat sat on the mat and the dog ran away from it over hill and dale",
    "de": "die katze saß auf der matte und der hund lief über berg und tal davon",
    "fr": "le chat était assis sur le tapis et le chien est parti par monts et vaux",
    "xx": "qu zor blik tran fulo mer ta vik",
}
KINDS = {
    "hs": {"loss": "hs", "minn": 2, "maxn": 4, "bucket": 1000},
    "softmax": {"loss": "softmax", "wordNgrams": 3, "minn": 1, "maxn": 3, "bucket": 997},
    "ova": {"loss": "ova", "wordNgrams": 2, "bucket": 500},
    "ns": {"loss": "ns", "minn": 3, "maxn": 6, "bucket": 2000},
    "words only": {"loss": "softmax", "bucket": 0},
}


def train(folder: Path, compress: dict[str, object] | None, **options: object) -> str:
    random = np.random.default_rng(0)
    lines = []
    for _ in range(600):
        name = str(random.choice(list(LANGUAGES), p=[0.5, 0.25, 0.15, 0.1]))
        lines.append(f"__label__{name} " + " ".join(random.choice(LANGUAGES[name].split(), 6)))
    (folder / "train.txt").write_text("\n".join(lines), "utf-8")
    model = fasttext.train_supervised(str(folder / "train.txt"), dim=20, epoch=5, thread=10, verbose=0, **options)
    if compress is not None:
        model.quantize(input=str(folder / "train.txt"), verbose=0, thread=10, **compress)
    model.save_model(str(folder / "model.bin"))
    return str(folder / "model.bin")


@pytest.mark.parametrize("kind", KINDS)
def test_dense_models_of_every_loss(tmp_path: Path, kind: str) -> None:
    sentences = [" ".join(words.split()[k:][:5]) for words in LANGUAGES.values() for k in range(8)]
    other, most = differences(sentences + ODD, train(tmp_path, None, **KINDS[kind]))
    assert other == 0
    assert most < 1e-3


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("cutoff", [0, 300])
def test_quantised_models(tmp_path: Path, norm: bool, output: bool, cutoff: int) -> None:
    # Quantised tables have 256 centroids, so there must be as many rows and, for the output, as many labels.
    options = {"loss": "softmax", "minn": 2, "maxn": 4, "bucket": 1000, "wordNgrams": 2}
    compress = {"qnorm": norm, "qout": False, "cutoff": cutoff, "dsub": 3, "retrain": False}
    if output:
        lines = [f"__label__{k} w{k} v{k % 7}" for k in range(300) for _ in range(2)]
        (tmp_path / "many.txt").write_text("\n".join(lines))
        model = fasttext.train_supervised(str(tmp_path / "many.txt"), dim=20, epoch=20, thread=10, verbose=0, **options)
        model.quantize(input=str(tmp_path / "many.txt"), verbose=0, **{**compress, "qout": True})
        model.save_model(str(tmp_path / "model.bin"))
        path, texts = str(tmp_path / "model.bin"), [line.split(" ", 1)[1] for line in lines[::2]]
    else:
        path, texts = train(tmp_path, compress, **options), list(LANGUAGES.values()) + ODD
    other, most = differences(texts, path)
    assert other == 0
    assert most < 1e-3


def test_same_bits_whatever_came_before(data: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pq.read_table(data / "webtext/00000.parquet").column("text").to_pylist()[:300]
    labels, scores = ours(texts, fasttext_model.load.__wrapped__(path))
    monkeypatch.setattr(fasttext_model, "CACHE_BYTES", 1)
    small = fasttext_model.load.__wrapped__(path)
    assert len(small.cache()[0]) == 256
    for model in (load(path), small):
        for order in (np.arange(300), np.arange(300)[::-1], np.random.default_rng(1).permutation(300)):
            got_labels, got_scores = ours([texts[k] for k in order], model)
            assert (got_labels == labels[order]).all()
            assert (got_scores == scores[order]).all()


def test_slices_dead_rows_and_no_rows(path: str) -> None:
    model = load(path)
    texts = ["the quick brown fox jumps", "le chat noir est sur la table", "", "der Hund schläft im Haus"]
    labels, scores = ours(texts, model)
    array = pa.array(["skipped", *texts, "after"], pa.large_string()).slice(1, 4)
    got = predict(Memo(4), array, model)
    assert (got[0] == labels).all() and (got[1] == scores).all()
    got = ours(texts, model, np.array([True, False, False, True]))
    assert got[0].tolist() == [labels[0], -1, -1, labels[3]]
    assert got[1].tolist() == [scores[0], 0, 0, scores[3]]
    assert [len(part) for part in ours([], model)] == [0, 0]


def test_fifty_megabytes_in_a_document(path: str) -> None:
    model = load(path)
    sentence = "the rain in Spain stays mainly in the plain "
    labels, scores = ours([sentence * (50_000_000 // len(sentence)), "a" * 50_000_000, sentence], model)
    assert model.labels[labels[0]] == model.labels[labels[2]] == "en"
    assert abs(scores[0] - scores[2]) < 0.2


@pytest.mark.parametrize("keep", [0, 4, 60, 5000, 900_000])
def test_files_that_are_not_whole(tmp_path: Path, path: str, keep: int) -> None:
    (tmp_path / "cut.ftz").write_bytes(Path(path).read_bytes()[:keep])
    with pytest.raises(FactoryError, match=r"cut\.ftz"):
        load(str(tmp_path / "cut.ftz"))


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="check the path"):
        load(str(tmp_path / "nothing.bin"))
    (tmp_path / "text.bin").write_text("not a model, but long enough to look into")
    with pytest.raises(FactoryError, match="not a fastText model"):
        load(str(tmp_path / "text.bin"))

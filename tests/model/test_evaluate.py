"""The command: a checkpoint that answers gets 1, results are Parquet that DuckDB queries, pictures are drawn."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, pre_tokenizers

from factory.engine.errors import FactoryError
from model.attention import DualChunk
from model.checkpoint import load_hf, save_hf
from model.config import ModelConfig
from model.data import TokenDataset
from model.evaluate import results
from model.evaluate import run as running
from model.evaluate.__main__ import main, parse
from model.evaluate.perplexity import Perplexity
from model.evaluate.run import ask
from model.evaluate.task import Question
from model.generate import Generator
from model.transformer import Transformer
from tests.model.conftest import numbers

LENGTH, WORDS, STEPS = 64, 192, 400


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A text of distinct numbers stands once and begins again: what follows is asked for. A whole task of one's own."""

    lengths: tuple[int, ...] = (LENGTH,)
    samples: int = 20

    def questions(self, tokenizer: Tokenizer) -> Iterable[Question]:
        for length in self.lengths:
            for sample in range(self.samples):
                random = np.random.default_rng([length, sample])
                period = int(random.integers(length // 4, length // 2))
                text = random.permutation(WORDS)[:period]
                begin = int(random.integers(2, 6))
                yield Question(
                    task="copy",
                    id=f"{length}-{sample}",
                    prompt=" ".join(map(str, [*text, *text[:begin]])),
                    answers=(str(text[begin]),),
                    tokens=1,
                    length=length,
                    depth=begin / period,
                )

    def score(self, answer: str, question: Question) -> float:
        return float(answer == question.answers[0])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that has learned to copy at length 64."""
    torch.set_num_threads(1)
    config = ModelConfig(
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        rope_theta=1000.0,
    )
    model = Transformer(config)
    model.initialise(0)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=5e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=5e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        period = torch.randint(LENGTH // 4, LENGTH * 3 // 4 + 1, (16, 1), generator=generator)
        text = torch.rand(16, WORDS, generator=generator).argsort(1)
        at = torch.arange(LENGTH)[None]
        ids = text.gather(1, at % period)
        targets = ids[:, 1:].masked_fill(at[:, 1:] <= period, -100)
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), targets.flatten()).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 5e-3 * min(1, (step + 1) / 20, (STEPS - step) / (0.3 * STEPS))
            optimizer.step()
            optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("run") / "checkpoint" / "hf"
    save_hf(model, folder, None, None)
    tokenizer = numbers(WORDS)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


TASK = f"{__name__}:Copy"


def test_one_checkpoint_is_read_in_several_ways(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At four times the trained length it answers with YaRN and dual chunks, not with plain RoPE or interpolation."""
    dual = f"{{chunk_size = {LENGTH}, local_size = 16}}"
    ways = {
        "plain": [],
        "linear": ['model.rope_scaling={rope_type = "linear", factor = 4.0}'],
        "yarn": ['model.rope_scaling={rope_type = "yarn", factor = 4.0}'],
        "dual": [f"model.dual_chunk_attention_config={dual}"],
    }
    ways["both"] = [*ways["yarn"], *ways["dual"]]
    for name, words in ways.items():
        given = [f"out={tmp_path / name}", f"name={name}", "lengths=[64, 256]", "batch_tokens=1000"]
        assert main([str(checkpoint), TASK, *given, "model.max_position_embeddings=256", *words]) == 0
        printed = capsys.readouterr().out
        assert "copy" in printed and "95% interval" in printed and "results.parquet" in printed
        assert (tmp_path / name / "copy.png").read_bytes()[:4] == b"\x89PNG"
    found = duckdb.sql(
        f"select model, length, avg(score), count(*), max(prompt_tokens) from '{tmp_path}/*/results.parquet' "
        "where task = 'copy' group by all"
    ).fetchall()
    scores = {(model, length): score for model, length, score, *_ in found}
    assert all(count == 20 and tokens <= length for _, length, _, count, tokens in found)
    assert scores["plain", 64] == 1.0 and scores["dual", 64] > 0.9
    assert max(scores["plain", 256], scores["linear", 256]) < 0.5
    assert min(scores[way, 256] for way in ("yarn", "dual", "both")) > 0.7
    table = pq.read_table(tmp_path / "plain" / "results.parquet")
    assert table.schema == results.RESULTS
    row = table.to_pylist()[0]
    assert row["seconds"] > 0 and row["score"] == float(row["answer"] == row["expected"][0])
    resolved = json.loads((tmp_path / "dual" / "evaluation.json").read_text())
    assert resolved["model"]["dual_chunk_attention_config"]["local_size"] == 16
    assert resolved["tasks"][TASK]["lengths"] == [64, 256]


def test_rows_are_those_of_a_direct_loop(checkpoint: Path) -> None:
    generator = Generator.load(checkpoint, batch_tokens=300)
    model = load_hf(checkpoint)
    task = Copy(samples=9)
    rows = list(ask(generator, task, "m"))
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows) == 9
    for question in task.questions(generator.tokenizer):
        ids = torch.tensor([[int(word) for word in question.prompt.split()]])
        answer = str(int(model(ids)[0, -1].argmax()))
        row = by_id[question.id]
        assert row["answer"] == answer and row["score"] == float(answer == question.answers[0])
        assert row["prompt_tokens"] == ids.shape[1] and row["expected"] == list(question.answers)
    assert len(list(ask(generator, task, "m", limit=4))) == 4


class Watched(Copy):
    """How many questions are made before the first answer is there."""

    made = 0

    def questions(self, tokenizer: Tokenizer) -> Iterable[Question]:
        for question in super().questions(tokenizer):
            type(self).made += 1
            yield question


def test_prompts_are_made_as_they_are_asked(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator.load(checkpoint)
    whole = [row["answer"] for row in ask(generator, Copy(), "m")]
    monkeypatch.setattr(running, "GROUP", 400)
    Watched.made = 0
    rows = ask(generator, Watched(), "m")
    first = next(rows)
    assert Watched.made < 10
    found = {row["id"]: row["answer"] for row in [first, *rows]}
    assert Watched.made == 20 and sorted(found.values()) == sorted(whole)


def test_a_run_that_breaks_off_leaves_its_answers(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [str(checkpoint), TASK, f"out={tmp_path}"]
    assert main([*given, "samples=5"]) == 0
    assert main([*given, "lengths=[400]"]) == 2

    def left() -> tuple[list[str], int, int]:
        resolved = json.loads((tmp_path / "evaluation.json").read_text())
        rows = pq.read_table(tmp_path / "results.parquet").num_rows
        return resolved["finished"], resolved["tasks"][TASK]["samples"], rows

    assert left() == ([TASK], 5, 5), "nothing was asked: the earlier run stays whole"
    monkeypatch.setattr(running, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(running, "ask", lambda *given: stopped(ask(*given), 7))
    with pytest.raises(KeyboardInterrupt):
        main([*given, "samples=9"])
    assert left() == ([], 9, 7)


def stopped(rows: Iterable[dict], count: int) -> Iterator[dict]:
    for number, row in enumerate(rows):
        if number == count:
            raise KeyboardInterrupt
        yield row


def test_wrong_words_are_one_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        ([str(checkpoint)], "usage"),
        ([str(checkpoint), "needel"], "did you mean 'needle'?"),
        ([str(checkpoint), "needle", "lenghts=[1]"], "did you mean 'needle.lengths'?"),
        ([str(checkpoint), "needle", "lengths=[20]", f"out={tmp_path}"], "tokens are too few"),
        ([str(checkpoint), TASK, "lengths=[400]", f"out={tmp_path}"], "the model is made for 64"),
        ([str(checkpoint), TASK, "model.rope_scalin=1"], "did you mean 'rope_scaling'?"),
        ([str(checkpoint), TASK, "batch_tokens=many"], "must be a whole number"),
        ([str(tmp_path / "nothing"), TASK], "no config.json"),
        ([str(checkpoint), "perplexity", f"out={tmp_path}"], "give either"),
        ([str(checkpoint), "perplexity", "buckets=0", f"out={tmp_path}"], "buckets = 0: each must be at least 1"),
        ([str(checkpoint), "perplexity", "sequences=-1", f"out={tmp_path}"], "each must be at least 1"),
        ([str(checkpoint), TASK, "questions=-1"], "must not be negative"),
        ([str(checkpoint), "needle", "seed=-1"], "needle.seed = -1: must not be negative"),
        ([str(checkpoint), TASK, "model.hidden_size=32"], "the checkpoint decides it"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert main([]) == 2 and main(["--help"]) == 0
    assert "needle" in capsys.readouterr().out
    _, tasks, changes, _ = parse(["c", "needle", "ruler", "seed=4", "ruler.samples=2", "model.rope_theta=1e6"])
    assert tasks == {"needle": {"seed": 4}, "ruler": {"seed": 4, "samples": 2}} and changes == {"rope_theta": 1e6}


def test_the_folder_may_be_where_one_stands(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)
    assert main(["hf", TASK, "samples=1", f"out={tmp_path}"]) == 0
    assert pq.read_table(tmp_path / "results.parquet").to_pylist()[0]["model"] == checkpoint.parents[1].name


@pytest.mark.parametrize("changes", [{}, {"dual_chunk_attention_config": DualChunk(chunk_size=16, local_size=4)}])
def test_perplexity_is_the_loss_by_position(checkpoint: Path, tmp_path: Path, changes: dict) -> None:
    random = np.random.default_rng(0)
    ids = random.integers(0, WORDS, 29 * 7 + 13)
    (tmp_path / "text.txt").write_text(" ".join(map(str, ids)))
    generator = Generator.load(checkpoint, **changes)
    task = Perplexity(files=(str(tmp_path / "*.txt"),), length=29, sequences=5, buckets=4)
    printed = task.measure(generator, "m", tmp_path)
    rows = torch.from_numpy(ids[: 5 * 29].reshape(5, 29))
    with torch.no_grad():
        logits = generator.model(rows)[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(5, 28)
    found = pq.read_table(tmp_path / "perplexity.parquet").to_pylist()
    assert [row["begin"] for row in found] == [1, 8, 15, 22] and found[-1]["end"] == 29
    for row in found:
        part = expected[:, row["begin"] - 1 : row["end"] - 1].mean(1)
        assert row["loss"] == pytest.approx(float(part.mean()), rel=1e-5) and row["tokens"] == 35
        half = 1.96 * float(part.std()) / 5**0.5
        assert row["high"] - row["low"] == pytest.approx(2 * half, rel=1e-4)
    assert printed.count("\n") == 4 and (tmp_path / "perplexity.png").stat().st_size > 1000


def test_perplexity_of_a_token_dataset(dataset: Path, tmp_path: Path) -> None:
    """Sequences longer than those of the dataset are cut from its tokens in order."""
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer" / "tokenizer.json"))
    model = Transformer(ModelConfig(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1))
    model.initialise(0)
    generator = Generator(model, tokenizer)
    losses = Perplexity(data=str(dataset), sequences=3).losses(generator, 100)
    first = pq.read_table(dataset / "rows" / "part-0000000.parquet").column("input_ids")
    ids = torch.tensor([token for row in first.to_pylist() for token in row][:300]).view(3, 100)
    with torch.no_grad():
        logits = model(ids)[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(3, 99)
    assert np.abs(losses - expected.numpy()).max() < 1e-4
    with pytest.raises(FactoryError, match="another tokenizer"):
        Perplexity(data=str(dataset)).losses(Generator(model, numbers(320)), 100)
    data = TokenDataset(dataset, 0.3, 1)
    (span,) = data.evaluation
    held = Perplexity(data=str(dataset), sequences=1, evaluation_share=0.3, seed=1).losses(generator, 64)
    ids = torch.from_numpy(span.shard.read(0, 64)).long()[None]
    with torch.no_grad():
        expected = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none")
    assert np.abs(held[0] - expected.numpy()).max() < 1e-4, "what a training with these options holds out"
    with pytest.raises(FactoryError, match="has no 100,000 tokens in a row"):
        Perplexity(data=str(dataset)).losses(generator, 100_000)


def test_heat_maps(tmp_path: Path) -> None:
    same = {"model": "m", "task": "ruler", "subtask": "niah single"}
    rows = [same | {"length": n, "depth": d / 20, "score": d % 2} for n in (10, 20) for d in range(21)]
    (path,) = results.heatmaps([*rows, *(row | {"subtask": "vt", "depth": None} for row in rows)], tmp_path)
    assert path.name == "ruler-niah-single.png"
    header = path.read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:24])
    assert header[:4] == b"\x89PNG" and width > 300 and height > 300
    assert results.heatmaps(rows[:1], tmp_path) == [], "one cell is no map"


def test_depths_that_differ_by_length_share_rows() -> None:
    """Of 5 places among 11 pairs and among 24."""
    rows = [{"length": n, "depth": d / (n - 1), "score": 1.0} for n, of in PLACES.items() for d in of]
    lengths, depths, values = results.cells(rows)
    assert lengths == [11, 24] and depths == [0, 0.25, 0.5, 0.75, 1] and (values == 1).all()
    exact = [{"length": n, "depth": d, "score": d} for n in (1, 2) for d in (0.1, 0.9)]
    _, depths, values = results.cells(exact)
    assert depths == [0.1, 0.9] and values.tolist() == [[0.1, 0.1], [0.9, 0.9]]
    _, depths, values = results.cells(exact[:3])  # a run that broke off
    assert depths == [0.1, 0.9] and np.isnan(values[1, 1])


PLACES = {11: (0, 2, 5, 8, 10), 24: (0, 6, 12, 17, 23)}

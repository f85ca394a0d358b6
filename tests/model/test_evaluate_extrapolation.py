"""Lengths beyond the trained one, as the demo shows them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.evaluate import extrapolation
from model.evaluate.extrapolation import ASKED, NONE, TASKS, copy, main, needles


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The command takes one thread; other tests get theirs back."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def test_answers_stand_where_they_are_said_to() -> None:
    ids, answers, back = copy(7, 64, torch.Generator().manual_seed(0))
    asked = (answers != NONE).nonzero().tolist()
    assert asked
    for row, place in asked:
        first = place - round(float(back[row, place]) * 64)
        assert ids[row, first] == answers[row, place], "what followed the token the first time"
        assert ids[row, first - 1] == ids[row, place]
    ids, answers, back = needles(7, 64, torch.Generator().manual_seed(0))
    asked = (answers != NONE).nonzero().tolist()
    assert len(asked) == 7 * ASKED
    for row, place in asked:
        pair = int(ids[row, place - round(float(back[row, place]) * 64)])
        key, value = divmod(pair, extrapolation.VALUES)
        assert int(ids[row, place]) == extrapolation.KEYS * extrapolation.VALUES + key
        assert int(answers[row, place]) == TASKS["needles"].vocabulary - extrapolation.VALUES + value


def test_needles_beyond_the_trained_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At four times the length plain RoPE fails; YaRN, dual chunks and, as is said, interpolation hold."""
    assert main([f"out={tmp_path}", "fast=true"]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if not line.startswith("  length")]
    rows = {
        line[:22].strip(): [float(x) for x in line[22:].split()[:3]]
        for line in lines
        if "  1.0" in line or "  0." in line
    }
    assert rows["plain RoPE"][0] > 0.95 and rows["plain RoPE"][2] < 0.8
    assert min(rows[way][2] for way in ("YaRN", "DCA", "interpolation")) > 0.93
    held = json.loads((tmp_path / "extrapolation.json").read_text())
    assert [round(share, 3) for share, _ in held["tasks"]["needles"]["YaRN"]] == rows["YaRN"]
    parts = held["tasks"]["needles"]["plain RoPE"][2][1]
    assert parts[0] > parts[4] + 0.3, "what lies far back is lost"
    assert (tmp_path / "extrapolation.png").read_bytes()[:4] == b"\x89PNG"
    assert "Not shown" in printed

    monkeypatch.setattr(extrapolation, "PATIENCE", 0)  # what would learn now would fail
    (tmp_path / "extrapolation.png").unlink()
    assert main([f"out={tmp_path}", "fast=true"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line in lines] == lines
    assert (tmp_path / "extrapolation.png").exists()


def test_where_nothing_is_asked_there_is_no_share() -> None:
    model = extrapolation.Transformer(
        extrapolation.ModelConfig(
            vocab_size=TASKS["copy"].vocabulary,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=32,
        )
    )
    ((whole, parts),) = extrapolation.measure(model, TASKS["copy"], {}, seed=0, sequences=20, times=(1,))
    assert 0 <= whole < 0.2 and math.isnan(parts[4]) and not math.isnan(parts[2])
    assert " -" in extrapolation.table({"plain": [(whole, parts)]}, times=(4,))


def test_wrong_words_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, message in (
        ([], "usage"),
        (["ot=x"], "did you mean 'out'?"),
        ([f"out={tmp_path}", "fast=1"], "fast must be of type bool"),
        ([f"out={tmp_path}", 'tasks=["neddles"]'], "no 'neddles'"),
    ):
        assert main(given) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1

"""Scaling laws: the public ones say what their papers say, a fit finds a known law, a recipe may ask for it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from factory.engine.errors import FactoryError
from model import train
from model.config import ModelConfig, Schedule, StageConfig, TrainConfig, TrainRecipe
from model.data import open_datasets
from model.pretrain import Stopped
from model.recipe import load_recipe, preset
from model.scaling import Grid, grid
from model.scaling.__main__ import main
from model.scaling.fit import fit, fit_power, optimum
from model.scaling.law import (
    BUILT_IN,
    Law,
    PowerLaw,
    Scale,
    compute,
    load_law,
    parameters,
    resolve,
    scale_of,
    whole_scale,
)
from model.scaling.law import sequences as batch_for
from model.transformer import Transformer


def deepseek(layers: int, width: int, heads: int = 1, groups: int = 1) -> ModelConfig:
    return ModelConfig(
        model_type="llama",
        vocab_size=102400,
        hidden_size=width,
        intermediate_size=round(width * 8 / 3),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        tie_word_embeddings=False,
    )


@pytest.mark.parametrize(
    ("layers", "width", "size", "per_token"),
    [
        (8, 512, 25.2e6, 352e6),
        (12, 768, 84.9e6, 963e6),
        (24, 1024, 302e6, 3.02e9),
        (24, 2048, 1.21e9, 9.66e9),
        (80, 8192, 64.4e9, 419e9),
    ],
)
def test_operations_a_token_are_those_of_deepseek_llm(layers: int, width: int, size: float, per_token: float) -> None:
    """arXiv 2401.02954, table 3 (length 4,096)."""
    config = deepseek(layers, width)
    assert parameters(config) == pytest.approx(size, rel=0.003)
    assert compute(config, 4096) == pytest.approx(per_token, rel=0.003)


@pytest.mark.parametrize(
    ("config", "rate", "batch"),
    [(deepseek(30, 4096, 32, 32), 4.2e-4, 2304), (deepseek(95, 8192, 64, 8), 3.2e-4, 4608)],
    ids=["7B", "67B"],
)
def test_deepseek_llm_was_trained_as_its_law_says(config: ModelConfig, rate: float, batch: int) -> None:
    """arXiv 2401.02954, table 2: 2T tokens, sequences of 4,096."""
    scale = scale_of(config, 2 * 10**12, 4096)
    law = BUILT_IN["deepseek"]
    assert law.batch_tokens is not None
    assert law.learning_rate(scale) == pytest.approx(rate, rel=0.05)
    assert law.batch_tokens(scale) == pytest.approx(batch * 4096, rel=0.1)
    assert len(law.outside(scale)) == 1 and "1e+17 to 2e+19" in law.outside(scale)[0]


def test_step_law() -> None:
    """arXiv 2503.04715, equation 1, at its test point of 1B parameters and 100B tokens."""
    law, scale = BUILT_IN["step"], Scale(1e9, 1e11, 6e20)
    assert law.batch_tokens is not None
    assert law.learning_rate(scale) == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307)
    assert law.batch_tokens(scale) == pytest.approx(0.58 * 1e11**0.571)
    assert law.outside(scale) == [] and law.learning_rate.interval(scale) is None
    assert [line[:1] for line in law.outside(Scale(1e6, 1e13, 1))] == ["N", "D"]


@pytest.mark.parametrize(
    ("name", "size"), [("qwen2.5-0.5b", 0.36e9), ("qwen2.5-1.5b", 1.31e9), ("qwen2.5-72b", 70.0e9)]
)
def test_parameters_without_embedding_are_those_of_the_model_cards(name: str, size: float) -> None:
    assert parameters(ModelConfig(**preset(name))) == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_that_a_token_uses(tied: bool) -> None:
    options: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "tie_word_embeddings": tied,
    }
    dense = ModelConfig(**options)
    layers = Transformer(dense).model.layers
    assert parameters(dense) == sum(p.numel() for p in layers.parameters()) + 16, "and the last norm"
    sparse = ModelConfig(
        **options, model_type="qwen2_moe", num_experts=8, num_experts_per_tok=2, moe_intermediate_size=8
    )
    expert = 3 * 16 * 8
    wider = dataclasses.replace(sparse, num_experts=9)
    assert parameters(wider) - parameters(sparse) == 4 * 16, "one more expert is a row of the router in each layer"
    more = dataclasses.replace(sparse, num_experts_per_tok=3)
    assert parameters(more) - parameters(sparse) == 4 * expert


# The fit

TRUTH = {"rate": (3.0, -0.7, 0.3), "batch": (-0.5, 0.57)}
BOWL = np.array([[0.05, -0.02], [-0.02, 0.04]])  # the second derivatives of the loss


def drawn(rng: np.random.Generator, noise: float, batches: int = 5, **changes: Any) -> list[dict[str, Any]]:
    """The rows of a grid whose optima follow TRUTH: steps of 2 in learning rate and batch around the best."""
    rows = []
    for number, size in enumerate((1e5, 1e6, 1e7)):
        for tokens in (1e7, 1e8, 1e9):
            rate = TRUTH["rate"] @ np.array([1, math.log(size), math.log(tokens)])
            batch = TRUTH["batch"] @ np.array([1, math.log(tokens)])
            for i in range(-3, 4):
                for j in range(-(batches // 2), batches // 2 + 1):
                    tried = np.array([round(rate / math.log(2)) + i, round(batch / math.log(2)) + j])
                    x = tried * math.log(2) - [rate, batch]
                    rows.append(
                        {
                            "size": number,
                            "parameters": size,
                            "tokens": tokens,
                            "compute": 6 * size * tokens,
                            "learning_rate": 2.0 ** tried[0],
                            "batch_tokens": 2.0 ** tried[1],
                            "loss": 3 + 0.5 * x @ BOWL @ x + noise * rng.standard_normal(),
                            "evaluation_loss": None,
                            "diverged": False,
                            **changes,
                        }
                    )
    return rows


def test_a_known_law_lies_in_the_intervals_as_often_as_they_say() -> None:
    """95% of the time, over 200 grids drawn with noise; and the errors of the optima are as large as they scatter."""
    inside, misses = np.zeros(5), []
    for seed in range(200):
        found = fit(drawn(np.random.default_rng(seed), 0.005))
        assert found.learning_rate and found.batch_tokens
        rate, batch = found.learning_rate.intervals(), found.batch_tokens.intervals()
        ends = [rate["intercept"], rate["N"], rate["D"], batch["intercept"], batch["D"]]
        truth = [*TRUTH["rate"], *TRUTH["batch"]]
        inside += [low <= value <= high for (low, high), value in zip(ends, truth, strict=True)]
        one = next(one for one in found.optima if not one.problem)
        best = TRUTH["rate"] @ np.array([1, math.log(one.scale.N), math.log(one.scale.D)])
        misses.append((math.log(one.learning_rate) - best) / one.errors(found.variance)[0])
    assert np.all(inside / 200 > 0.90) and np.all(inside / 200 < 0.99), inside / 200
    assert 0.8 < np.std(misses) < 1.25


def test_the_intervals_shrink_with_the_noise_and_hold_between_the_points() -> None:
    rough, fine = (fit(drawn(np.random.default_rng(1), noise)).learning_rate for noise in (0.005, 0.0005))
    assert rough and fine
    assert all(small < large / 3 for small, large in zip(fine.errors, rough.errors, strict=True))
    scale = Scale(3e6, 3e8, 1)
    low, high = rough.power.interval(scale) or (0, 0)
    truth = math.exp(TRUTH["rate"] @ np.array([1, math.log(scale.N), math.log(scale.D)]))
    assert low < truth < high < low * 1.1
    far = rough.power.interval(Scale(3e10, 3e8, 1)) or (0, 0)
    assert far[1] / far[0] > high / low, "it widens where there are no points"
    assert fine.left_out_error < rough.left_out_error < 0.1


def test_the_fit_is_that_of_curve_fit() -> None:
    rng = np.random.default_rng(5)
    scales = [Scale(n, d, 1) for n in (1e5, 1e6, 3e7) for d in (1e7, 2e8, 1e9)]
    errors = rng.uniform(0.02, 0.2, len(scales))
    y = 3 - 0.7 * np.log([s.N for s in scales]) + 0.3 * np.log([s.D for s in scales]) + errors * rng.standard_normal(9)
    ours = fit_power(scales, np.exp(y).tolist(), errors.tolist(), ("N", "D"))

    def plane(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
        return a + b * x[0] + c * x[1]

    x = np.log([[s.N for s in scales], [s.D for s in scales]])
    best, covariance = optimize.curve_fit(plane, x, y, sigma=errors, absolute_sigma=False)
    assert [ours.power.intercept, *ours.power.exponents.values()] == pytest.approx(best.tolist(), rel=1e-5)
    assert np.array(ours.power.covariance) == pytest.approx(covariance, rel=1e-4)
    missed = []
    for n in range(9):
        keep = np.arange(9) != n
        others, _ = optimize.curve_fit(plane, x[:, keep], y[keep], sigma=errors[keep])
        missed.append(y[n] - plane(x[:, n], *others))
    assert ours.left_out_error == pytest.approx(float(np.sqrt(np.mean(np.square(missed)))), rel=1e-4)


@settings(deadline=None, max_examples=60)
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(-0.9, 0.9), st.floats(-0.6, 0.6), st.floats(-0.6, 0.6))
def test_the_minimum_of_any_bowl_is_found(one: float, other: float, lean: float, rate: float, batch: float) -> None:
    bowl = np.array([[one, lean * math.sqrt(one * other)], [lean * math.sqrt(one * other), other]])
    rows = drawn(np.random.default_rng(0), 0.0)[:35]
    for row in rows:
        x = np.log([row["learning_rate"], row["batch_tokens"]])
        centre = np.log([rows[17]["learning_rate"], rows[17]["batch_tokens"]])  # the middle of the 7 x 5
        row["loss"] = 2 + 0.5 * (x - centre - [rate, batch]) @ bowl @ (x - centre - [rate, batch])
    found = optimum(rows)
    if found.problem:  # a bowl so long that its best grid point is on the edge
        assert "edge" in found.problem
        return
    assert math.log(found.learning_rate) - centre[0] == pytest.approx(rate, abs=1e-6)
    assert math.log(found.batch_tokens) - centre[1] == pytest.approx(batch, abs=1e-6)
    assert found.loss == pytest.approx(2)


def test_an_optimum_at_the_edge_is_told_and_left_out() -> None:
    rows = drawn(np.random.default_rng(2), 0.001)
    kept = [row for row in rows if not (row["size"] == 2 and row["tokens"] == 1e9 and row["learning_rate"] > 0.07)]
    found = fit(kept)
    *others, edge = found.optima
    assert not any(one.problem for one in others)
    assert re.search(r"the minimum in learning_rate lies at the edge, 0\.1", edge.problem)
    law = found.law("x", "y")
    assert law.details["points"] == 8 and law.details["left_out"][0]["why"] == edge.problem
    assert found.learning_rate and found.learning_rate.power.exponents["N"] == pytest.approx(-0.7, abs=0.02)


def test_what_is_no_bowl_is_told() -> None:
    rows = drawn(np.random.default_rng(2), 0.0)[:35]
    assert optimum([{**row, "diverged": True} for row in rows]).problem == "every training diverged"
    saddle = [{**row, "loss": 6 - row["loss"]} for row in rows]
    assert re.search("edge|no minimum", optimum(saddle).problem)
    assert "no minimum" in optimum([{**row, "loss": 3.0} for row in rows]).problem
    lonely = [{**row, "diverged": row["loss"] > sorted(r["loss"] for r in rows)[3]} for row in rows]
    assert "too few" in optimum(lonely).problem


def test_diverged_trainings_do_not_count_and_a_held_out_loss_does() -> None:
    rows = drawn(np.random.default_rng(3), 0.001)
    for row in rows:
        row["evaluation_loss"] = row["loss"]
        row["loss"] = math.nan
        if row["learning_rate"] == max(r["learning_rate"] for r in rows if r["size"] == row["size"]):
            row |= {"diverged": True, "evaluation_loss": None, "loss": None}
    found = fit(rows)
    assert found.learning_rate and found.learning_rate.power.exponents["D"] == pytest.approx(0.3, abs=0.02)


def test_one_batch_size_fits_the_learning_rate_alone(tmp_path: Path) -> None:
    found = fit(drawn(np.random.default_rng(4), 0.001, batches=1))
    assert found.learning_rate and not found.batch_tokens and "three or more" in found.problem
    assert found.learning_rate.power.exponents["N"] == pytest.approx(-0.7, abs=0.05)
    law = found.law("x", "y")
    law.save(tmp_path / "law.json")
    with pytest.raises(FactoryError, match="no batch size"):
        batch_for(load_law(str(tmp_path / "law.json")), TrainRecipe(model=ModelConfig(vocab_size=9)), 8)


def test_variables_that_do_not_vary_are_left_away_and_too_few_points_are_no_law() -> None:
    rows = [row for row in drawn(np.random.default_rng(4), 0.001) if row["size"] == 1]
    found = fit(rows, batch_by_size=True)
    assert found.learning_rate and set(found.learning_rate.power.exponents) == {"D"}
    assert found.batch_tokens and set(found.batch_tokens.power.exponents) == {"D"}
    few = fit([row for row in rows if row["tokens"] < 1e9])
    assert few.problem == "no law of the learning rate: 2 optima inside the grid are too few for 2 unknowns"
    with pytest.raises(FactoryError, match="no law of the learning rate"):
        few.law("x", "y")
    assert "0 optima" in fit([{**row, "diverged": True} for row in rows]).problem


# In a recipe


def test_a_law_is_written_and_read_again(tmp_path: Path) -> None:
    law = fit(drawn(np.random.default_rng(6), 0.005), batch_by_size=True).law("mine", "drawn")
    law.save(tmp_path / "law.json")
    again = load_law(str(tmp_path / "law.json"))
    assert again.batch_tokens and law.batch_tokens and set(again.batch_tokens.exponents) == {"N", "D"}
    scale = Scale(2e6, 3e8, 1)
    assert again.learning_rate(scale) == law.learning_rate(scale)
    assert again.learning_rate.interval(scale) == law.learning_rate.interval(scale)
    assert again.range == law.range == {"N": (1e5, 1e7), "D": (1e7, 1e9)}


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 10**6), st.sampled_from(["step", "deepseek"]))
def test_the_batch_is_right_for_the_tokens_that_it_makes(steps: int, name: str) -> None:
    recipe = TrainRecipe(model=ModelConfig(vocab_size=100), train=TrainConfig(steps=steps))
    law = BUILT_IN[name]
    assert law.batch_tokens is not None
    tokens = batch_for(law, recipe, 1)
    scale = scale_of(recipe.model, 1, 1)
    wanted = law.batch_tokens(Scale(scale.N, steps * tokens, scale.C * steps * tokens))
    assert tokens == pytest.approx(wanted, rel=0.01, abs=1.5)


def start(recipe: Path, dataset: Path, *words: str) -> TrainRecipe:
    loaded = load_recipe(recipe, [f"data={dataset}", *words])
    return train.fit(loaded, open_datasets(loaded.data))


def test_a_recipe_takes_the_law_and_says_so(
    recipe: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ("learning_rate=scaling", "batch_size=scaling", "train.steps=20", "scaling=step")
    assert train.main([str(recipe), f"data={dataset}", f"out={out}", *words]) == 0
    resolved = json.loads((out / "recipe.json").read_text())
    size = parameters(ModelConfig(**{k: v for k, v in resolved["model"].items() if k != "mlp_only_layers"}))
    batch, rate = resolved["train"]["batch_size"], resolved["optimizer"]["learning_rate"]
    assert batch == max(1, round((0.58 * 20**0.571) ** (1 / 0.429) / 32)) == 1
    assert rate == pytest.approx(1.79 * size**-0.713 * (20 * batch * 32) ** 0.307)
    printed = capsys.readouterr()
    assert f"batch_size = 1 (32 tokens) and learning_rate = {rate:.4g} by the law 'step'" in printed.out
    assert f"N = {size:.3g} lies outside the points of the law 'step', 6e+07 to 1.07e+09" in printed.err
    rows = pq.read_table(out / "metrics.parquet").to_pylist()
    assert max(row["learning_rate"] for row in rows) == pytest.approx(rate)
    assert rows[-1]["tokens"] == 20 * 32


def test_with_stages_the_tokens_are_those_of_all_of_them() -> None:
    asking: Any = "scaling"
    stages = (
        StageConfig(name="a", tokens=3_000_000, sequence_length=64),
        StageConfig(name="b", tokens=1_000_000, sequence_length=256, optimizer=Schedule(learning_rate=asking)),
    )
    model = ModelConfig(vocab_size=100)
    made = resolve(TrainRecipe(model=model, stages=stages, train=TrainConfig(batch_size=asking)), 32)
    rate = 1.79 * parameters(model) ** -0.713 * 4e6**0.307
    assert made.train.batch_size == round(0.58 * 4e6**0.571 / 64)
    assert made.stages[1].optimizer and made.stages[1].optimizer.learning_rate == pytest.approx(rate)
    assert made.optimizer.learning_rate == 1e-3
    assert pytest.approx(3e6 * compute(model, 64) + 1e6 * compute(model, 256)) == whole_scale(made, 32).C


def test_a_number_stays_and_a_law_of_ones_own_is_read(
    recipe: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(recipe, dataset).optimizer.learning_rate == 1e-2
    assert capsys.readouterr().out == ""
    own = Law(
        "own", "a test", PowerLaw(math.log(0.5), {"D": -0.5}, [[0.01, 0.0], [0.0, 0.0]], 2.0), None, {"D": (1, 1e9)}
    )
    own.save(tmp_path / "law.json")
    made = start(recipe, dataset, "learning_rate=scaling", f"scaling={tmp_path / 'law.json'}")
    rate = 0.5 * (40 * 8 * 32) ** -0.5
    assert made.optimizer.learning_rate == pytest.approx(rate) and made.train.batch_size == 8
    low, high = rate * math.exp(-0.2), rate * math.exp(0.2)
    printed = capsys.readouterr()
    assert f"(95% {low:.3g} to {high:.3g}) by the law 'own'" in printed.out and printed.err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("learning_rate=scaling", "scaling=stepp"), r"no such file and not a built-in law \(did you mean 'step'\?\)"),
        (
            ("learning_rate=scaled",),
            r"optimizer\.learning_rate = 'scaled': must be of type float or 'scaling', not str",
        ),
        (("learning_rate=scaling", "scaling=FILE"), r"not a law that model\.scaling wrote"),
        (("scaling.tokens=[0]",), r"scaling\.tokens = \[0\]: each must be above 0"),
        (("learning_rates=[1e-3, 1e-3]",), r"one is given twice"),
        (("seeds=0",), r"scaling\.seeds = 0"),
        (("sizes=3",), r"scaling\.sizes = 3: must be"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...],
    message: str,
    recipe: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "law.json").write_text('{"learning_rate": {"slope": 1}}')
    words = tuple(word.replace("FILE", str(tmp_path / "law.json")) for word in words)
    assert train.main([str(recipe), f"data={dataset}", f"out={tmp_path / 'run'}", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error


# The grid

SECTION = """
[scaling]
sizes = [{ hidden_size = 16, intermediate_size = 32 }, { hidden_size = 32, num_hidden_layers = 1 }]
tokens = [512, 1_024]
learning_rates = [3e-3, 1e-2, 3e-2, 1e-1]
batch_sizes = [2]
"""


@pytest.fixture
def gridded(recipe: Path) -> Path:
    recipe.write_text(recipe.read_text() + SECTION)
    return recipe


def test_the_grid_is_trained_fitted_and_goes_on(
    gridded: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = [str(gridded), f"data={dataset}", "learning_rates=[3e-3, 1e-2, 3e-2, 1e-1, 1e30]"]
    assert main([*words, f"out={whole}"]) == 0
    printed = capsys.readouterr()
    rows = pq.read_table(whole / "points.parquet").to_pylist()
    assert len(rows) == 2 * 2 * 5 and "20/20" in printed.err and "0:00 left" in printed.err
    for row in rows:
        assert row["diverged"] == (row["learning_rate"] == 1e30) == (row["loss"] is None)
        assert row["batch_tokens"] == 64 and row["seconds"] > 0
    assert {row["parameters"] for row in rows if row["size"] == 0} == {parameters(sized(gridded, 0))}
    steady = [row for row in rows if not row["diverged"]]
    assert all(abs(row["loss"] - row["evaluation_loss"]) < 1 for row in steady)
    best = min(steady, key=lambda row: row["evaluation_loss"])
    assert best["evaluation_loss"] < math.log(320) - 1 and best["tokens"] == 1024, "it has learned something"
    for name in ("losses.png", "law.png"):
        assert (whole / name).read_bytes()[:4] == b"\x89PNG"

    class Killed(grid.Progress):
        def __call__(self, point: grid.Point, row: dict[str, Any], seconds: float) -> None:
            super().__call__(point, row, seconds)
            if self.number == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    def stop(*_: Any) -> None:
        raise Stopped(0, signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(grid, "Progress", Killed)
            assert main([*words, f"out={cut}"]) == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "run the same command to go on" in capsys.readouterr().err
    first = pq.read_table(cut / "points.parquet").to_pylist()
    assert len(first) == 5
    assert main([*words, f"out={cut}"]) == 0
    assert "5 of 20 trainings are done already" in capsys.readouterr().err
    again = pq.read_table(cut / "points.parquet").to_pylist()
    assert again[:5] == first, "what had ended was not trained again"
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in rows]
    assert not (cut / "running").exists()


def sized(recipe: Path, number: int) -> ModelConfig:
    loaded = load_recipe(recipe)
    return dataclasses.replace(grid.sized(loaded.model, loaded.scaling.sizes[number]), vocab_size=320)


def test_a_training_that_is_cut_off_goes_on_where_it_was(gridded: Path, dataset: Path, tmp_path: Path) -> None:
    loaded = start(gridded, dataset, "scaling.tokens=[4096]", "learning_rates=[1e-2]", "seeds=2", "save_every=7")
    data = open_datasets(loaded.data)
    first, *_, last = grid.points(loaded, data)
    assert first.recipe.train.seed == 0 and last.recipe.train.seed == 1 and first.row["key"] != last.row["key"]
    assert first.recipe.train.steps == 64 and first.recipe.optimizer.warmup_steps == 5
    whole = grid.train_point(first, data, tmp_path / "whole")
    real = grid.Pretraining.run

    def interrupted(self: grid.Pretraining, *given: Any) -> None:
        def tell(row: dict[str, Any]) -> None:
            if row["step"] == 20:
                os.kill(os.getpid(), signal.SIGTERM)

        real(self, tell)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(grid.Pretraining, "run", interrupted)
        grid.train_point(first, data, tmp_path / "cut")
    assert grid.Pretraining(first.recipe, data, tmp_path / "cut").step == 20
    assert {**grid.train_point(first, data, tmp_path / "cut"), "seconds": 0} == {**whole, "seconds": 0}


def test_a_grid_that_misses_something_is_one_line(
    gridded: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for word, message in (
        ("batch_sizes=[]", r"scaling\.batch_sizes is missing"),
        (
            "sizes=[{hiden_size = 8}]",
            r"unknown key 'hiden_size' in \[scaling\.sizes\] \(did you mean 'hidden_size'\?\)",
        ),
        ("sizes=[{hidden_size = 9}]", r"model\.hidden_size = 9 must be"),
        ("scaling.tokens=[16]", r"scaling\.tokens = 16 is less than a step of 2 sequences of 32 tokens"),
    ):
        assert main([str(gridded), f"data={dataset}", f"out={tmp_path / 'run'}", word]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and re.search(message, error), error


def test_the_grid_asks_for_nothing_where_there_is_none(recipe: Path) -> None:
    assert load_recipe(recipe).scaling == Grid()
    assert resolve(load_recipe(recipe), 32) == load_recipe(recipe)

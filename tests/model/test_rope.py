"""Stretched positions are those of transformers, and by choice those of the YaRN paper."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from factory.engine.errors import FactoryError
from model.checkpoint import load_hf, save_hf
from model.config import ModelConfig
from model.options import section
from model.recipe import load_recipe
from model.rope import RopeScaling, frequencies, rotate, turns
from tests.model.conftest import greedy
from tests.model.test_transformer import build, ids, theirs

transformers = pytest.importorskip("transformers")

QWEN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
SCALINGS = [
    {"rope_type": "linear", "factor": 4.0},
    QWEN,
    QWEN | {"factor": 128.0, "beta_fast": 4.0, "original_max_position_embeddings": 8192},  # UltraLong
    QWEN | {"original_max_position_embeddings": 64, "attention_factor": 1.3},
    {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
    {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 512, "high_freq_factor": 3.0},
]


@pytest.mark.parametrize("theta", [1e3, 1e4, 5e5, 1e6, 1e7])
@pytest.mark.parametrize("size", [16, 64, 128])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_are_those_of_transformers(scaling: dict, size: int, theta: float) -> None:
    given = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} | scaling if "llama3" in scaling.values() else scaling
    config = transformers.Qwen2Config(
        hidden_size=2 * size, num_attention_heads=2, rope_theta=theta, rope_scaling=dict(given)
    )
    compute = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[scaling["rope_type"]]
    expected, factor = compute(config, torch.device("cpu"))
    found, ours = frequencies(size, theta, RopeScaling(**scaling), 1)
    assert (found / expected - 1).abs().max() < 2e-6
    assert ours == pytest.approx(factor)


def test_without_a_trained_length_it_is_the_models() -> None:
    said, unsaid = RopeScaling(**QWEN), RopeScaling(rope_type="yarn", factor=4.0)
    assert torch.equal(frequencies(128, 1e6, said, 7)[0], frequencies(128, 1e6, unsaid, 32768)[0])


@pytest.mark.parametrize("scaling", SCALINGS[1:4])
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_the_papers_ramp_is_over_rotations(scaling: dict, theta: float) -> None:
    """Each pair by itself, as the paper writes it."""
    found, _ = frequencies(128, theta, RopeScaling(**scaling, ramp="rotations"), 1)
    for pair, value in enumerate(found.tolist()):
        own = theta ** (-2 * pair / 128)
        wavelength = 2 * math.pi / own
        r = scaling["original_max_position_embeddings"] / wavelength
        alpha, beta = 1, scaling.get("beta_fast", 32.0)
        gamma = 0 if r < alpha else 1 if r > beta else (r - alpha) / (beta - alpha)
        assert value == pytest.approx((1 - gamma) * own / scaling["factor"] + gamma * own, rel=1e-5)


def test_the_two_ramps_differ_by_up_to_42_percent_for_qwen() -> None:
    ours = frequencies(128, 1e6, RopeScaling(**QWEN), 1)[0]
    paper = frequencies(128, 1e6, RopeScaling(**QWEN, ramp="rotations"), 1)[0]
    assert 0.35 < (ours / paper - 1).abs().max() < 0.8
    assert 0.35 < (paper / ours - 1).abs().max() < 0.45
    assert torch.equal(ours[:10], paper[:10]) and torch.equal(ours[-10:], paper[-10:])


def test_turns_give_products_that_depend_on_the_distance_alone() -> None:
    frequency, factor = frequencies(32, 1e4, RopeScaling(**SCALINGS[3]), 1)
    q, k = torch.randn(2, 1, 1, 1, 32, generator=torch.Generator().manual_seed(0))
    products = []
    for start in (0, 5, 300):
        turned = (rotate(x, turns(torch.tensor([start + at]), frequency, factor)) for x, at in ((q, 9), (k, 2)))
        products.append(float((next(turned) * next(turned)).sum()))
    assert products == pytest.approx([products[0]] * 3, abs=1e-4)


@pytest.mark.parametrize("scaling", [SCALINGS[0], SCALINGS[3], SCALINGS[5]])
def test_logits_and_greedy_generation_are_theirs(scaling: dict, tmp_path: Path) -> None:
    scaled = RopeScaling(**scaling)
    model = build(rope_scaling=scaled, max_position_embeddings=256, rope_theta=1e3)
    save_hf(model, tmp_path / "hf", None, None)
    other = theirs(tmp_path / "hf")
    tokens = ids(2, 200)
    expected = other(tokens).logits
    assert (model(tokens) - expected).abs().max() < 1e-4
    model.config = model.model.config = ModelConfig(**vars(model.config) | {"rope_scaling": None})
    assert (model(tokens) - expected).abs().max() > 1e-2, "the scaling matters"
    again = load_hf(tmp_path / "hf")
    assert again.config.rope_scaling == scaled
    expected = other.generate(tokens[:, :90], max_new_tokens=20, do_sample=False, pad_token_id=0)[:, 90:]
    assert torch.equal(greedy(again, tokens[:, :90], 20), expected)


@pytest.mark.parametrize("scaling", [{"type": "yarn", **{k: v for k, v in QWEN.items() if k != "rope_type"}}, QWEN])
def test_their_checkpoint_with_a_scaling_loads_here(scaling: dict, tmp_path: Path) -> None:
    config = transformers.Qwen2Config(
        vocab_size=101, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rope_theta=5e4, rope_scaling=dict(scaling), max_position_embeddings=131072,
    )  # fmt: skip
    torch.manual_seed(0)
    other = transformers.Qwen2ForCausalLM(config).eval()
    other.save_pretrained(tmp_path)
    model = load_hf(tmp_path)
    assert model.config.rope_scaling == RopeScaling(**QWEN) and model.config.rope_theta == 5e4
    assert (model(ids(2, 60)) - other(ids(2, 60)).logits).abs().max() < 1e-4


def test_a_recipe_says_it_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "long.toml"
    path.write_text('[model.rope_scaling]\nrope_type = "yarn"\nfactor = 4\nbeta_fast = 4\n')
    assert load_recipe(path).model.rope_scaling == RopeScaling(rope_type="yarn", factor=4.0, beta_fast=4.0)
    word = 'model.rope_scaling={rope_type="linear", factor=2}'
    assert load_recipe(path, [word]).model.rope_scaling == RopeScaling(rope_type="linear", factor=2.0)
    bad = {
        'rope_type = "yarn"': "no factor",
        'rope_type = "yarn"\nfactor = 0.5': "at least 1",
        'rope_type = "yarn"\nfactor = 2.0\nbeta_fast = 0.5': "must rise",
        'rope_type = "yearn"\nfactor = 2.0': "one of 'linear', 'yarn', 'llama3'",
        'rope_type = "yarn"\nfacter = 2.0': "unknown key 'facter'.*factor",
    }
    for lines, message in bad.items():
        path.write_text(f"[model.rope_scaling]\n{lines}\n")
        with pytest.raises(FactoryError, match=message):
            load_recipe(path)
    with pytest.raises(FactoryError, match="table"):
        section("model", ModelConfig, {"rope_scaling": 3}, "here")


def test_the_papers_ramp_and_the_trained_length_are_stored(tmp_path: Path) -> None:
    save_hf(
        build(rope_scaling=RopeScaling(rope_type="yarn", factor=2.0, ramp="rotations")), tmp_path / "hf", None, None
    )
    found = load_hf(tmp_path / "hf").config.rope_scaling
    assert found == RopeScaling(rope_type="yarn", factor=2.0, ramp="rotations", original_max_position_embeddings=2048)

"""The forward pass, the gradients and greedy generation are those of transformers' Qwen2ForCausalLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from factory.engine.errors import FactoryError
from model.checkpoint import load_hf, save_hf
from model.config import ModelConfig
from model.generate import main
from model.transformer import Cache, Transformer
from tests.model.conftest import greedy

transformers = pytest.importorskip("transformers")

SHAPES = [
    {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False},
    {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    {"num_attention_heads": 6, "num_key_value_heads": 1, "tie_word_embeddings": False, "rope_theta": 1e6},
    {"num_attention_heads": 3, "num_key_value_heads": 3, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
]


def build(**options: object) -> Transformer:
    values = {"vocab_size": 101, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3} | options
    model = Transformer(ModelConfig(**values))  # type: ignore[arg-type]
    model.initialise(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # biases and norms that matter
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def theirs(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 101, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_theirs(shape: dict, tmp_path: Path) -> None:
    model = build(**shape)
    save_hf(model, tmp_path / "hf", None, None)
    other = theirs(tmp_path / "hf")
    assert type(other).__name__ == "Qwen2ForCausalLM"
    names = dict(model.named_parameters())
    assert names.keys() == dict(other.named_parameters()).keys()
    tokens = ids(2, 37)
    logits, expected = model(tokens), other(tokens).logits
    assert (logits - expected).abs().max() < 1e-4
    for result in (logits, expected):
        torch.nn.functional.cross_entropy(result[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in other.named_parameters():
        difference = (names[name].grad - parameter.grad).abs().max() / parameter.grad.abs().max()
        assert difference < 1e-4, name


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_their_checkpoint_loads_here(shape: dict, tmp_path: Path) -> None:
    config = transformers.Qwen2Config(
        vocab_size=101, hidden_size=48, intermediate_size=80, num_hidden_layers=2, rope_theta=5e4, **shape
    )
    torch.manual_seed(0)
    other = transformers.Qwen2ForCausalLM(config).eval()
    other.save_pretrained(tmp_path)
    model = load_hf(tmp_path)
    tokens = ids(2, 20)
    assert model.config.rope_theta == 5e4
    assert (model(tokens) - other(tokens).logits).abs().max() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_generation_is_theirs(shape: dict, tmp_path: Path) -> None:
    model = build(**shape)
    save_hf(model, tmp_path / "hf", None, None)
    prompt = ids(3, 9)
    expected = theirs(tmp_path / "hf").generate(prompt, max_new_tokens=30, do_sample=False, pad_token_id=0)[:, 9:]
    assert torch.equal(greedy(model, prompt, 30), expected)


def test_the_cache_gives_what_one_pass_gives() -> None:
    model = build()
    tokens = ids(2, 40)
    cache = Cache(model.config, 2, 40, like=model.lm_head.weight)
    parts = torch.cat([model(part, cache) for part in tokens.split([7, 1, 1, 20, 11], dim=1)], dim=1)
    assert cache.length == 40
    assert (parts - model(tokens)).abs().max() < 1e-5


def test_no_token_sees_a_later_one() -> None:
    model = build()
    tokens = ids(1, 20)
    changed = tokens.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 101
    assert torch.equal(model(tokens)[:, :12], model(changed)[:, :12])


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FactoryError, match=r"no config\.json"):
        load_hf(tmp_path)
    folder = tmp_path / "hf"
    save_hf(build(), folder, None, None)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    metadata = {"format": "pt"}
    save_file(weights | {name: torch.zeros(3, 4)}, folder / "model.safetensors", metadata)
    with pytest.raises(FactoryError, match=rf"{name} has shape \(3, 4\).*\(80, 48\)"):
        load_hf(folder)
    save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors", metadata)
    with pytest.raises(FactoryError, match=f"{name} is missing"):
        load_hf(folder)
    save_file(weights | {"extra": torch.zeros(1)}, folder / "model.safetensors", metadata)
    with pytest.raises(FactoryError, match="unknown parameter extra"):
        load_hf(folder)
    (folder / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(FactoryError, match="safetensors"):
        load_hf(folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text('{"model_type": "mixtral"}')
    assert main([str(folder), "text"]) == 2
    assert "mixtral" in capsys.readouterr().err
    for text, message in (
        ("[1]", "not a JSON object"),
        ("{", "not valid JSON"),
        (json.dumps(described | {"max_position_embeddings": "many"}), "max_position_embeddings = 'many': must be"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(FactoryError, match=message):
            load_hf(folder)

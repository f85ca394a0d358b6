"""Experts, the Llama form and the published sizes: logits, gradients and losses are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from factory.engine.errors import FactoryError
from model.checkpoint import load_hf, save_hf
from model.config import ModelConfig
from model.moe import Experts, Routing, balance_loss, expert_load
from model.options import section
from model.presets import PRESETS
from model.recipe import load_recipe, preset
from model.rope import RopeScaling, frequencies
from model.transformer import Transformer
from tests.model.conftest import greedy

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 101, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
MOE = SMALL | {
    "model_type": "qwen2_moe",
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
LLAMA3 = {
    "model_type": "llama",
    "rope_theta": 1e3,
    "rope_scaling": RopeScaling(rope_type="llama3", factor=8.0, original_max_position_embeddings=32),
}
FORMS = {
    "moe": MOE | {"tie_word_embeddings": False},
    "moe-tied-mha": MOE | {"num_key_value_heads": 4},
    "moe-normalised": MOE | {"norm_topk_prob": True, "num_attention_heads": 6, "num_key_value_heads": 1},
    "moe-every-second": MOE | {"decoder_sparse_step": 2},
    "moe-but-one": MOE | {"mlp_only_layers": (1,), "rope_theta": 1e6, "rms_norm_eps": 1e-5},
    "moe-many-idle": MOE | {"num_experts": 60, "num_experts_per_tok": 1},
    "moe-all-chosen": MOE | {"num_experts": 3},
    "llama": SMALL | {"model_type": "llama", "tie_word_embeddings": False},
    "llama-tied-mqa": SMALL | {"model_type": "llama", "num_attention_heads": 6, "num_key_value_heads": 1},
    "llama3-rope": SMALL | LLAMA3,
    "qwen2": SMALL | {"tie_word_embeddings": False, "num_key_value_heads": 1},
}
NAMES = {"qwen2": "Qwen2ForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM", "llama": "LlamaForCausalLM"}


def build(options: dict) -> Transformer:
    config = ModelConfig(**options)
    config.check()
    model = Transformer(config)
    model.initialise(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # biases, norms and routers that matter
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def theirs(folder: Path, experts: str = "eager") -> torch.nn.Module:
    options = {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": experts}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 101, (batch, length), generator=torch.Generator().manual_seed(seed))


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    ours, expected = ours.detach(), expected.detach()
    return float((ours - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("form", FORMS)
def test_logits_losses_and_gradients_are_theirs(form: str, padded: bool, tmp_path: Path) -> None:
    model = build(FORMS[form])
    save_hf(model, tmp_path / "hf", None, None)
    other = theirs(tmp_path / "hf")
    assert type(other).__name__ == NAMES[model.config.model_type]
    names, expected = dict(model.named_parameters()), dict(other.named_parameters())
    assert {n: p.shape for n, p in names.items()} == {n: p.shape for n, p in expected.items()}

    tokens, real = ids(3, 41), torch.ones(3, 41, dtype=torch.long)
    if padded:
        real[1, 30:], real[2, 7:] = 0, 0
    sparse = model.config.model_type == "qwen2_moe"
    labels = tokens.masked_fill(real == 0, -100)
    options = {"output_router_logits": True} if sparse else {}
    result = other(tokens, attention_mask=real, labels=labels, **options)
    result.loss.backward()

    routings: list[Routing] = []
    logits = model(tokens, routings=routings)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    if sparse:
        assert len(routings) == sum(map(model.config.sparse, range(3)))
        assert all(
            relative(r.logits.view(3, 41, -1)[real == 1], t.view(3, 41, -1)[real == 1]) < 1e-4
            for r, t in zip(routings, result.router_logits, strict=True)
        )
        balance = balance_loss(routings, real.flatten() == 1)
        assert relative(balance, result.aux_loss) < 1e-5
        loss = loss + model.config.router_aux_loss_coef * balance
    loss.backward()
    assert relative(logits[real == 1], result.logits[real == 1]) < 1e-4
    assert relative(loss, result.loss) < 1e-5
    for name, parameter in expected.items():
        assert relative(names[name].grad, parameter.grad) < 1e-4, name  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_go_both_ways(form: str, tmp_path: Path) -> None:
    model = build(FORMS[form])
    save_hf(model, tmp_path / "ours", None, 7)
    other = theirs(tmp_path / "ours")
    other.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    for folder in ("ours", "theirs"):
        again = load_hf(tmp_path / folder)
        assert again.config == model.config
        state = again.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        assert again.parameter_count() == model.parameter_count()
        assert all(parameter.requires_grad for parameter in again.parameters())
    stored = load_file(tmp_path / "ours" / "model.safetensors").keys()
    if form == "moe":
        assert "model.layers.0.mlp.experts.7.up_proj.weight" in stored, "as in released checkpoints"
    prompt = ids(2, 9)
    expected = other.generate(prompt, max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None)[:, 9:]
    assert torch.equal(greedy(model, prompt, 20), expected)


def test_their_random_models_load_here(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    moe = {"num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = transformers.Qwen2MoeConfig(vocab_size=101, shared_expert_intermediate_size=24, **moe, **shape)
    scaled = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = scaled | {"original_max_position_embeddings": 64}
    others = (
        transformers.Qwen2MoeForCausalLM(config),
        transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=101, rope_parameters=rope, **shape)),
    )
    for number, other in enumerate(others):
        folder = tmp_path / str(number)
        other.eval().save_pretrained(folder)
        assert relative(load_hf(folder)(ids(2, 50)), other(ids(2, 50)).logits) < 1e-4


def test_experts_in_one_tensor_load(tmp_path: Path) -> None:
    """The two tensors a layer that transformers 5 has in memory, stored as they are."""
    model = build(FORMS["moe"])
    save_hf(model, tmp_path, None, None)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(load_hf(tmp_path)(ids(1, 12)), model(ids(1, 12)))
    assert relative(theirs(tmp_path)(ids(1, 12)).logits, model(ids(1, 12))) < 1e-4


def test_experts_are_a_plain_sum_over_tokens() -> None:
    """Against the definition, token by token, in float64; some experts get no token, one gets nearly all."""
    generator = torch.Generator().manual_seed(0)
    experts = Experts(ModelConfig(**FORMS["moe"]))
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    x = torch.randn(19, 48, generator=generator)
    chosen = torch.tensor([[2, 5, 7]] * 17 + [[0, 2, 5], [7, 0, 2]])
    weights = torch.rand(19, 3, generator=generator)
    inputs = [x.requires_grad_(), weights.requires_grad_(), *experts.parameters()]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    rows = []
    for token in range(19):
        total = torch.zeros(48, dtype=torch.float64)
        for place in range(3):
            gate, up = (exact[2][chosen[token, place]] @ exact[0][token]).chunk(2)
            total = total + exact[1][token, place] * (exact[3][chosen[token, place]] @ (F.silu(gate) * up))
        rows.append(total)
    expected, y = torch.stack(rows), experts(x, chosen, weights)
    assert relative(y, expected) < 1e-6
    direction = torch.randn(19, 48, generator=generator)
    found = torch.autograd.grad(y, inputs, direction)
    for one, other in zip(found, torch.autograd.grad(expected, exact, direction.double()), strict=True):
        assert relative(one, other) < 1e-6
    idle = [1, 3, 4, 6]
    assert not found[2][idle].any() and not found[3][idle].any()


def test_the_same_weights_each_time() -> None:
    model, tokens = build(FORMS["moe"]), ids(4, 64)
    results = []
    for _ in range(2):
        model.zero_grad()
        model(tokens).square().mean().backward()
        results.append([parameter.grad.clone() for parameter in model.parameters()])  # type: ignore[union-attr]
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_balance_loss_and_load() -> None:
    def routed(chosen: list[list[int]], logits: torch.Tensor) -> Routing:
        probabilities = logits.softmax(-1)
        return Routing(logits, probabilities, torch.tensor(chosen), torch.ones(len(chosen), 2))

    even = routed([[0, 1], [2, 3], [1, 2], [3, 0]], torch.zeros(4, 4))
    assert balance_loss([even]).item() == pytest.approx(2), "the number of experts a token, where all are used alike"
    assert (expert_load([even]) == 1).all()
    logits = torch.tensor([[20.0, 20.0, 0.0, 0.0]]).repeat(4, 1)
    uneven = routed([[0, 1]] * 4, logits)
    assert balance_loss([uneven]).item() == pytest.approx(4), "half the experts do all the work"
    assert expert_load([even, uneven]).tolist() == [[1, 1, 1, 1], [2, 2, 0, 0]]
    padded = routed([[0, 1], [2, 3], [0, 1], [0, 1]], torch.zeros(4, 4))
    real = torch.tensor([True, True, False, False])
    assert balance_loss([padded], real).item() == pytest.approx(2)
    assert (expert_load([padded], real) == 1).all()


def test_llama3_frequencies() -> None:
    """Fast rotations stay, slow ones are divided by the factor, and all are theirs."""
    scaling = RopeScaling(**preset("llama-3.1-8b")["rope_scaling"])
    found, _ = frequencies(128, 5e5, scaling, 131072)
    plain, _ = frequencies(128, 5e5, None, 131072)
    wavelength = 2 * torch.pi / plain
    assert torch.equal(found[wavelength < 2048], plain[wavelength < 2048])
    assert torch.allclose(found[wavelength > 8192], plain[wavelength > 8192] / 8, rtol=1e-6)
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = transformers.LlamaConfig(
        hidden_size=4096,
        num_attention_heads=32,
        max_position_embeddings=131072,
        rope_parameters=rope | {"original_max_position_embeddings": 8192},
    )
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    assert torch.allclose(found, expected, rtol=1e-6)


# All parameters, of released weights: the sizes of their safetensors files; the activated ones as model cards say them.
COUNTS = {
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen2-57b-a14b": 57_408_658_944,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-7b-1m": 7_615_616_512,
    "qwen2.5-14b-1m": 14_770_033_664,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
}
ACTIVATED = {"qwen2-57b-a14b": 14.2e9, "qwen1.5-moe-a2.7b": 2.7e9}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_size(name: str) -> None:
    config = section("model", ModelConfig, preset(name), "the preset")
    config.check()
    with torch.device("meta"):
        model = Transformer(config)
    assert model.parameter_count() == COUNTS[name]
    assert model.activated_count() == pytest.approx(ACTIVATED.get(name, COUNTS[name]), rel=0.01)


def test_a_preset_gives_what_the_recipe_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text('[model]\npreset = "qwen2-57b-a14b"\nnum_hidden_layers = 3\nmlp_only_layers = [0, 2]\n')
    config = load_recipe(path, ["data=x", "num_experts=16"]).model
    assert (config.hidden_size, config.num_experts, config.num_hidden_layers) == (3584, 16, 3)
    assert config.mlp_only_layers == (0, 2) and [config.sparse(n) for n in range(3)] == [False, True, False]
    assert load_recipe(path, ["data=x", "preset=qwen2.5-0.5b", "mlp_only_layers=[]"]).model.hidden_size == 896
    bad = {
        "preset=qwen2.5-7": "did you mean 'qwen2.5-7b'",
        "num_experts_per_tok=65": "between 1 and num_experts = 64",
        "model_type=llama": "only model_type = 'qwen2_moe' has experts",
        "decoder_sparse_step=0": "decoder_sparse_step = 0: must be above 0",
        "mlp_only_layers=['a']": "mlp_only_layers",
    }
    for word, message in bad.items():
        with pytest.raises(FactoryError, match=message):
            load_recipe(path, ["data=x", word])


def test_checkpoints_of_other_form_are_refused(tmp_path: Path) -> None:
    save_hf(build(FORMS["moe"]), tmp_path, None, None)
    description = json.loads((tmp_path / "config.json").read_text())
    cases: dict[str, tuple[object, str]] = {
        "model_type": ("mixtral", "'mixtral': only qwen2, qwen2_moe, llama"),
        "num_experts": (12, r"experts\.8\.gate_proj\.weight is missing"),
        "qkv_bias": (False, "qkv_bias"),
        "use_sliding_window": (True, "use_sliding_window"),
        "head_dim": (24, "head_dim = 24"),
        "rope_scaling": ({"type": "longrope"}, "'longrope'"),
        "moe_intermediate_size": (None, "no moe_intermediate_size"),
        "mlp_only_layers": ([0], r"mlp\.gate_proj\.weight is missing"),
    }
    for name, (value, message) in cases.items():
        (tmp_path / "config.json").write_text(json.dumps(description | {name: value}))
        with pytest.raises(FactoryError, match=message):
            load_hf(tmp_path)


def test_experts_in_bfloat16_compile_without_a_break() -> None:
    form = FORMS["moe-all-chosen"] | {"num_hidden_layers": 1}  # all are chosen, so rounding cannot change the choice
    model, half, tokens = build(form), build(form).bfloat16(), ids(2, 40)
    for one in (model, half):
        one(tokens).float().square().mean().backward()
    assert relative(half(tokens).float(), model(tokens)) < 0.03
    for parameter, exact in zip(half.parameters(), model.parameters(), strict=True):
        assert relative(parameter.grad.float(), exact.grad) < 0.1  # type: ignore[union-attr,arg-type]
    found = torch._dynamo.explain(half)(tokens)
    assert found.graph_count == 1 and found.graph_break_count == 0

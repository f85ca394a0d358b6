"""Checkpoints: the state of a training, to go on from; and the model in Hugging Face's form, for everyone else."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from factory.engine.errors import FactoryError
from factory.engine.files import aside
from model.attention import DualChunk
from model.config import ModelConfig
from model.options import section
from model.rope import RopeScaling
from model.transformer import Transformer

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM", "llama": "LlamaForCausalLM"}
NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
STORED = (
    *NEEDED,
    "num_key_value_heads",
    "max_position_embeddings",
    "rope_theta",
    "rms_norm_eps",
    "initializer_range",
    "tie_word_embeddings",
)
STORED_MOE = (
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
    "router_aux_loss_coef",
)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training's state aside and rename it: the last good one stays until the new one is whole."""
    try:
        with aside(str(path)) as scratch, Path(scratch).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        # torch hides a full disk: its writer's own message says only that fewer bytes were written than expected.
        raise FactoryError(f"{path}: cannot write the checkpoint (is the disk full?): {error}") from error


def load_state(path: Path) -> dict[str, Any]:
    """The state that `save_state` wrote. FactoryError where the file is damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0][:80]
        raise FactoryError(f"{path}: cannot read the checkpoint ({reason}): remove it to begin again") from error
    return state


def save_hf(model: Transformer, folder: Path, tokenizer: Path | None, end: int | None) -> None:
    """Write the model as a folder that transformers' AutoModelForCausalLM and AutoTokenizer load.

    `tokenizer` is a tokenizer folder to copy in; `end` the id at which generation stops. The folder is written aside
    and renamed.
    """
    config = model.config
    description = {
        **describe(config),
        "eos_token_id": end,
        "pad_token_id": end,
        "torch_dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
    }
    weights = _apart({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]  # the embedding, stored once

    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        scratch.mkdir()
        if tokenizer is not None:
            for path in sorted(tokenizer.iterdir()):
                if path.is_file():
                    shutil.copyfile(path, scratch / path.name)
        (scratch / "config.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")
        generation = {"eos_token_id": end, "pad_token_id": end}
        (scratch / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", "utf-8")
        save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_hf(folder: str | Path, config: ModelConfig | None = None) -> Transformer:
    """Read a Qwen2, Qwen2-MoE or Llama checkpoint folder, ours or anyone's, in the number format that it is stored in.

    `config` stands for the checkpoint's own: the same shape with positions read in another way. Raises FactoryError
    that names the parameter where the weights do not fit the configuration.
    """
    folder = Path(folder)
    config = config or read_config(folder)
    with torch.device("meta"):  # no memory and no time for weights that are replaced at once
        model = Transformer(config)
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            weights.update(load_file(path))
        except SafetensorError as error:
            raise FactoryError(f"{path}: not a whole safetensors file: {error}") from error
    if not weights:
        raise FactoryError(f"{folder}: no *.safetensors file")
    weights = _together(folder, weights, config.num_experts)
    if config.tie_word_embeddings:
        weights.setdefault("lm_head.weight", weights.get("model.embed_tokens.weight", torch.empty(0)))
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            raise FactoryError(f"{folder}: parameter {name} is missing")
        if weights[name].shape != tensor.shape:
            shapes = f"{tuple(weights[name].shape)}, but the configuration asks for {tuple(tensor.shape)}"
            raise FactoryError(f"{folder}: parameter {name} has shape {shapes}")
    unknown = sorted(weights.keys() - expected.keys())
    if unknown:
        raise FactoryError(f"{folder}: unknown parameter {unknown[0]}: not of the form {config.model_type}")
    dtype = weights["model.embed_tokens.weight"].dtype
    # Copies: the file's own memory need not be aligned, which changes speed and last bits.
    model.load_state_dict({name: weights[name].to(dtype, copy=True) for name in expected}, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def describe(config: ModelConfig) -> dict[str, Any]:
    """The configuration as transformers' config.json has it."""
    description = {
        "architectures": [ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        **{name: getattr(config, name) for name in STORED},
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": None,
    }
    if config.model_type == "llama":
        description |= {"attention_bias": False, "mlp_bias": False, "head_dim": config.head_dim}
    else:
        description["use_sliding_window"] = False
    if config.model_type == "qwen2_moe":
        description |= {name: getattr(config, name) for name in STORED_MOE}
    if config.rope_scaling is not None:
        description["rope_scaling"] = config.rope_scaling.stored(config.max_position_embeddings)
    if config.dual_chunk_attention_config is not None:
        description["dual_chunk_attention_config"] = dataclasses.asdict(config.dual_chunk_attention_config)
    return description


def _apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each expert's matrices under names of their own, as released checkpoints have them."""
    out: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer, found, which = name.rpartition(".experts.")
        if not found:
            out[name] = tensor.contiguous()
            continue
        for number, expert in enumerate(tensor):
            parts = expert.chunk(2) if which == "gate_up_proj" else (expert,)
            for part, one in zip(("gate_proj", "up_proj") if len(parts) > 1 else (which,), parts, strict=True):
                out[f"{layer}.experts.{number}.{part}.weight"] = one.contiguous()
    return out


def _together(folder: Path, weights: dict[str, Tensor], experts: int) -> dict[str, Tensor]:
    """The experts' matrices in two tensors a layer, as here and in transformers 5; those that are so already stay."""
    layers = {name.partition(".experts.0.")[0] for name in weights if ".experts.0." in name}
    for layer in sorted(layers):

        def take(number: int, which: str, layer: str = layer) -> Tensor:
            name = f"{layer}.experts.{number}.{which}.weight"
            if name not in weights:
                raise FactoryError(f"{folder}: parameter {name} is missing")
            return weights.pop(name)

        both = [torch.cat([take(number, "gate_proj"), take(number, "up_proj")]) for number in range(experts)]
        weights[f"{layer}.experts.gate_up_proj"] = torch.stack(both)
        weights[f"{layer}.experts.down_proj"] = torch.stack([take(number, "down_proj") for number in range(experts)])
    return weights


def configuration(folder: str | Path) -> dict[str, Any]:
    """The keys of ModelConfig that a checkpoint's config.json gives; FactoryError where it is none that can be read."""
    folder = Path(folder)
    try:
        given = json.loads((folder / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        raise FactoryError(f"{folder}: no config.json: give a checkpoint folder in Hugging Face's form") from None
    except ValueError as error:
        raise FactoryError(f"{folder}/config.json: not valid JSON: {error}") from error
    kind = given.get("model_type")
    if kind not in ARCHITECTURES:
        raise FactoryError(f"{folder}: model_type {kind!r}: only {', '.join(ARCHITECTURES)} can be read")
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    refused = {"use_sliding_window": False, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    for name, value in (refused | {"qkv_bias": True}).items():
        if given.get(name, value) != value:
            raise FactoryError(f"{folder}: {name} = {given[name]!r}: only {value!r} can be read")
    names = STORED + (STORED_MOE if kind == "qwen2_moe" else ())
    values = {name: given[name] for name in names if given.get(name) is not None}
    values.setdefault("tie_word_embeddings", False)  # their own defaults, where a file leaves them out
    values.setdefault("max_position_embeddings", 2048 if kind == "llama" else 32768)
    values.setdefault("rope_theta", rope.get("rope_theta", 10_000.0))
    for name in NEEDED + (STORED_MOE[:4] if kind == "qwen2_moe" else ()):
        if name not in values:
            raise FactoryError(f"{folder}/config.json: no {name}")
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    values["mlp_only_layers"] = tuple(values.get("mlp_only_layers", ()))
    values["rope_theta"] = float(values["rope_theta"])
    where = str(folder / "config.json")
    scaling = {key: value for key, value in rope.items() if key not in ("type", "rope_theta") and value is not None}
    scaling.setdefault("rope_type", rope.get("type", "default"))
    if scaling["rope_type"] != "default":
        values["rope_scaling"] = section("rope_scaling", RopeScaling, scaling, where)
    if dual := given.get("dual_chunk_attention_config"):
        # Further keys there are of sparse attention, an approximation of this for speed.
        known = {field.name: dual[field.name] for field in dataclasses.fields(DualChunk) if field.name in dual}
        values["dual_chunk_attention_config"] = section("dual_chunk_attention_config", DualChunk, known, where)
    if given.get("head_dim") not in (None, values["hidden_size"] // values["num_attention_heads"]):
        raise FactoryError(
            f"{folder}: head_dim = {given['head_dim']}: only hidden_size / num_attention_heads can be read"
        )
    return {"model_type": kind, **values}


def read_config(folder: str | Path) -> ModelConfig:
    """The configuration of a checkpoint, checked."""
    config = ModelConfig(**configuration(folder))
    config.check()
    return config

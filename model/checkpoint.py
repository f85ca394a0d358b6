"""Checkpoints in Hugging Face's form, for everyone. (The state of a training, to go on from, is in model/state.py.)"""

from __future__ import annotations

import dataclasses
import errno
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from factory.engine.errors import FactoryError
from factory.engine.files import hash_file
from model.attention import DualChunk
from model.config import ModelConfig
from model.options import section
from model.rope import RopeScaling
from model.transformer import Transformer

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM", "llama": "LlamaForCausalLM"}
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
DECIDES = ("*.safetensors", "*.bin", "*config.json", "tokenizer.json", "chat_template.jinja")  # what decides answers
FILE_BYTES = 5_000_000_000
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


def file_hashes(folder: Path) -> dict[str, str]:
    """What a checkpoint is: a hash of each file that decides what it answers, by its name."""
    return {path.name: hash_file(path) for path in sorted({one for what in DECIDES for one in folder.glob(what)})}


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer and chat template that lie in a folder, byte for byte: written anew by transformers it is no
    longer the one that datasets were made for."""
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def save_hf(
    model: Transformer, folder: Path, tokenizer: Path | None, end: int | list[int] | None, write: bool = True
) -> None:
    """Write the model as a folder that transformers' AutoModelForCausalLM and AutoTokenizer load.

    `tokenizer` is a folder whose tokenizer is copied in, and whose settings of generation are kept where it has some;
    `end` the id, or the ids, at which generation stops. The folder is written aside
    and renamed; one that is there before is whole until then. Weights are written in files of at most FILE_BYTES, which
    is about what this holds in memory. Of a model shared by several processes all call it, and one has `write`.
    """
    if not write:
        for _ in _weights(model):
            pass
        return
    pad = end[0] if isinstance(end, list) else end
    description = {
        **describe(model.config),
        "eos_token_id": end,
        "pad_token_id": pad,
        "torch_dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex
    scratch, old = (folder.with_name(f".{folder.name}.{unique}{kind}.tmp") for kind in ("", ".old"))
    _clear(folder)
    try:
        scratch.mkdir()
        generation = {"eos_token_id": end, "pad_token_id": pad}
        if tokenizer is not None:
            copy_tokenizer(tokenizer, scratch)
            if (tokenizer / GENERATION).is_file():
                generation |= json.loads((tokenizer / GENERATION).read_text("utf-8"))
        (scratch / "config.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")
        (scratch / GENERATION).write_text(json.dumps(generation, indent=2) + "\n", "utf-8")
        _write_weights(_weights(model), scratch)
        if folder.exists():
            os.rename(folder, old)
        os.rename(scratch, folder)
    except SafetensorError as error:  # an OSError within it is told in words alone
        if "os error 28" not in str(error) and "os error 122" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _clear(folder)


def _clear(folder: Path) -> None:
    """Remove what was written aside, here or by a process that was killed; not while it is all that there is."""
    if folder.exists():
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)


def _weights(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Each parameter in host memory, whole, one after the other."""
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue  # the embedding, stored once
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        yield name, whole.detach().cpu()


def _write_weights(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """model.safetensors; or several files and an index of what lies where, in the form of transformers."""
    files: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = total = 0

    def write() -> None:
        save_file(held, folder / f"{len(files)}", metadata={"format": "pt"})
        files.append(list(held))
        held.clear()

    for whole_name, whole in weights:
        for name, tensor in _apart({whole_name: whole}).items():
            if held and size + tensor.nbytes > FILE_BYTES:
                write()
                size = 0
            held[name] = tensor
            size, total = size + tensor.nbytes, total + tensor.nbytes
    write()
    names = [f"model-{number + 1:05d}-of-{len(files):05d}.safetensors" for number in range(len(files))]
    if len(files) == 1:
        names = ["model.safetensors"]
    else:
        places = {name: file for file, inside in zip(names, files, strict=True) for name in inside}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    for number, name in enumerate(names):
        os.rename(folder / f"{number}", folder / name)


def load_hf(folder: str | Path, config: ModelConfig | None = None, head: str = "") -> Transformer:
    """Read a Qwen2, Qwen2-MoE or Llama checkpoint folder, ours or anyone's, in the number format that it is stored in.

    `config` stands for the checkpoint's own: the same shape with positions read in another way. `head` begins
    the names of what may stand in place of the output layer, as in reward models; it is not read here. Raises
    FactoryError that names the parameter where the weights do not fit the configuration.
    """
    folder = Path(folder)
    config = config or read_config(folder)
    with torch.device("meta"):  # no memory and no time for weights that are replaced at once
        model = Transformer(config)
    weights: dict[str, Tensor] = {}
    for path in _files(folder):
        try:
            weights.update(load_file(path))
        except SafetensorError as error:
            raise FactoryError(f"{path}: not a whole safetensors file: {error}") from error
    if not weights:
        raise FactoryError(f"{folder}: no *.safetensors file")
    weights = _together(folder, weights, config.num_experts)
    if config.tie_word_embeddings:
        weights.setdefault("lm_head.weight", weights.get("model.embed_tokens.weight", torch.empty(0)))
    if head and (headed := [name for name in weights if name.startswith(head)]):
        weights = {name: tensor for name, tensor in weights.items() if name not in headed}
        weights.setdefault("lm_head.weight", torch.zeros(config.vocab_size, config.hidden_size))
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            raise FactoryError(f"{folder}: parameter {name} is missing")
        if weights[name].shape != tensor.shape:
            shapes = f"{tuple(weights[name].shape)}, but the configuration asks for {tuple(tensor.shape)}"
            raise FactoryError(f"{folder}: parameter {name} has shape {shapes}")
    if config.tie_word_embeddings and (weights["lm_head.weight"] != weights["model.embed_tokens.weight"]).any():
        raise FactoryError(
            f"{folder}: lm_head.weight is an output layer of its own: set model.tie_word_embeddings = false"
        )
    unknown = sorted(weights.keys() - expected.keys())
    if unknown:
        raise FactoryError(f"{folder}: unknown parameter {unknown[0]}: not of the form {config.model_type}")
    dtype = weights["model.embed_tokens.weight"].dtype
    # Copies: the file's own memory need not be aligned, which changes speed and last bits.
    model.load_state_dict({name: weights[name].to(dtype, copy=True) for name in expected}, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def _files(folder: Path) -> list[Path]:
    """The files of weights: those of the index, where there is one."""
    index = folder / INDEX
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise FactoryError(f"{index}: not an index of weights: {error}") from error
    for name in sorted(names):
        if not (folder / name).is_file():
            raise FactoryError(f"{folder / name}: named in {INDEX} but missing: copy the whole checkpoint")
    return [folder / name for name in sorted(names)]


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
    if not isinstance(given, dict):
        raise FactoryError(f"{folder}/config.json: not a JSON object: give a checkpoint folder in Hugging Face's form")
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
    config: ModelConfig = section("model", ModelConfig, configuration(folder), f"{folder}/config.json")
    config.check()
    return config

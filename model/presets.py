"""Published model sizes, by name: `preset = "qwen2.5-0.5b"` in the [model] section; a key given beside it wins.

Widths, heads and vocabularies are those of the base models' config.json on Hugging Face (Qwen2 technical report, arXiv
2407.10671, Table 1; Qwen2.5, arXiv 2412.15115, Table 1; Llama 3, arXiv 2407.21783, Table 3).

Parameter counts are tested against the published ones; they do not show a wrong `rms_norm_eps` or
`max_position_embeddings`. Those of Qwen2.5 3B, 7B, 14B and 32B, Qwen2 57B-A14B, Llama 3.1 8B and Llama 3.2 3B were
compared with the published files; of the others load the released config.json where it matters.
"""

from __future__ import annotations

from typing import Any

_SHAPE = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)


def _qwen2(*shape: Any, **more: Any) -> dict[str, Any]:
    same = {"model_type": "qwen2", "rope_theta": 1e6, "initializer_range": 0.02}
    return same | dict(zip(_SHAPE, shape, strict=True)) | more


def _moe(experts: int, chosen: int, inner: int, shared: int, *shape: Any) -> dict[str, Any]:
    return _qwen2(
        *shape,
        model_type="qwen2_moe",
        num_experts=experts,
        num_experts_per_tok=chosen,
        moe_intermediate_size=inner,
        shared_expert_intermediate_size=shared,
        norm_topk_prob=False,
        router_aux_loss_coef=0.001,
    )


def _llama(factor: float, *shape: Any) -> dict[str, Any]:
    return _qwen2(
        *shape,
        model_type="llama",
        rope_theta=5e5,
        rope_scaling={"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": 8192},
    )


_MILLION: dict[str, Any] = {
    "rope_theta": 1e7,
    "dual_chunk_attention_config": {
        "chunk_size": 262144,
        "local_size": 8192,
        "original_max_position_embeddings": 262144,
    },
}

PRESETS: dict[str, dict[str, Any]] = {
    "qwen2-0.5b": _qwen2(24, 14, 2, 896, 4864, 151936, 131072, 1e-6, True),
    "qwen2-1.5b": _qwen2(28, 12, 2, 1536, 8960, 151936, 131072, 1e-6, True),
    "qwen2-7b": _qwen2(28, 28, 4, 3584, 18944, 152064, 131072, 1e-6, False),
    "qwen2-72b": _qwen2(80, 64, 8, 8192, 29568, 152064, 131072, 1e-5, False),
    "qwen2-57b-a14b": _moe(64, 8, 2560, 20480, 28, 28, 4, 3584, 18944, 151936, 131072, 1e-6, False),
    "qwen1.5-moe-a2.7b": _moe(60, 4, 1408, 5632, 24, 16, 16, 2048, 5632, 151936, 8192, 1e-6, False),
    "qwen2.5-0.5b": _qwen2(24, 14, 2, 896, 4864, 151936, 32768, 1e-6, True),
    "qwen2.5-1.5b": _qwen2(28, 12, 2, 1536, 8960, 151936, 131072, 1e-6, True),
    "qwen2.5-3b": _qwen2(36, 16, 2, 2048, 11008, 151936, 32768, 1e-6, True),
    "qwen2.5-7b": _qwen2(28, 28, 4, 3584, 18944, 152064, 131072, 1e-6, False),
    "qwen2.5-14b": _qwen2(48, 40, 8, 5120, 13824, 152064, 131072, 1e-5, False),
    "qwen2.5-32b": _qwen2(64, 40, 8, 5120, 27648, 152064, 131072, 1e-5, False),
    "qwen2.5-72b": _qwen2(80, 64, 8, 8192, 29568, 152064, 131072, 1e-5, False),
    "qwen2.5-7b-1m": _qwen2(28, 28, 4, 3584, 18944, 152064, 1010000, 1e-5, False, **_MILLION),
    "qwen2.5-14b-1m": _qwen2(48, 40, 8, 5120, 13824, 152064, 1010000, 1e-5, False, **_MILLION),
    "llama-3.1-8b": _llama(8.0, 32, 32, 8, 4096, 14336, 128256, 131072, 1e-5, False),
    "llama-3.1-70b": _llama(8.0, 80, 64, 8, 8192, 28672, 128256, 131072, 1e-5, False),
    "llama-3.1-405b": _llama(8.0, 126, 128, 8, 16384, 53248, 128256, 131072, 1e-5, False),
    "llama-3.2-1b": _llama(32.0, 16, 32, 8, 2048, 8192, 128256, 131072, 1e-5, True),
    "llama-3.2-3b": _llama(32.0, 28, 24, 8, 3072, 8192, 128256, 131072, 1e-5, True),
}

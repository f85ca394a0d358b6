"""Floating-point operations of a training step, and what share of a device's peak they are (MFU)."""

from __future__ import annotations

from model.config import ModelConfig

# Peak operations per second of dense bfloat16 products, as the makers' data sheets say (without sparsity). The first
# name that a device's name contains counts.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}


def peak(device: str) -> float | None:
    """A device's peak, by the name that torch.cuda.get_device_name gives; None for one that is not listed."""
    return next((rate for name, rate in PEAKS.items() if name in device), None)


def flops_per_token(config: ModelConfig, length: int) -> float:
    """Operations for one token of a sequence of `length`, forward and backward.

    The matrix products alone, a multiplication and an addition counted as two, and the backward pass as twice the
    forward one; of the experts those that the token goes to; causal attention as half of the square; the embedding is
    no product. Activations computed again do not count: that is the usual meaning of model FLOPs (PaLM, arXiv
    2204.02311, appendix B, which counts the whole square).
    """
    size, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    attention = size * (2 * heads + 2 * config.num_key_value_heads * config.head_dim)
    scores = heads * (length + 1)  # queries by keys and weights by values, on average (length + 1) / 2 keys
    products = config.vocab_size * size
    for layer in range(config.num_hidden_layers):
        if config.sparse(layer):
            inner = config.num_experts_per_tok * config.moe_intermediate_size + config.shared_expert_intermediate_size
            feed_forward = 3 * size * inner + size * (config.num_experts + 1)  # the router, the shared expert's gate
        else:
            feed_forward = 3 * size * config.intermediate_size
        products += attention + scores + feed_forward
    return 6.0 * products


def utilisation(config: ModelConfig, length: int, tokens_per_second: float, device: str, devices: int = 1) -> float:
    """Model FLOPs utilisation, 0 to 1; NaN on a device whose peak is not known."""
    top = peak(device)
    return flops_per_token(config, length) * tokens_per_second / (top * devices) if top else float("nan")

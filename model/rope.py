"""Rotary positions (RoFormer, arXiv 2104.09864) and the ways to stretch them: interpolation, YaRN, Llama 3.

Pair i of a head of D dimensions turns by position * frequency[i], frequency[i] = theta^(-2i/D). A scaling changes the
frequencies, and with YaRN also the sharpness of attention, through a factor on cosine and sine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from factory.engine.errors import FactoryError


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How positions beyond the trained length are made to fit; names and meaning are those of Hugging Face."""

    rope_type: Literal["linear", "yarn", "llama3"]
    """`linear` divides every frequency by the factor (position interpolation, arXiv 2306.15595), `yarn` those that
    turn seldom within the trained length (arXiv 2309.00071), and so does `llama3` (Llama 3.1)."""
    factor: float
    """How many times as long as the trained length."""
    original_max_position_embeddings: int = 0
    """The trained length; 0 for the model's max_position_embeddings."""
    beta_fast: float = 32.0
    """yarn: pairs with more turns than this within the trained length keep their frequency (the paper's beta)."""
    beta_slow: float = 1.0
    """yarn: those with fewer are interpolated in full (alpha). Qwen has 32 and 1, UltraLong 4 and 1."""
    attention_factor: float = 0.0
    """yarn: the factor on queries and keys, the paper's sqrt(1/t); 0 for 0.1 ln(factor) + 1."""
    ramp: Literal["dimension", "rotations"] = "dimension"
    """yarn: what the ramp between the two is linear in. `dimension`: the number of the pair, its ends rounded outwards,
    as transformers does and so every released checkpoint ran; `rotations`: the turns, as the paper defines it. They
    differ by up to 42% of a frequency at Qwen's configuration. Transformers does not know this key."""
    low_freq_factor: float = 1.0
    """llama3: as beta_slow."""
    high_freq_factor: float = 4.0
    """llama3: as beta_fast."""

    def check(self) -> None:
        """Raises FactoryError where the numbers do not fit together."""
        low, high = self.beta_slow, self.beta_fast
        if self.rope_type == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
        if self.factor < 1:
            raise FactoryError(f"model.rope_scaling.factor = {self.factor}: must be at least 1")
        if not 0 < low < high:
            raise FactoryError(f"model.rope_scaling: the ramp from {low} to {high} turns must rise, and begin above 0")
        if self.original_max_position_embeddings < 0 or self.attention_factor < 0:
            raise FactoryError("model.rope_scaling: neither the trained length nor the factor can be negative")

    def stored(self, length: int) -> dict[str, Any]:
        """The keys for config.json that belong to this type; `length` is the trained length if none is said."""
        said: dict[str, Any] = {"rope_type": self.rope_type, "factor": self.factor}
        if self.rope_type != "linear":
            said["original_max_position_embeddings"] = self.original_max_position_embeddings or length
        if self.rope_type == "llama3":
            said |= {"low_freq_factor": self.low_freq_factor, "high_freq_factor": self.high_freq_factor}
        if self.rope_type == "yarn":
            said |= {"beta_fast": self.beta_fast, "beta_slow": self.beta_slow}
            said |= {"attention_factor": self.attention_factor} if self.attention_factor else {}
            said |= {"ramp": self.ramp} if self.ramp != "dimension" else {}
        return said


def frequencies(size: int, theta: float, scaling: RopeScaling | None, length: int) -> tuple[Tensor, float]:
    """The frequency of each pair [D/2], and the factor on cosine and sine. `length` is the trained length where the
    scaling does not say it."""
    plain = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    if scaling is None:
        return plain, 1.0
    if scaling.rope_type == "linear":
        return plain / scaling.factor, 1.0
    length = scaling.original_max_position_embeddings or length
    if scaling.rope_type == "llama3":
        keep = _between(length * plain / (2 * math.pi), scaling.low_freq_factor, scaling.high_freq_factor)
        return plain * keep + plain / scaling.factor * (1 - keep), 1.0
    keep = _yarn_share(size, theta, scaling, length, plain)
    return plain * keep + plain / scaling.factor * (1 - keep), scaling.attention_factor or temperature(scaling.factor)


def temperature(factor: float) -> float:
    """YaRN's sqrt(1/t), for queries and keys alike (arXiv 2309.00071, §3.4)."""
    return 0.1 * math.log(max(factor, 1.0)) + 1.0


def _between(x: Tensor, low: float, high: float) -> Tensor:
    return ((x - low) / (high - low)).clamp(0, 1)


def _yarn_share(size: int, theta: float, scaling: RopeScaling, length: int, plain: Tensor) -> Tensor:
    """gamma: the share of each pair's own frequency that stays."""
    if scaling.ramp == "rotations":  # the paper, §3.2 (NTK-by-parts): r = L / wavelength
        return _between(length * plain / (2 * math.pi), scaling.beta_slow, scaling.beta_fast)

    def pair(turns: float) -> float:
        """The (broken) number of the pair that turns so often within the length."""
        return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair(scaling.beta_fast)), 0)
    high = min(math.ceil(pair(scaling.beta_slow)), size - 1)
    return 1 - _between(torch.arange(size // 2, dtype=torch.float32), low, high if high != low else high + 0.001)


def turns(positions: Tensor, frequency: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine [..., D] of the rotation of each position [...]."""
    angles = positions.to(torch.float32)[..., None] * frequency.to(positions.device)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * factor, angles.sin() * factor


class _Rotate(torch.autograd.Function):
    """Three passes, nothing to keep; the way back is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        return _rotated(dy, cosine, -sine), None, None


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    y, half = x * cosine, x.shape[-1] // 2
    y[..., :half].addcmul_(x[..., half:], sine[..., :half], value=-1)
    y[..., half:].addcmul_(x[..., :half], sine[..., half:])
    return y


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate [B, heads, T, D]; the pair of dimension i is i + D/2 (the layout of Hugging Face's weights)."""
    return _Rotate.apply(x, turn[0].to(x.dtype), turn[1].to(x.dtype))

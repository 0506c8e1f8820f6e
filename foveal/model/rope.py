"""Rotary frequencies (V4 config: rope_theta, compress_rope_theta, rope_scaling).

Window-only layers use base `rope_theta` as it is. Compressed layers use `compress_rope_theta` with YaRN interpolation
for everything in them: queries, raw and compressed KV, the indexer, and the inverse rotation of the output.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveal.config import LayerKind, ModelConfig, YarnScaling
from foveal.ops import Rotation


def rotation_of(config: ModelConfig, layer: int) -> Rotation:
    """The rotation of `layer`, frequencies in radians a position, fp32."""
    channels = config.qk_rope_head_dim
    if config.kind(layer) is LayerKind.SLIDING:
        return Rotation(plain_frequencies(channels, config.rope_theta))
    plain = plain_frequencies(channels, config.compress_rope_theta)
    if config.rope_scaling is None:
        return Rotation(plain)
    return Rotation(yarn_frequencies(plain, config.compress_rope_theta, config.rope_scaling))


def plain_frequencies(channels: int, theta: float) -> Tensor:
    """theta^(-2i / channels) for i < channels / 2, rounded as in the official code: at position p a frequency that is
    off by one bit turns the pair by p * 6e-8 too far."""
    return 1.0 / (float(theta) ** (torch.arange(0, channels, 2, dtype=torch.float32, device="cpu") / channels))


def yarn_frequencies(plain: Tensor, theta: float, yarn: YarnScaling) -> Tensor:
    """Slow pairs divided by `factor`, fast ones untouched, a linear ramp between the two correction pairs.

    No magnitude factor, and active at every length (official code).
    """
    channels = 2 * len(plain)

    def pair_turning(rotations: float) -> float:
        ratio = yarn.original_max_position_embeddings / (2 * math.pi * rotations)
        return channels * math.log(ratio) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_turning(yarn.beta_slow)), channels - 1)
    width = (high - low) or 0.001  # negative (a falling ramp) when the original context is a few tokens, as official
    ramp = ((torch.arange(len(plain), dtype=torch.float32, device="cpu") - low) / width).clamp(0, 1)
    return plain * (1 - ramp) + plain / yarn.factor * ramp

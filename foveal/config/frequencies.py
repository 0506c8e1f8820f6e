"""Rotary frequencies (V4 config: rope_theta, compress_rope_theta, rope_scaling).

Window-only layers use base `rope_theta` as it is. Compressed layers use `compress_rope_theta` with YaRN interpolation
for everything in them: queries, raw and compressed KV, the indexer, and the inverse rotation of the output.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.config.model import LayerKind, ModelConfig, YarnScaling

Frequencies = NDArray[Any]


def frequencies_of(config: ModelConfig, layer: int) -> Frequencies:
    """The frequencies of `layer` in radians a position, fp32 [R / 2]."""
    channels = config.qk_rope_head_dim
    if config.kind(layer) is LayerKind.SLIDING:
        return plain_frequencies(channels, config.rope_theta)
    plain = plain_frequencies(channels, config.compress_rope_theta)
    if config.rope_scaling is None:
        return plain
    return yarn_frequencies(plain, config.compress_rope_theta, config.rope_scaling)


def plain_frequencies(channels: int, theta: float) -> Frequencies:
    """theta^(-2i / channels) for i < channels / 2, rounded as in the official code: at position p a frequency that is
    off by one bit turns the pair by p * 6e-8 too far. (Its power is an fp32 one; from fp64 every machine gives the
    same bits.)"""
    exponents = np.arange(0, channels, 2, dtype=np.float32) / np.float32(channels)
    return np.float32(1) / np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)


def yarn_frequencies(plain: Frequencies, theta: float, yarn: YarnScaling) -> Frequencies:
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
    places = np.arange(len(plain), dtype=np.float32)
    ramp = np.clip((places - np.float32(low)) / np.float32(width), np.float32(0), np.float32(1))
    return plain * (np.float32(1) - ramp) + plain / np.float32(yarn.factor) * ramp

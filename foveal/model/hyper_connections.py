"""Hyper-connection parameters of one sub-layer, or of the output head (report section 2.2)."""

from __future__ import annotations

from torch import Tensor

from foveal.config import ModelConfig
from foveal.ops import HyperWeights


def hyper_weights(config: ModelConfig, fn: Tensor, base: Tensor, scale: Tensor) -> HyperWeights:
    """Bundle the three tensors with the config's constants, as the operations take them."""
    return HyperWeights(fn, base, scale, config.hc_sinkhorn_iters, config.hc_eps, config.rms_norm_eps)


def coefficient_count(streams: int) -> int:
    """Numbers one hyper-connection computes a token: S for pre, S for post, S * S for the mixing matrix."""
    return (2 + streams) * streams

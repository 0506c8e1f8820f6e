"""Random weights for a config, a weight at a time: for measurements, tests, and `foveal init`.

What is special here: numerically sane (activations keep their size through any number of layers, streams mix, experts
are used evenly), and made in the format they are stored in, so that gigabytes of FP4 need neither time nor memory to
quantise. Each weight depends only on the seed and its own name and shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import blake2b

import torch
from torch import Tensor

from foveal.checkpoint.convert import convert_weight
from foveal.checkpoint.layout import Shape, Storage, WeightSpec, storage_format, weight_specs
from foveal.config import ModelConfig
from foveal.formats import Fp4Weight, Weight, encode_e2m1, encode_e8m0

_APE_STD = 0.02
_OWN_STREAM = 2.0
"""Logit in favour of a stream staying itself: with 4 streams about 70 % of it does."""
_STREAM_STD = 0.5
"""How much the streams' static coefficients differ, in logits."""
_HYPER_SCALE = 0.2
"""How much the coefficients follow the input: the logits' standard deviation."""


def random_weights(config: ModelConfig, seed: int = 0) -> Iterator[tuple[str, Weight]]:
    """Every weight of `config` by official name, in the formats it names (unpacked matrices BF16).

    Matrices are normal with variance 1 / inputs; norms 1; biases and sinks 0; the token-to-expert tables hold distinct
    experts in each row. The embedding is standard normal.
    """
    for spec in weight_specs(config):
        yield spec.name, random_weight(config, spec, seed)


def random_weight(config: ModelConfig, spec: WeightSpec, seed: int) -> Weight:
    """One weight of `random_weights`."""
    name = blake2b(f"{seed} {spec.name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(name, "little") >> 1)
    if storage_format(config, spec) == "fp4" and config.scale_dtype == "ue8m0":
        return _normal_fp4(spec.shape, spec.shape[-1] ** -0.5, generator)
    return convert_weight(_plain(config, spec, generator), spec, config)


def _plain(config: ModelConfig, spec: WeightSpec, generator: torch.Generator) -> Tensor:
    if spec.storage is Storage.I64:
        return _distinct_experts(config, spec.shape, generator)
    last = spec.name.removesuffix(".weight").rsplit(".", 1)[-1]
    if last.startswith("hc_"):
        return _hyper(config, spec, last, generator)
    if last in ("attn_sink", "bias"):
        return torch.zeros(spec.shape)
    if last.endswith("norm"):
        return torch.ones(spec.shape)
    std = {"ape": _APE_STD, "embed": 1.0}.get(last, spec.shape[-1] ** -0.5)
    return torch.randn(spec.shape, generator=generator) * std


def _hyper(config: ModelConfig, spec: WeightSpec, last: str, generator: torch.Generator) -> Tensor:
    """Hyper-connections: inputs average the streams, outputs go to all, and each stream mostly stays what it is. Each
    stream differs a little in all three, or they would stay equal for ever."""
    noise = torch.randn(spec.shape, generator=generator)
    if last.endswith("fn"):
        return noise * spec.shape[-1] ** -0.5
    if last.endswith("scale"):
        return torch.full(spec.shape, _HYPER_SCALE)
    streams = config.hc_mult
    average = -math.log(max(streams - 1, 0.05))  # sigmoid of it is 1 / streams
    pre = torch.full((streams,), average)
    if last != "hc_head_base":
        post = torch.zeros(streams)  # 2 * sigmoid(0) = 1
        pre = torch.cat((pre, post, (_OWN_STREAM * torch.eye(streams)).flatten()))
    return pre + _STREAM_STD * noise


def _distinct_experts(config: ModelConfig, shape: Shape, generator: torch.Generator) -> Tensor:
    rows = [
        torch.rand(min(4096, shape[0] - start), config.n_routed_experts, generator=generator).topk(shape[1]).indices
        for start in range(0, shape[0], 4096)
    ]
    return torch.cat(rows)


def _normal_fp4(shape: Shape, std: float, generator: torch.Generator) -> Fp4Weight:
    """Normal values straight as FP4 codes: 16 random bits choose two of 256 quantiles each, so two codes, a byte."""
    scale = 2.0 ** math.ceil(math.log2(std / 2))  # one standard deviation is 1 to 2 units, the largest code 6
    quantiles = torch.special.ndtri((torch.arange(256, dtype=torch.float64) + 0.5) / 256).float()
    codes = encode_e2m1(quantiles * (std / scale))
    pairs = (codes[:, None] | (codes[None, :] << 4)).flatten().view(torch.int8)
    *lead, width = shape
    bits = torch.randint(1 << 16, (math.prod(lead) * width // 2,), dtype=torch.int32, generator=generator)
    packed = pairs.index_select(0, bits).view(*lead, width // 2)
    scales = encode_e8m0(torch.full((*lead, width // 32), scale)).view(torch.float8_e8m0fnu)
    return Fp4Weight(packed, scales)

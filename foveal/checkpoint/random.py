"""Random weights for a config, a weight at a time: for measurements, tests, and `foveal init`.

They are numerically sane (activations keep their size through any number of layers, streams mix, experts are used
evenly), and made in the format they are stored in, so that gigabytes of FP4 need neither time nor memory to quantise.
Each weight depends only on the seed and its own name and shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import blake2b
from statistics import NormalDist

import numpy as np

from foveal.checkpoint.convert import convert_weight
from foveal.checkpoint.layout import Shape, Storage, WeightSpec, storage_format, weight_specs
from foveal.config import ModelConfig
from foveal.formats import E8M0, F32, Array, Fp4Weight, Weight, encode_e2m1, encode_e8m0

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
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(name, "little")))
    if storage_format(config, spec) == "fp4" and config.scale_dtype == "ue8m0":
        return _normal_fp4(spec.shape, spec.shape[-1] ** -0.5, generator)
    return convert_weight(_plain(config, spec, generator), spec, config)


def _plain(config: ModelConfig, spec: WeightSpec, generator: np.random.Generator) -> Array:
    if spec.storage is Storage.I64:
        return _distinct_experts(config, spec.shape, generator)
    last = spec.name.removesuffix(".weight").rsplit(".", 1)[-1]
    if last.startswith("hc_"):
        return _hyper(config, spec, last, generator)
    if last in ("attn_sink", "bias"):
        return np.zeros(spec.shape, F32)
    if last.endswith("norm"):
        return np.ones(spec.shape, F32)
    std = {"ape": _APE_STD, "embed": 1.0}.get(last, spec.shape[-1] ** -0.5)
    return _normal(spec.shape, generator) * np.float32(std)


def _hyper(config: ModelConfig, spec: WeightSpec, last: str, generator: np.random.Generator) -> Array:
    """Hyper-connections: inputs average the streams, outputs go to all, and each stream mostly stays what it is. Each
    stream differs a little in all three, or they would stay equal for ever."""
    noise = _normal(spec.shape, generator)
    if last.endswith("fn"):
        return noise * np.float32(spec.shape[-1] ** -0.5)
    if last.endswith("scale"):
        return np.full(spec.shape, _HYPER_SCALE, F32)
    streams = config.hc_mult
    average = -math.log(max(streams - 1, 0.05))  # sigmoid of it is 1 / streams
    pre = np.full(streams, average, F32)
    if last != "hc_head_base":
        post = np.zeros(streams, F32)  # 2 * sigmoid(0) = 1
        pre = np.concatenate((pre, post, _OWN_STREAM * np.eye(streams, dtype=F32).reshape(-1)))
    return pre + np.float32(_STREAM_STD) * noise


def _distinct_experts(config: ModelConfig, shape: Shape, generator: np.random.Generator) -> Array:
    rows = [
        generator.random((min(4096, shape[0] - start), config.n_routed_experts)).argsort(axis=1)[:, : shape[1]]
        for start in range(0, shape[0], 4096)
    ]
    return np.concatenate(rows).astype(np.int64)


def _normal(shape: Shape, generator: np.random.Generator) -> Array:
    return generator.standard_normal(shape, dtype=np.float32)


def _normal_fp4(shape: Shape, std: float, generator: np.random.Generator) -> Fp4Weight[Array]:
    """Normal values straight as FP4 codes: 16 random bits choose two of 256 quantiles each, so two codes, a byte."""
    scale = 2.0 ** math.ceil(math.log2(std / 2))  # one standard deviation is 1 to 2 units, the largest code 6
    quantiles = np.array([NormalDist().inv_cdf((rank + 0.5) / 256) for rank in range(256)], dtype=np.float32)
    codes = encode_e2m1(quantiles * np.float32(std / scale))
    pairs = (codes[:, None] | (codes[None, :] << np.uint8(4))).reshape(-1).view(np.int8)
    *lead, width = shape
    bits = generator.integers(1 << 16, size=math.prod(lead) * width // 2, dtype=np.uint16)
    packed = pairs[bits].reshape(*lead, width // 2)
    scales = encode_e8m0(np.full((*lead, width // 32), scale, F32)).view(E8M0)
    return Fp4Weight(packed, scales)

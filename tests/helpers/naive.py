"""The operations once more, as slowly and plainly as possible: loops over fp64 numbers, written from the formulas.

Nothing here is shared with `foveal.ops`; where the two agree, both read the formulas alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rms_norm(x: Array, weight: Array | None, eps: float) -> Array:
    """One vector."""
    normed = x / math.sqrt(float(np.mean(x * x)) + eps)
    return normed if weight is None else normed * weight


def rotate(x: Array, position: float, frequencies: Array) -> Array:
    """One vector: pairs (2i, 2i + 1) of its last channels turn by position * frequency i, an fp32 product."""
    out = x.copy()
    start = len(x) - 2 * len(frequencies)
    for i, frequency in enumerate(frequencies):
        a, b = x[start + 2 * i], x[start + 2 * i + 1]
        angle = float(np.float32(position) * np.float32(frequency))
        cos, sin = math.cos(angle), math.sin(angle)
        out[start + 2 * i], out[start + 2 * i + 1] = a * cos - b * sin, a * sin + b * cos
    return out


def entry(kv: Array, gate: Array, s: int, ratio: int) -> Array:
    """Entry s before norm and rotation, from all tokens' rows since position 0 (gates with the position bias added).

    HCA: softmax over the window's tokens, channel by channel. CSA: eight slots, the window before with the first half
    of its channels and this window with the second half.
    """
    overlap = ratio == 4
    width = kv.shape[1] // 2 if overlap else kv.shape[1]
    out = np.zeros(width)
    for channel in range(width):
        slots: list[tuple[float, float]] = []
        if overlap and s > 0:
            slots += [(kv[j, channel], gate[j, channel]) for j in range(4 * (s - 1), 4 * s)]
        own = channel + width if overlap else channel
        slots += [(kv[j, own], gate[j, own]) for j in range(ratio * s, ratio * (s + 1))]
        total = sum(math.exp(z) for _, z in slots)
        out[channel] = sum(math.exp(z) / total * value for value, z in slots)
    return out


def attend_token(
    query: Array, position: int, raw: Array, entries: Array, seen: Sequence[int], sinks: Array, window: int
) -> tuple[Array, Array, Array]:
    """Token at `position`: heads' outputs [H, c] (not yet rotated back), mass on entries [len(entries)] and on window
    distances [W] (last: the token itself). `raw` are the raw rows of positions 0..position."""
    heads, width = query.shape
    first = max(0, position - window + 1)
    out, entry_mass, window_mass = np.zeros((heads, width)), np.zeros(len(entries)), np.zeros(window)
    for h in range(heads):
        near = {p: math.exp(float(query[h] @ raw[p]) / math.sqrt(width)) for p in range(first, position + 1)}
        far = {s: math.exp(float(query[h] @ entries[s]) / math.sqrt(width)) for s in seen}
        total = sum(near.values()) + sum(far.values()) + math.exp(float(sinks[h]))
        for p, weight in near.items():
            out[h] += weight / total * raw[p]
            window_mass[window - 1 - (position - p)] += weight / total
        for s, weight in far.items():
            out[h] += weight / total * entries[s]
            entry_mass[s] += weight / total
    return out, entry_mass, window_mass


def index_score(query: Array, weights: Array, key: Array) -> float:
    """One token (query [I, ci], weights [I]) and one key."""
    return sum(float(w) * max(0.0, float(q @ key)) for q, w in zip(query, weights, strict=True))


def best(scores: Sequence[float], visible: int, k: int) -> list[int]:
    """The k best of the first `visible`, the lowest index first among equals, ascending."""
    return sorted(sorted(range(visible), key=lambda s: (-scores[s], s))[:k])


def sinkhorn(logits: Array, iterations: int, eps: float) -> Array:
    """One S x S matrix: softmax of each row, then columns and rows scaled to sum 1 in turn, each `iterations` times."""
    comb = np.array([np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in logits]) + eps
    size = len(comb)
    for i in range(iterations):
        if i:
            comb = np.array([[comb[j, k] / (comb[j].sum() + eps) for k in range(size)] for j in range(size)])
        comb = np.array([[comb[j, k] / (comb[:, k].sum() + eps) for k in range(size)] for j in range(size)])
    return comb


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mixed(streams: Array, fn: Array, norm_eps: float) -> Array:
    """One token's streams [S, d] -> the raw coefficients."""
    flat = np.concatenate(list(streams))
    return fn @ flat / math.sqrt(float(np.mean(flat * flat)) + norm_eps)


def affinity(y: Array, gate: Array) -> Array:
    """sqrt(softplus(gate . y)) of one token."""
    return np.array([math.sqrt(math.log1p(math.exp(float(row @ y)))) for row in gate])


def swiglu(y: Array, w1: Array, w2: Array, w3: Array, limit: float) -> Array:
    """One token through one expert: silu(min(w1 y, limit)) * clamp(w3 y) -> w2."""
    a, b = np.minimum(w1 @ y, limit), np.clip(w3 @ y, -limit, limit)
    return w2 @ (a / (1 + np.exp(-a)) * b)


def sylvester(size: int) -> Array:
    """The orthonormal Hadamard matrix of Sylvester's construction."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / math.sqrt(size)

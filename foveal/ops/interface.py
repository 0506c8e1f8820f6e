"""The narrow waist: the operations the network is made of, as one interface.

Everything that touches much data goes through `Operations`, and there is nothing else to port when a new one is
written. The operations are coarse, so that a fast backend can fuse them. `foveal.ops.reference` is their definition;
another backend is right when it agrees with it.

Shape legend: n = new tokens, d = hidden size, S = hc_mult streams, H = heads, c = head_dim, R = rotary channels,
I = indexer heads, ci = index_head_dim, s = entries so far, k = entries looked at, W = sliding window, w = past window
rows, r = compress ratio, E = experts, A = active experts, m = expert width, V = vocabulary.
Activations are fp32; positions and indices int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from foveal.formats.tensors import Weight

if TYPE_CHECKING:
    from foveal.ops.packed import PackedAttendInput, PackedCompressInput


@dataclass(frozen=True)
class Rotation:
    """Rotary embedding of one layer: `frequencies` [R/2] fp32, radians a position; the last R channels rotate."""

    frequencies: Tensor

    @property
    def channels(self) -> int:
        """R, the number of channels that rotate."""
        return 2 * self.frequencies.shape[0]


@dataclass(frozen=True)
class HyperWeights:
    """One hyper-connection: `fn` [(2 + S) * S, S * d], `base` [(2 + S) * S], `scale` [3] (or [S, S * d], [S], [1] for
    the output head), all fp32."""

    fn: Tensor
    base: Tensor
    scale: Tensor
    sinkhorn_iters: int
    eps: float
    norm_eps: float


@dataclass(frozen=True)
class CompressInput:
    """What `Operations.compress` works on.

    `kv`, `gate` [rows, width] fp32: the open rows followed by the new ones, `gate` with the position bias added. The
    first row stands at position `first_position`; new entries start at window `first_entry`.
    """

    kv: Tensor
    gate: Tensor
    first_position: int
    first_entry: int
    ratio: int
    norm: Tensor
    eps: float
    rotation: Rotation


@dataclass(frozen=True)
class AttendInput:
    """What `Operations.attend` works on.

    `query` [n, H, c] rotated; `positions` [n] consecutive; `window` [w + n, c]: past raw rows, then those of the n
    tokens themselves; `entries` [s, c]; `indices` [n, k] the entries each token looks at, padded with -1, or None for
    all that are visible; `sink` [H]; the softmax scale is c^-1/2.
    """

    query: Tensor
    positions: Tensor
    window: Tensor
    window_size: int
    entries: Tensor
    indices: Tensor | None
    ratio: int
    sink: Tensor
    rotation: Rotation


@dataclass(frozen=True)
class Mass:
    """Attention weight summed over heads, for the last `rows` tokens of an `attend`: `entries` [rows, s] or, with
    indices, [rows, k]; `window` [rows, W], column W-1 being the token itself."""

    entries: Tensor
    window: Tensor


@dataclass(frozen=True)
class ExpertWeights:
    """The experts of one layer: for each of E experts w1 (gate) [m, d], w3 (up) [m, d], w2 (down) [d, m]. Either
    sequences of E weights or stacked tensors [E, ., .]."""

    w1: Sequence[Weight] | Tensor
    w2: Sequence[Weight] | Tensor
    w3: Sequence[Weight] | Tensor
    limit: float


@dataclass(frozen=True)
class RouteInput:
    """What `Operations.route` works on: `gate` [E, d]; either `bias` [E] (learned routing) or `table` [V, A] with
    `tokens` [n] (hash routing)."""

    gate: Tensor
    bias: Tensor | None
    table: Tensor | None
    tokens: Tensor
    active: int
    scale: float


class Operations(Protocol):
    """The operations. Every implementation is a module with these functions; none keeps state."""

    def linear(self, x: Tensor, weight: Weight, *, simulate: bool = False) -> Tensor:
        """``x @ weight.T``: [n, in] -> [n, out]. `simulate` passes x through FP8 (1 x 128 blocks) first."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """x / rms(x) over the last axis, times `weight` if there is one."""
        ...

    def rotate(self, x: Tensor, positions: Tensor, rotation: Rotation, *, inverse: bool = False) -> Tensor:
        """Rotate the last R channels of x [n, ..., c], as interleaved pairs, by position times frequency."""
        ...

    def hyper_pre(self, streams: Tensor, weights: HyperWeights) -> tuple[Tensor, Tensor, Tensor]:
        """Streams [n, S, d] -> sub-layer input [n, d], `post` [n, S], `comb` [n, S, S] (source, destination)."""
        ...

    def hyper_post(self, out: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        """Sub-layer output [n, d] and the streams before it -> the streams after it [n, S, d]."""
        ...

    def hyper_head(self, streams: Tensor, weights: HyperWeights) -> Tensor:
        """Streams [n, S, d] -> [n, d], the weighted sum before the final norm."""
        ...

    def query(
        self,
        latent: Tensor,
        weight: Weight,
        heads: int,
        positions: Tensor,
        rotation: Rotation,
        eps: float | None,
        *,
        simulate: bool = False,
    ) -> Tensor:
        """Latent [n, q] -> rotated queries [n, heads, c]; each head is RMS-normalised unless `eps` is None."""
        ...

    def compress(self, x: CompressInput) -> Tensor:
        """Complete windows -> entries [m, e] (report eq. for CSA and HCA): gated sum, norm, rotation at s * r."""
        ...

    def quantize_kv(self, x: Tensor, rotary: int) -> Tensor:
        """Simulate FP8 on the channels before the last `rotary` ones, in blocks of 64, and BF16 on those."""
        ...

    def quantize_index(self, x: Tensor) -> Tensor:
        """Hadamard rotation of the last axis (Sylvester order, orthonormal), then FP4 in blocks of 32."""
        ...

    def index_scores(self, query: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
        """score[n, s] = sum over heads of weight * relu(q . k); query [n, I, ci], weights [n, I], keys [s, ci]."""
        ...

    def index_topk(self, query: Tensor, weights: Tensor, keys: Tensor, visible: Tensor, k: int) -> Tensor:
        """The k best-scored of the first visible[i] keys for each token: [n, min(k, s)] int64, ascending, padded with
        -1. Ties take the lowest index."""
        ...

    def attend(self, x: AttendInput, *, trace: int = 0) -> tuple[Tensor, Mass | None]:
        """Attention over raw window and entries in one softmax with a sink, inverse rotation at the end: [n, H, c].
        With `trace` > 0 also the mass of the last `trace` tokens."""
        ...

    def grouped_output(self, out: Tensor, wo_a: Weight, wo_b: Weight, groups: int, *, simulate: bool = False) -> Tensor:
        """Heads [n, H, c] -> [n, d]: each group of H / g heads through its slice of `wo_a`, all through `wo_b`."""
        ...

    def route(self, y: Tensor, x: RouteInput) -> tuple[Tensor, Tensor, Tensor]:
        """y [n, d] -> experts [n, A] int64, their weights [n, A], and all affinities [n, E] (for balancing)."""
        ...

    def experts(
        self,
        y: Tensor,
        chosen: Tensor,
        weights: Tensor,
        routed: ExpertWeights,
        shared: ExpertWeights,
        *,
        simulate: bool = False,
    ) -> Tensor:
        """Routed experts, weighted, plus the shared ones: [n, d] -> [n, d]. SwiGLU with the clamp at `limit`."""
        ...

    # Rows of packed documents (`foveal.ops.packed`): training's form of what looks at a past.

    def compress_packed(self, x: PackedCompressInput) -> Tensor:
        """`compress` for rows: the entries [B, E, e] of all their windows."""
        ...

    def index_scores_packed(self, query: Tensor, weights: Tensor, keys: Tensor, ratio: int) -> Tensor:
        """`index_scores` for rows: [B, T, I, ci], [B, T, I] and [B, E, ci] -> [B, T, E]."""
        ...

    def choose_packed(self, scores: Tensor, visible: Tensor, k: int) -> Tensor:
        """`index_topk` for rows, as a mask: scores and what is visible [B, T, E] -> [B, T, E] bool."""
        ...

    def attend_packed(self, x: PackedAttendInput, *, trace: bool = False) -> tuple[Tensor, Tensor | None]:
        """`attend` for rows: [B, T, H, c], and with `trace` the mass on entries [B, T, E] of every token."""
        ...

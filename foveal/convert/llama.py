"""The source as it computes: the network that the converted one is fitted to, measured against and taught by.

Rows are whole documents from position 0. No cache: nothing here decodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.convert.source import LayerWeights, Source

Part = Literal["attention", "feed_forward"]

Hook = Callable[[Part, int, Tensor], None]
"""Called with a sub-layer, its layer's number and its RMS-normed input [B, T, d], the norm's weight not applied."""


def normed(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the interleaved pairs of x [..., T, 2P] by angles [T, P]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class Llama:
    """The source's network. Matrices in `dtype` (norm weights folded in), residual stream and norms in fp32."""

    def __init__(self, source: Source, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self.source, self.shape, self.dtype = source, source.shape, dtype
        self.embed = source.tensor("embed").to(device, dtype)
        self.head = (source.tensor("head") * source.tensor("norm")).to(device, dtype)
        self.layers = [LlamaLayer(source.layer(i), dtype, device) for i in range(source.shape.layers)]
        self.frequencies = torch.tensor(source.shape.frequencies, dtype=torch.float32, device=device)

    @torch.no_grad()
    def hidden(self, tokens: Tensor, hook: Hook | None = None) -> Tensor:
        """tokens [B, T] int64 -> what the head multiplies [B, T, d]."""
        eps = self.shape.rms_norm_eps
        stream = self.embed[tokens].float()
        for index, layer in enumerate(self.layers):
            x = normed(stream, eps)
            if hook is not None:
                hook("attention", index, x)
            stream = stream + self.attention(layer, x.to(self.dtype)).float()
            y = normed(stream, eps)
            if hook is not None:
                hook("feed_forward", index, y)
            stream = stream + layer.feed_forward(y.to(self.dtype)).float()
        return normed(stream, eps).to(self.dtype)

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """tokens [B, T] -> logits [B, T, V] fp32."""
        return F.linear(self.hidden(tokens), self.head).float()

    def attention(self, layer: LlamaLayer, x: Tensor) -> Tensor:
        """Grouped-query attention over whole rows: x [B, T, d] -> [B, T, d]."""
        s, count = self.shape, x.shape[1]
        query, key, value = self.projected(layer, x)
        mask = None
        if s.window is not None and s.window < count:
            place = torch.arange(count, device=x.device)
            distance = place[:, None] - place
            mask = (distance >= 0) & (distance < s.window)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return F.linear(out.transpose(1, 2).flatten(2), layer.o)

    def projected(self, layer: LlamaLayer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each head [B, H, T, c], the first two turned: x [B, T, d] from position 0."""
        s = self.shape
        angles = torch.arange(x.shape[1], dtype=torch.float32, device=x.device)[:, None] * self.frequencies
        query = F.linear(x, layer.q).unflatten(-1, (s.heads, s.head_dim)).transpose(1, 2)
        key = F.linear(x, layer.k).unflatten(-1, (s.groups, s.head_dim)).transpose(1, 2)
        value = F.linear(x, layer.v).unflatten(-1, (s.groups, s.head_dim)).transpose(1, 2)
        query, key = turned(query.float(), angles).to(x.dtype), turned(key.float(), angles).to(x.dtype)
        key, value = (part.repeat_interleave(s.heads_per_group, 1) for part in (key, value))
        return query, key, value


class LlamaLayer:
    """One layer's matrices, norm weights folded into what follows them."""

    def __init__(self, weights: LayerWeights, dtype: torch.dtype, device: torch.device | str) -> None:
        self.q, self.k, self.v = (matrix.to(device, dtype) for matrix in weights.folded())
        self.o, self.down = weights.o.to(device, dtype), weights.down.to(device, dtype)
        self.gate, self.up = ((m * weights.ffn_norm).to(device, dtype) for m in (weights.gate, weights.up))

    def feed_forward(self, y: Tensor) -> Tensor:
        """SwiGLU: y [..., d] -> [..., d]."""
        return F.linear(F.silu(F.linear(y, self.gate)) * F.linear(y, self.up), self.down)

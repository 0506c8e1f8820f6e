"""A pretrained model of the Llama kind, whatever its files look like: its shape, its weights and its text side.

Weights have one set of names and one convention. The rows of query and key matrices are interleaved pairs, (2i, 2i + 1)
turning together, as in V4; files that keep the halves apart are put in this order when they are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """The numbers of a Llama-like model: grouped-query attention, RoPE on whole heads, RMSNorm, SwiGLU.

    `frequencies`: radians a position of each rotary pair, head_dim / 2 of them. `rope_theta` is the base they come from
    (before any scaling). `window`: how far a token sees, None for everything.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    groups: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    frequencies: tuple[float, ...]
    context: int
    window: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int

    @property
    def heads_per_group(self) -> int:
        """Query heads that share a key-value group."""
        return self.heads // self.groups


@dataclass(frozen=True)
class TextSide:
    """What turns text into the model's tokens: the content of a ``tokenizer.json``, and the chat template (Jinja)."""

    tokenizer: str
    chat_template: str | None = None


@dataclass(frozen=True)
class Source:
    """A model that can be read. `tensor(name)` loads one weight in fp32; names:

    embed, norm, head; and for each layer ``{i}.``: attn_norm, ffn_norm [d], q [H * c, d], k and v [G * c, d],
    o [d, H * c], gate and up [m, d], down [d, m].

    `identity` names the files' content: a fit is only gone on with for the same one.
    """

    name: str
    shape: LlamaShape
    tensor: Callable[[str], Tensor]
    text: TextSide
    identity: str
    licence: str | None = None

    def layer(self, index: int) -> LayerWeights:
        """The weights of one layer, fp32."""
        names = (field.name for field in dataclasses.fields(LayerWeights))
        return LayerWeights(**{name: self.tensor(f"{index}.{name}") for name in names})


@dataclass(frozen=True)
class LayerWeights:
    """One layer's matrices and norms, as `Source` names them."""

    attn_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    ffn_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor

    def folded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value matrices of the RMS-normed input without its weight."""
        return self.q * self.attn_norm, self.k * self.attn_norm, self.v * self.attn_norm


def interleaved(matrix: Tensor, heads: int) -> Tensor:
    """Rows [heads * c, d] whose pairs are (i, i + c / 2) of each head -> pairs (2i, 2i + 1)."""
    return matrix.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def rotary_frequencies(head_dim: int, theta: float) -> tuple[float, ...]:
    """theta^(-2i / head_dim) for i < head_dim / 2."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    return tuple((float(theta) ** -exponents).tolist())

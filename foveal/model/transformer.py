"""The network: embedding, S streams, layers of attention and experts, output head (report section 2).

It is written once. Training runs it on parameters with autograd; serving runs the same modules on stored weights. It
owns no memory: the past comes from, and goes to, the segments' states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveal.config import ModelConfig, Numerics
from foveal.model.attention import Attention, Past
from foveal.model.experts import Experts
from foveal.model.finite import require_finite
from foveal.model.hyper_connections import coefficient_count, hyper_weights
from foveal.model.linear import Matrix, Vector
from foveal.model.state import Segment
from foveal.model.trace import Observer
from foveal.ops import Operations, Packing, reference


class Block(nn.Module):
    """One layer: attention, then experts, each wrapped in a hyper-connection."""

    hc_attn_fn: Tensor
    hc_attn_base: Tensor
    hc_attn_scale: Tensor
    hc_ffn_fn: Tensor
    hc_ffn_base: Tensor
    hc_ffn_scale: Tensor

    def __init__(self, config: ModelConfig, layer: int, ops: Operations, numerics: Numerics) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        streams, d = config.hc_mult, config.hidden_size
        for name in ("attn", "ffn"):
            count = coefficient_count(streams)
            self.register_parameter(f"hc_{name}_fn", nn.Parameter(torch.empty(count, streams * d)))
            self.register_parameter(f"hc_{name}_base", nn.Parameter(torch.zeros(count)))
            self.register_parameter(f"hc_{name}_scale", nn.Parameter(torch.ones(3)))
        self.attn_norm = Vector(d)
        self.ffn_norm = Vector(d)
        self.attn = Attention(config, layer, ops, numerics)
        self.ffn = Experts(config, layer, ops, numerics)

    def forward(
        self,
        streams: Tensor,
        tokens: Tensor,
        positions: Tensor,
        past: Past,
        observer: Observer | None,
    ) -> Tensor:
        """Streams [n, S, d] before -> after this layer."""
        ops, eps = self.ops, self.config.rms_norm_eps
        hyper = hyper_weights(self.config, self.hc_attn_fn, self.hc_attn_base, self.hc_attn_scale)
        u, post, comb = ops.hyper_pre(streams, hyper)
        out = self.attn(ops.rms_norm(u, self.attn_norm.weight, eps), positions, past, observer)
        streams = ops.hyper_post(out, streams, post, comb)
        hyper = hyper_weights(self.config, self.hc_ffn_fn, self.hc_ffn_base, self.hc_ffn_scale)
        u, post, comb = ops.hyper_pre(streams, hyper)
        out = self.ffn(ops.rms_norm(u, self.ffn_norm.weight, eps), tokens, observer)
        return ops.hyper_post(out, streams, post, comb)


class Transformer(nn.Module):
    """A DeepSeek-V4 model. Parameters carry the checkpoint's names (experts stacked)."""

    def __init__(self, config: ModelConfig, *, ops: Operations = reference, numerics: Numerics | None = None) -> None:
        super().__init__()
        numerics = numerics or Numerics()
        self.config, self.ops, self.numerics = config, ops, numerics
        streams, d = config.hc_mult, config.hidden_size
        self.embed = Matrix(config.vocab_size, d)
        self.layers = nn.ModuleList(Block(config, i, ops, numerics) for i in range(config.num_hidden_layers))
        self.norm = Vector(d)
        self.head = Matrix(config.vocab_size, d)
        self.hc_head_fn = nn.Parameter(torch.empty(streams, streams * d))
        self.hc_head_base = nn.Parameter(torch.zeros(streams))
        self.hc_head_scale = nn.Parameter(torch.ones(1))
        self.mtp = nn.ModuleList(
            MtpBlock(config, config.num_hidden_layers + i, ops, numerics)
            for i in range(config.num_nextn_predict_layers)
        )

    def forward(self, tokens: Tensor, past: Past, observer: Observer | None = None) -> Tensor:
        """Run tokens [n] (int64) through all layers: the next ones of segments, whose states advance, or all B * T of a
        packing, row by row.

        Returns the streams [n, S, d] after the last layer, which `logits` reads. Raises `ValueError` when the segments
        do not add up to the tokens, or a token id is outside the vocabulary, `NotFiniteError` when the streams of
        segments hold NaN or an infinity; no state has advanced then.
        """
        if not isinstance(past, Packing):
            self._check(tokens, past)
        streams = self.embedded(tokens).unsqueeze(1).repeat(1, self.config.hc_mult, 1)
        if isinstance(past, Packing):
            return self.through(streams, tokens, past.position.flatten(), past, observer)
        positions = torch.cat([torch.arange(s.state.length, s.state.length + s.count) for s in past])
        streams = self.through(streams, tokens, positions, past, observer)
        require_finite(self, tokens, [segment.count for segment in past], streams)
        start = 0
        for segment in past:
            segment.state.advance(tokens[start : start + segment.count])
            start += segment.count
        return streams

    def through(
        self, streams: Tensor, tokens: Tensor, positions: Tensor, past: Past, observer: Observer | None
    ) -> Tensor:
        """Streams [n, S, d] before the first layer -> after the last; no state advances."""
        for layer in self.layers:
            streams = layer(streams, tokens, positions, past, observer)
        return streams

    def embedded(self, tokens: Tensor) -> Tensor:
        """Rows of the embedding [n, d] in fp32."""
        table = self.embed.operand()
        assert isinstance(table, Tensor), "the embedding is never stored in blocks"
        return table[tokens].to(torch.float32)

    def logits(self, streams: Tensor) -> Tensor:
        """Streams [m, S, d] -> logits [m, V] fp32."""
        return self.ops.linear(self.hidden(streams), self.head.operand())

    def hidden(self, streams: Tensor) -> Tensor:
        """Streams [m, S, d] -> what the head multiplies [m, d]."""
        hyper = hyper_weights(self.config, self.hc_head_fn, self.hc_head_base, self.hc_head_scale)
        return self.ops.rms_norm(self.ops.hyper_head(streams, hyper), self.norm.weight, self.config.rms_norm_eps)

    def _check(self, tokens: Tensor, segments: Sequence[Segment]) -> None:
        total = sum(segment.count for segment in segments)
        if total != len(tokens) or any(segment.count < 1 for segment in segments):
            raise ValueError(f"{len(tokens)} tokens for segments of {[s.count for s in segments]}; they must add up")
        if len({id(segment.state) for segment in segments}) != len(segments):
            raise ValueError("the same sequence stands in two segments of one batch")
        if bool((tokens < 0).any()) or bool((tokens >= self.config.vocab_size).any()):
            raise ValueError(f"token ids must be from 0 to {self.config.vocab_size - 1}")


class MtpBlock(Block):
    """The multi-token-prediction block: an ordinary window-only layer behind two projections, with a head of its own
    (report, section on MTP). It predicts the token after the next one.

    Decoding with it (speculation) is the engine's business.
    """

    def __init__(self, config: ModelConfig, layer: int, ops: Operations, numerics: Numerics) -> None:
        super().__init__(config, layer, ops, numerics)
        streams, d = config.hc_mult, config.hidden_size
        self.e_proj = Matrix(d, d, config.linear_dtype)
        self.h_proj = Matrix(d, d, config.linear_dtype)
        self.enorm, self.hnorm, self.norm = Vector(d), Vector(d), Vector(d)
        self.hc_head_fn = nn.Parameter(torch.empty(streams, streams * d))
        self.hc_head_base = nn.Parameter(torch.zeros(streams))
        self.hc_head_scale = nn.Parameter(torch.ones(1))

    def predict(
        self,
        streams: Tensor,
        embedded: Tensor,
        tokens: Tensor,
        positions: Tensor,
        past: Past,
        observer: Observer | None = None,
    ) -> Tensor:
        """One step ahead: streams [n, S, d] after the network's last layer (or after this block, for longer drafts) and
        the next tokens with their embedding [n], [n, d] -> streams [n, S, d]."""
        ops, eps = self.ops, self.config.rms_norm_eps
        simulate = self.attn.numerics.activations and self.e_proj.simulate
        own = ops.linear(ops.rms_norm(embedded, self.enorm.weight, eps), self.e_proj.operand(), simulate=simulate)
        normed = ops.rms_norm(streams, self.hnorm.weight, eps).flatten(0, 1)
        past_ones = ops.linear(normed, self.h_proj.operand(), simulate=simulate).unflatten(0, (len(streams), -1))
        return self.forward(own.unsqueeze(1) + past_ones, tokens, positions, past, observer)

    def hidden(self, streams: Tensor) -> Tensor:
        """Streams [m, S, d] after `predict` -> what the model's head multiplies [m, d]."""
        hyper = hyper_weights(self.config, self.hc_head_fn, self.hc_head_base, self.hc_head_scale)
        return self.ops.rms_norm(self.ops.hyper_head(streams, hyper), self.norm.weight, self.config.rms_norm_eps)

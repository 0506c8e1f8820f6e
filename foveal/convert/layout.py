"""Where everything lies in V4's one wide head, and the config that goes with it (docs/convert.md).

Channels of a head, of queries and of the shared key-value vector:

    [values: G * c][filler: d][rotary: R, of which G * c carry keys]

V4's rotary pairs form one geometric series. With m times as many pairs as the source's head has, every m-th pair turns
exactly as a pair of the source does; the groups' further components take the nearest free ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.config import HCA_RATIO, ExpertDtype, LinearDtype, ModelConfig
from foveal.convert.source import LlamaShape

RAW_WINDOW = HCA_RATIO - 1
"""Raw tokens that a converted model sees by default. The first token's entry appears just as the token itself leaves
this window, so together they are the exact attention of 128 tokens."""

_NEVER = 1e4
"""A clamp that nothing reaches."""


@dataclass(frozen=True)
class Layout:
    """Channels of the wide head of a converted model."""

    shape: LlamaShape
    pairs_per_frequency: int

    @classmethod
    def of(cls, shape: LlamaShape) -> Layout:
        """The layout for a source's shape: no spare pairs for one group, a few for several."""
        return cls(shape, 1 if shape.groups == 1 else max(4, shape.groups))

    @property
    def value(self) -> slice:
        """The groups' values, side by side."""
        return slice(0, self.shape.groups * self.shape.head_dim)

    @property
    def filler(self) -> slice:
        """As many channels as the input has."""
        return slice(self.value.stop, self.value.stop + self.shape.hidden_size)

    @property
    def rotary(self) -> int:
        """Rotary channels, at the end of the head."""
        return self.pairs_per_frequency * self.shape.head_dim

    @property
    def width(self) -> int:
        """Channels of the whole head."""
        return self.filler.stop + self.rotary

    @property
    def frequencies(self) -> Tensor:
        """What V4's pairs turn by, radians a position [R / 2] fp64."""
        exponents = torch.arange(self.rotary // 2, dtype=torch.float64) / (self.rotary // 2)
        return self.shape.rope_theta**-exponents

    def pairs(self) -> Tensor:
        """The pair that carries component c of the source's frequency i: int64 [G, c / 2]."""
        wanted, there = torch.tensor(self.shape.frequencies, dtype=torch.float64).log(), self.frequencies.log()
        taken: set[int] = set()
        rows = []
        for _ in range(self.shape.groups):
            row = [_nearest_free(float(one), there, taken) for one in wanted]
            rows.append(row)
        return torch.tensor(rows)

    def key_channels(self) -> Tensor:
        """Channels of the keys, component by component, pairs interleaved: int64 [G * c]."""
        first = self.filler.stop + 2 * self.pairs()
        return torch.stack([first, first + 1], -1).flatten()

    def free_pairs(self) -> Tensor:
        """Pairs that carry no key and turn slowly enough for logits that depend on distance alone: int64 [P]."""
        return torch.tensor(sorted({*range(3, self.rotary // 2)} - {*self.pairs().flatten().tolist()}))

    def config(self, window: int, *, linear: LinearDtype = "bf16", expert: ExpertDtype = "bf16") -> ModelConfig:
        """The config of the converted model, `window` raw tokens wide. Up to `RAW_WINDOW` the layers are HCA, whose
        entries carry the first token; a wider one has sliding layers only."""
        s = self.shape
        half = -(-s.intermediate_size // 2)
        return ModelConfig(
            vocab_size=s.vocab_size,
            hidden_size=s.hidden_size,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            head_dim=self.width,
            qk_rope_head_dim=self.rotary,
            q_lora_rank=s.hidden_size,
            o_groups=s.heads,
            o_lora_rank=s.head_dim,
            compress_ratios=(HCA_RATIO if window <= RAW_WINDOW else 0,) * s.layers,
            index_n_heads=1,
            index_head_dim=1 << math.ceil(math.log2(self.rotary)),
            index_topk=1,
            n_routed_experts=1,
            num_experts_per_tok=1,
            moe_intermediate_size=-(-half // 32) * 32 if expert == "fp4" else half,
            num_hash_layers=0,
            routed_scaling_factor=1.0,
            sliding_window=window,
            swiglu_limit=_NEVER,
            hc_mult=1,
            hc_sinkhorn_iters=1,
            hc_eps=1e-12,
            rms_norm_eps=s.rms_norm_eps,
            rope_theta=s.rope_theta,
            compress_rope_theta=s.rope_theta,
            rope_scaling=None,
            max_position_embeddings=s.context,
            num_nextn_predict_layers=0,
            bos_token_id=s.bos_token_id if s.bos_token_id is not None else s.eos_token_id,
            eos_token_id=s.eos_token_id,
            expert_dtype=expert,
            linear_dtype=linear,
        )


def _nearest_free(wanted: float, there: Tensor, taken: set[int]) -> int:
    """The free pair whose logarithm of a frequency is nearest to `wanted`; of two equally near ones the slower."""
    distance = (there - wanted).abs().round(decimals=9)
    best = min((i for i in range(len(there)) if i not in taken), key=lambda i: (float(distance[i]), -i))
    taken.add(best)
    return best

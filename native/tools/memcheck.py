"""Runs a small network through every kernel, for memcheck (`make memcheck` calls it).

Valgrind knows no AVX-512, so the AVX2 and the portable kernels run. Odd sizes, several sequences, every layer kind,
every weight and cache format; results are compared with each other, so that they are used.
"""

from __future__ import annotations

import numpy as np

from foveal import _native
from foveal.backends.cpu.network import NativeNetwork
from foveal.cache import CacheFormat, CacheLayout, PagePool, Sequence
from foveal.cache.contract import Observer, Segment
from foveal.checkpoint import random_weights
from foveal.config import ModelConfig, Numerics, preset
from foveal.formats import Array

LENGTHS = (131, 6)
"""Of two sequences: one that has HCA entries and more entries than top-k, one inside its first window."""


def small(formats: str) -> ModelConfig:
    """A network of every layer kind, with tails in every loop."""
    return preset("nano-bench").replace(
        vocab_size=97,
        hidden_size=96,
        num_hidden_layers=4,
        compress_ratios=(0, 4, 128, 4),
        num_attention_heads=6,
        head_dim=80,
        qk_rope_head_dim=16,
        q_lora_rank=48,
        o_groups=2,
        o_lora_rank=32,
        index_n_heads=3,
        index_head_dim=64,
        index_topk=12,
        n_routed_experts=5,
        moe_intermediate_size=96,
        num_hash_layers=1,
        sliding_window=32,
        expert_dtype="fp4" if formats == "fp4" else "bf16",
        linear_dtype="fp8" if formats == "fp4" else "bf16",
    )


def run(isa: str, formats: str, kv: CacheFormat) -> Array:
    """Logits after reading both sequences in one batch and decoding two tokens, traced."""
    config = small(formats)
    numerics = Numerics() if kv.kv == "fp8" else Numerics(activations=False, kv=False, index=False)
    network = NativeNetwork(config, dict(random_weights(config, seed=1)), numerics=numerics, threads=2, isa=isa)
    pool = PagePool(CacheLayout(config, kv))
    sequences = [Sequence(pool, dtype=np.float32) for _ in LENGTHS]
    tokens = np.arange(sum(LENGTHS)) * 7 % config.vocab_size
    network(tokens, [Segment(s, n) for s, n in zip(sequences, LENGTHS, strict=True)])
    for token in (3, 5):
        streams = network(np.array([token, token]), [Segment(s, 1) for s in sequences], Observer())
    return network.logits(streams)


def main() -> None:
    """All combinations; raises when two instruction sets disagree."""
    isas = _native.available_isas()
    for formats in ("fp4", "bf16"):
        for kv in (
            CacheFormat(kv="fp8", index="fp4"),
            CacheFormat(kv="bf16", index="bf16"),
            CacheFormat(kv="fp32", index="fp32"),
        ):
            found = [run(isa, formats, kv) for isa in isas]
            assert all(np.isfinite(logits).all() for logits in found)
            print(formats, kv, "largest difference", max(float(np.abs(logits - found[0]).max()) for logits in found))


if __name__ == "__main__":
    main()

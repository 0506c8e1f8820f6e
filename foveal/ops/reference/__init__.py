"""The reference backend: plain differentiable PyTorch, the definition of every operation.

It is meant to be read beside the report, one file for each idea, and training runs on it. Speed matters only where it
changes no line's meaning.
"""

from foveal.ops.reference.attention import attend
from foveal.ops.reference.compression import compress
from foveal.ops.reference.dense import (
    grouped_output,
    hadamard,
    linear,
    quantize_index,
    quantize_kv,
    query,
    rms_norm,
    rotate,
)
from foveal.ops.reference.experts import experts, route
from foveal.ops.reference.hyper import hyper_head, hyper_post, hyper_pre, sinkhorn
from foveal.ops.reference.indexing import index_scores, index_topk
from foveal.ops.reference.packed import attend_packed, choose_packed, compress_packed, index_scores_packed

__all__ = [
    "attend",
    "attend_packed",
    "choose_packed",
    "compress",
    "compress_packed",
    "experts",
    "grouped_output",
    "hadamard",
    "hyper_head",
    "hyper_post",
    "hyper_pre",
    "index_scores",
    "index_scores_packed",
    "index_topk",
    "linear",
    "quantize_index",
    "quantize_kv",
    "query",
    "rms_norm",
    "rotate",
    "route",
    "sinkhorn",
]

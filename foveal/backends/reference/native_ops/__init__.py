"""The operations on the native library: the same interface as the reference, for inference on a CPU.

Each function makes its result's memory and calls one kernel. Products are exact to about 1e-5, so that this backend can
stand in for the reference; results have no gradient. Serving does not call these one by one (`foveal.backends.cpu` runs
all layers in one call, on the same kernels); tests and everything unusual do. Training's operations on packed rows are
the reference's.
"""

from foveal.backends.reference.native_ops.attention import attend
from foveal.backends.reference.native_ops.compression import compress
from foveal.backends.reference.native_ops.dense import experts, grouped_output, linear, route
from foveal.backends.reference.native_ops.indexing import index_scores, index_topk
from foveal.backends.reference.native_ops.rows import (
    hyper_head,
    hyper_post,
    hyper_pre,
    quantize_index,
    quantize_kv,
    query,
    rms_norm,
    rotate,
)
from foveal.ops.reference.packed import attend_packed, choose_packed, compress_packed, index_scores_packed

__all__ = [
    "attend",
    "attend_packed",
    "choose_packed",
    "compress",
    "compress_packed",
    "experts",
    "grouped_output",
    "hyper_head",
    "hyper_post",
    "hyper_pre",
    "index_scores",
    "index_scores_packed",
    "index_topk",
    "linear",
    "query",
    "quantize_index",
    "quantize_kv",
    "rms_norm",
    "rotate",
    "route",
]

"""The lightning indexer: which entries of a CSA layer a token looks at (report section 2.3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from foveal.config import ModelConfig, Numerics
from foveal.model.compressor import Compressor
from foveal.model.linear import Matrix
from foveal.model.state import Part
from foveal.ops import Operations, Packing, Rotation


class Indexer(nn.Module):
    """Queries from attention's latent, keys from a narrow compressor of its own, head weights from the input."""

    def __init__(self, config: ModelConfig, layer: int, ops: Operations) -> None:
        super().__init__()
        self.ops = ops
        self.heads = config.index_n_heads
        self.topk = config.index_topk
        self.scale = config.index_head_dim**-0.5 * config.index_n_heads**-0.5
        self.wq_b = Matrix(config.index_n_heads * config.index_head_dim, config.q_lora_rank, config.linear_dtype)
        self.weights_proj = Matrix(config.index_n_heads, config.hidden_size)
        self.compressor = Compressor(config, layer, Part.INDEX, ops)

    def queries(
        self, x: Tensor, latent: Tensor, positions: Tensor, rotation: Rotation, numerics: Numerics
    ) -> tuple[Tensor, Tensor]:
        """Input x [n, d] and latent [n, q] -> queries [n, I, ci] (no per-head norm) and head weights [n, I]."""
        simulate = numerics.activations and self.wq_b.simulate
        q = self.ops.query(latent, self.wq_b.operand(), self.heads, positions, rotation, None, simulate=simulate)
        weights = self.ops.linear(x, self.weights_proj.operand()) * self.scale
        return self.ops.quantize_index(q) if numerics.index else q, weights

    def choose(self, queries: Tensor, weights: Tensor, keys: Tensor, visible: Tensor) -> Tensor | None:
        """Indices [n, topk] of the entries to look at, or None when every visible entry may be (V4: the indexer
        changes nothing while there are no more entries than `topk`)."""
        if int(visible.max()) <= self.topk:
            return None
        return self.ops.index_topk(queries, weights, keys, visible, self.topk)

    def limits(self, packing: Packing) -> bool:
        """Whether a token of `packing` may see more entries than `topk`, so that there is something to choose."""
        return packing.windows[self.compressor.ratio].start.shape[1] > self.topk

"""One attention sub-layer: window, and in compressed layers the entries of CSA or HCA (report section 2.3).

Tokens of several sequences come as one flat batch. What acts on each token alone runs on all of them at once; what
needs a sequence's past runs segment by segment, or, in training, on whole rows of packed documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveal.cache.contract import Part
from foveal.config import LayerKind, ModelConfig, Numerics
from foveal.model.compressor import Compressor
from foveal.model.indexer import Indexer
from foveal.model.linear import Matrix, Vector
from foveal.model.rope import rotation_of
from foveal.model.state import LayerUpdate, OpenRows, Segment, SequenceState
from foveal.model.trace import IndexLoss, Observer, index_divergence, last_trace
from foveal.ops import AttendInput, Mass, Operations, PackedAttendInput, Packing, Rotation

Past = Sequence[Segment] | Packing
"""What the tokens of a flat batch continue: sequences, or nothing (rows of packed documents, for training)."""


@dataclass(frozen=True)
class _Projected:
    """What a segment's tokens became before they meet their past."""

    positions: Tensor
    query: Tensor
    kv: Tensor
    rows: dict[Part, OpenRows]
    index: tuple[Tensor, Tensor] | None

    def split(self, counts: list[int]) -> list[_Projected]:
        """One for each segment. (Splitting, unlike slicing, has a gradient that touches every row once.)"""
        if len(counts) == 1:
            return [self]
        rows = {part: list(zip(r.kv.split(counts), r.gate.split(counts), strict=True)) for part, r in self.rows.items()}
        indexed: list[tuple[Tensor, Tensor] | None] = [None] * len(counts)
        if self.index is not None:
            indexed = list(zip(self.index[0].split(counts), self.index[1].split(counts), strict=True))
        each = zip(self.positions.split(counts), self.query.split(counts), self.kv.split(counts), strict=True)
        return [
            _Projected(*basic, {part: OpenRows(*pairs[i]) for part, pairs in rows.items()}, indexed[i])
            for i, basic in enumerate(each)
        ]


class Attention(nn.Module):
    """Parameters and order of one attention sub-layer; names are the checkpoint's."""

    def __init__(self, config: ModelConfig, layer: int, ops: Operations, numerics: Numerics) -> None:
        super().__init__()
        self.ops, self.numerics, self.layer = ops, numerics, layer
        self.kind, self.ratio = config.kind(layer), config.compress_ratios[layer]
        self.heads, self.groups = config.num_attention_heads, config.o_groups
        self.eps, self.window_size = config.rms_norm_eps, config.sliding_window
        d, c, q, stored = config.hidden_size, config.head_dim, config.q_lora_rank, config.linear_dtype
        self.attn_sink = nn.Parameter(torch.zeros(self.heads))
        self.wq_a = Matrix(q, d, stored)
        self.q_norm = Vector(q)
        self.wq_b = Matrix(self.heads * c, q, stored)
        self.wkv = Matrix(c, d, stored)
        self.kv_norm = Vector(c)
        self.wo_a = Matrix(self.groups * config.o_lora_rank, self.heads * c // self.groups, stored)
        self.wo_b = Matrix(d, self.groups * config.o_lora_rank, stored)
        self.compressor = Compressor(config, layer, Part.MAIN, ops) if self.ratio else None
        self.indexer = Indexer(config, layer, ops) if self.kind is LayerKind.CSA else None
        self.rotation = rotation_of(config, layer)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Attention:
        """The frequencies follow the parameters to their device, and stay fp32."""
        device = fn(torch.empty(0)).device
        if device.type != "meta":
            self.rotation = Rotation(self.rotation.frequencies.to(device))
        super()._apply(fn, recurse)
        return self

    def forward(self, x: Tensor, positions: Tensor, past: Past, observer: Observer | None) -> Tensor:
        """Normed input x [n, d] -> [n, d]; appends to the segments' states, or attends within a packing's documents."""
        simulate = self.numerics.activations and self.wo_b.simulate
        projected = self._project(x, positions, simulate)
        if isinstance(past, Packing):
            out = self._attend_packed(past, projected, observer)
        else:
            parts = projected.split([segment.count for segment in past])
            pairs = enumerate(zip(past, parts, strict=True))
            out = torch.cat([self._attend(segment, part, number, observer) for number, (segment, part) in pairs])
        return self.ops.grouped_output(out, self.wo_a.operand(), self.wo_b.operand(), self.groups, simulate=simulate)

    def _project(self, x: Tensor, positions: Tensor, simulate: bool) -> _Projected:
        ops, rotation = self.ops, self.rotation
        latent = ops.linear(x, self.wq_a.operand(), simulate=simulate)
        latent = ops.rms_norm(latent, self.q_norm.weight, self.eps)
        query = ops.query(latent, self.wq_b.operand(), self.heads, positions, rotation, self.eps, simulate=simulate)
        kv = ops.rms_norm(ops.linear(x, self.wkv.operand(), simulate=simulate), self.kv_norm.weight, self.eps)
        kv = ops.rotate(kv, positions, rotation)
        if self.numerics.kv:
            kv = ops.quantize_kv(kv, rotation.channels)
        rows: dict[Part, OpenRows] = {}
        index = None
        if self.compressor is not None:
            rows[Part.MAIN] = self.compressor.rows(x, positions)
        if self.indexer is not None:
            # The indexer learns from its own loss only, and that loss teaches nothing else (DeepSeek-V3.2, sparse
            # training): its input is detached. Its choice has no gradient in any case.
            rows[Part.INDEX] = self.indexer.compressor.rows(x.detach(), positions)
            index = self.indexer.queries(x.detach(), latent.detach(), positions, rotation, self.numerics)
        return _Projected(positions, query, kv, rows, index)

    def _attend(self, segment: Segment, new: _Projected, number: int, observer: Observer | None) -> Tensor:
        state = segment.state
        window = torch.cat([state.window(self.layer).to(new.kv.dtype), new.kv])
        state.append(self.layer, self._update(state, new))
        entries, indices = self._entries(state, new)
        x = AttendInput(
            query=new.query,
            positions=new.positions,
            window=window,
            window_size=self.window_size,
            entries=entries,
            indices=indices,
            ratio=self.ratio,
            sink=self.attn_sink,
            rotation=self.rotation,
        )
        rows = observer.rows(segment.count, indexed=self.indexer is not None) if observer is not None else 0
        out, mass = self.ops.attend(x, trace=rows)
        if observer is not None and mass is not None:
            self._report(observer, number, state, new, indices, mass)
        return out

    def _update(self, state: SequenceState, new: _Projected) -> LayerUpdate:
        open_rows: dict[Part, OpenRows] = {}
        entries: dict[Part, Tensor] = {}
        for part, compressor in self._compressors().items():
            before = state.open_rows(self.layer, part)
            open_rows[part], entries[part] = compressor.advance(
                before, new.rows[part], state.length, self.rotation, self.numerics
            )
        return LayerUpdate(new.kv, open_rows, entries)

    def _compressors(self) -> dict[Part, Compressor]:
        found: dict[Part, Compressor] = {}
        if self.compressor is not None:
            found[Part.MAIN] = self.compressor
        if self.indexer is not None:
            found[Part.INDEX] = self.indexer.compressor
        return found

    def _entries(self, state: SequenceState, new: _Projected) -> tuple[Tensor, Tensor | None]:
        """All entries so far, and which of them each new token looks at (None: all visible)."""
        if not self.ratio:
            return new.kv.new_empty(0, new.kv.shape[-1]), None
        entries = state.entries(self.layer, Part.MAIN).to(new.kv.dtype)
        if self.indexer is None or new.index is None:
            return entries, None
        visible = (new.positions + 1) // self.ratio
        keys = state.entries(self.layer, Part.INDEX).to(new.kv.dtype)
        return entries, self.indexer.choose(*new.index, keys, visible)

    def _report(
        self, observer: Observer, number: int, state: SequenceState, new: _Projected, indices: Tensor | None, mass: Mass
    ) -> None:
        if observer.index_loss and self.indexer is not None and new.index is not None:
            keys = state.entries(self.layer, Part.INDEX)
            scores = self.ops.index_scores(*new.index, keys.to(new.kv.dtype))
            observer.losses.append(IndexLoss.of(scores, mass.entries, (new.positions + 1) // self.ratio, indices))
        elif not observer.index_loss:
            observer.traces.append(last_trace(self.layer, number, self.ratio, new.positions, indices, mass))

    # ------------------------------------------------------------------ rows of packed documents

    def _attend_packed(self, packing: Packing, new: _Projected, observer: Observer | None) -> Tensor:
        rows = (packing.rows, packing.length)
        entries, allowed, scores = None, None, None
        if self.compressor is not None:
            windows = packing.windows[self.ratio]
            entries = self.compressor.packed(new.rows[Part.MAIN], windows, self.rotation, self.numerics)
            allowed = windows.visible
        watched = observer is not None and observer.index_loss
        if self.indexer is not None and new.index is not None and (watched or self.indexer.limits(packing)):
            keys = self.indexer.compressor.packed(new.rows[Part.INDEX], windows, self.rotation, self.numerics)
            query, weights = (part.unflatten(0, rows) for part in new.index)
            scores = self.ops.index_scores_packed(query, weights, keys, self.ratio)
            allowed = self.ops.choose_packed(scores, windows.visible, self.indexer.topk)
        x = PackedAttendInput(
            query=new.query.unflatten(0, rows),
            kv=new.kv.unflatten(0, rows),
            packing=packing,
            window_size=self.window_size,
            entries=entries,
            allowed=allowed,
            ratio=self.ratio,
            sink=self.attn_sink,
            rotation=self.rotation,
        )
        out, mass = self.ops.attend_packed(x, trace=watched and scores is not None)
        if observer is not None and mass is not None and scores is not None and allowed is not None:
            observer.losses.append(IndexLoss(index_divergence(scores, mass, allowed)))
        return out.flatten(0, 1)

"""The network as one native call a step.

What is special here: it is built from a `Transformer` that holds its weights as they are stored, and computes what
that one defines, on sequences in pages. A token's result does not depend on what else is in the batch, nor on how a
prompt is cut, nor on the number of threads. The sequences' states move only when the whole step has succeeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveal import _native
from foveal.cache import Sequence as CachedSequence
from foveal.config import CSA_RATIO, ModelConfig
from foveal.model import LayerTrace, Observer, Segment, Transformer
from foveal.model.compressor import Compressor
from foveal.model.finite import require_finite
from foveal.model.linear import Matrix, MatrixStack
from foveal.model.transformer import Block
from foveal.ops import Numerics
from foveal.ops.cpu.dense import native_matrix, native_table


class NativeNetwork:
    """`model` on the native kernels.

    `threads`: 0 for one on each physical core. `isa`: an instruction set of `foveal._native.available_isas()`, "" for
    the best. `exact`: activations that no run-time quantisation rounds enter products as two BF16 numbers, which agrees
    with fp32 to about 1e-5; otherwise as one, as in the official code. The default is exact unless `model.numerics`
    simulates the official activations.
    Raises `ValueError` for an unknown `isa`. Not to be used from two threads at once.
    """

    def __init__(self, model: Transformer, *, threads: int = 0, isa: str = "", exact: bool | None = None) -> None:
        self.model = model
        self.config: ModelConfig = model.config
        self.numerics: Numerics = model.numerics
        exact = not model.numerics.activations if exact is None else exact
        self.runtime = _native.Runtime(threads=threads, isa=isa, exact=exact)
        self._network = _native.Network(self.runtime, _shape(model))
        for block in model.layers:
            assert isinstance(block, Block)
            self._network.add_layer(_layer(self.config, block))
        self._network.set_ends(_ends(model))
        self._streams = self._streams_of(0)

    def __call__(self, tokens: Tensor, segments: Sequence[Segment], observer: Observer | None = None) -> Tensor:
        """Run the next tokens [n] (int64) of the segments through all layers; their states advance.

        Returns the streams [n, S, d] after the last layer, valid until the next call. Raises `ValueError` when the
        segments do not add up to the tokens or a token id is unknown, `CacheFull` when pages are lacking,
        `foveal.model.NotFiniteError` when streams hold NaN or an infinity; no state has moved then.
        """
        states = [self._sequence(segment) for segment in segments]
        if len({id(state) for state in states}) != len(states):
            raise ValueError("the same sequence stands in two segments of one batch")
        trace = observer is not None
        parts = []
        try:
            for state, segment in zip(states, segments, strict=True):
                live = state.begin_live(segment.count, self.runtime, fp4_keys=self.numerics.index)
                parts.append((live.native, segment.count, trace))
            streams = self._room(len(tokens))
            self._network.step(tokens.numpy(), parts, streams)
            require_finite(self.model, tokens, [segment.count for segment in segments], torch.from_numpy(streams))
        except BaseException:
            for state in states:
                state.rollback()
            raise
        start = 0
        for state, segment in zip(states, segments, strict=True):
            state.commit_live(tokens[start : start + segment.count])
            start += segment.count
        if observer is not None:
            observer.traces += self._traces([state.length for state in states])
        return torch.from_numpy(streams)

    def logits(self, streams: Tensor) -> Tensor:
        """Streams [m, S, d] -> logits [m, V] fp32."""
        out = np.empty((len(streams), self.config.vocab_size), dtype=np.float32)
        self._network.logits(streams.contiguous().numpy(), out)
        return torch.from_numpy(out)

    def profile(self) -> dict[str, float]:
        """Seconds spent in each operation since `reset_profile`."""
        return dict(self._network.seconds())

    def index_counters(self) -> tuple[int, int]:
        """Index keys that were visible, and that were scored, since `reset_profile`."""
        seen, scored = self._network.index_counters()
        return seen, scored

    def reset_profile(self) -> None:
        """Start counting anew."""
        self._network.reset_profile()

    def _sequence(self, segment: Segment) -> CachedSequence:
        if not isinstance(segment.state, CachedSequence):
            raise TypeError(
                f"the native network runs sequences in pages, not {type(segment.state).__name__}; run the Transformer "
                "itself for other states"
            )
        return segment.state

    # Arrays rather than tensors: handing a tensor over (DLPack) costs a small model's step a tenth of its time.
    def _streams_of(self, count: int) -> NDArray[np.float32]:
        return np.empty((count, self.config.hc_mult, self.config.hidden_size), dtype=np.float32)

    def _room(self, count: int) -> NDArray[np.float32]:
        if len(self._streams) < count:
            self._streams = self._streams_of(count)
        return self._streams[:count]

    def _traces(self, lengths: Sequence[int]) -> list[LayerTrace]:
        traces = []
        for layer, segment, ratio, indexed, indices, entry_bytes, window_bytes in self._network.traces():
            entry_mass = _floats(entry_bytes)
            entries = torch.arange(len(entry_mass))
            if indexed:
                chosen = torch.frombuffer(bytearray(indices), dtype=torch.int64)
                entries, entry_mass = chosen[chosen >= 0], entry_mass[chosen >= 0]
            window_mass = _floats(window_bytes)[-lengths[segment] :]
            traces.append(LayerTrace(layer, segment, ratio, entries, entry_mass, window_mass))
        return traces


def _floats(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.float32) if data else torch.empty(0)


def _shape(model: Transformer) -> dict[str, Any]:
    config, numerics, first = model.config, model.numerics, model.layers[0]
    assert isinstance(first, Block)
    return {
        "d": config.hidden_size,
        "streams": config.hc_mult,
        "heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "q_lora": config.q_lora_rank,
        "groups": config.o_groups,
        "window": config.sliding_window,
        "vocabulary": config.vocab_size,
        "index_heads": config.index_n_heads,
        "index_dim": config.index_head_dim,
        "topk": config.index_topk,
        "experts": config.n_routed_experts,
        "active": config.num_experts_per_tok,
        "route_scale": config.routed_scaling_factor,
        "limit": config.swiglu_limit,
        "norm_eps": config.rms_norm_eps,
        "hyper_eps": config.hc_eps,
        "sinkhorn_iters": config.hc_sinkhorn_iters,
        "simulate_linear": numerics.activations and first.attn.wo_b.simulate,
        "simulate_experts": numerics.activations and first.ffn.simulated,
        "quantize_kv": numerics.kv,
        "quantize_index": numerics.index,
    }


def _numbers(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.detach().to(torch.float32).contiguous()


def _matrix(matrix: Matrix) -> _native.Matrix:
    return native_matrix(matrix.operand())


def _matrices(stack: MatrixStack) -> list[_native.Matrix]:
    return [native_matrix(weight) for weight in stack.operand()]


def _table(config: ModelConfig, table: Tensor) -> Tensor:
    """Token ids to experts, int64. Raises `ValueError` for one that is none: the kernels do not look again."""
    lowest, highest = (int(value) for value in table.aminmax())
    if lowest < 0 or highest >= config.n_routed_experts:
        raise ValueError(f"tid2eid names experts {lowest} to {highest}; there are {config.n_routed_experts} (from 0)")
    return table.to(torch.int64).contiguous()


def _hyper(block: Block, name: str) -> dict[str, Tensor]:
    return {f"hc_{name}_{part}": _numbers(getattr(block, f"hc_{name}_{part}")) for part in ("fn", "base", "scale")}


def _compressor(prefix: str, compressor: Compressor) -> dict[str, Any]:
    return {
        f"{prefix}_wkv": _matrix(compressor.wkv),
        f"{prefix}_wgate": _matrix(compressor.wgate),
        f"{prefix}_ape": _numbers(compressor.ape),
        f"{prefix}_norm": _numbers(compressor.norm.weight),
    }


def _layer(config: ModelConfig, block: Block) -> dict[str, Any]:
    attention, ffn = block.attn, block.ffn
    gate, shared = ffn.gate, ffn.shared_experts
    values: dict[str, Any] = {
        "ratio": attention.ratio,
        "o_lora": config.o_lora_rank,
        "expert_width": config.moe_intermediate_size,
        "shared_width": config.moe_intermediate_size * config.n_shared_experts,
        **_hyper(block, "attn"),
        **_hyper(block, "ffn"),
        "attn_norm": _numbers(block.attn_norm.weight),
        "ffn_norm": _numbers(block.ffn_norm.weight),
        **{name: _matrix(getattr(attention, name)) for name in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b")},
        "q_norm": _numbers(attention.q_norm.weight),
        "kv_norm": _numbers(attention.kv_norm.weight),
        "sink": _numbers(attention.attn_sink),
        "rotary_half": len(attention.rotation.frequencies),
        "frequencies": _numbers(attention.rotation.frequencies),
        "gate": native_matrix(_numbers(gate.weight)),
        **{name: _matrices(getattr(ffn.experts, name)) for name in ("w1", "w2", "w3")},
        **{f"shared{i}": _matrix(getattr(shared, f"w{i}")) for i in (1, 2, 3)},
    }
    if gate.tid2eid is not None:
        values["gate_table"] = _table(config, gate.tid2eid)
    else:
        values["gate_bias"] = _numbers(gate.bias)
    if attention.compressor is not None:
        values |= _compressor("main", attention.compressor)
    if attention.indexer is not None:
        assert attention.ratio == CSA_RATIO
        values |= _compressor("index", attention.indexer.compressor)
        values["index_wq_b"] = _matrix(attention.indexer.wq_b)
        values["index_weights"] = _matrix(attention.indexer.weights_proj)
    return values


def _embedding(model: Transformer) -> _native.Matrix:
    table = model.embed.operand()
    return native_table(table) if isinstance(table, Tensor) else native_matrix(table)


def _ends(model: Transformer) -> dict[str, Any]:
    return {
        "embedding": _embedding(model),
        "head": _matrix(model.head),
        "norm": _numbers(model.norm.weight),
        **{f"hc_head_{part}": _numbers(getattr(model, f"hc_head_{part}")) for part in ("fn", "base", "scale")},
    }

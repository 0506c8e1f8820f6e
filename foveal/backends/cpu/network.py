"""The network as one native call a step.

It is built from a checkpoint's weights as they are stored, and computes what `foveal.model` defines, on sequences in
pages. A token's result does not depend on what else is in the batch, nor on how a prompt is cut, nor on the number of
threads. The sequences' states move only when the whole step has succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from foveal import _native
from foveal.backends.cpu.finite import Origin, bad_segment
from foveal.backends.cpu.layers import ends_of, layer_of, shape_of
from foveal.backends.cpu.live import Live, LiveKeeper
from foveal.cache import Sequence as CachedSequence
from foveal.cache.contract import LayerTrace, Observer, Segment
from foveal.config import ModelConfig, Numerics
from foveal.errors import NotFiniteError
from foveal.formats import F32, I64, Array, Weight


class NativeNetwork:
    """The network of `config` with `weights` (official names) on the native kernels: a `foveal.backends.Runner`.

    `threads`: 0 for one on each physical core. `isa`: an instruction set of `foveal._native.available_isas()`, "" for
    the best. `exact`: activations that no run-time quantisation rounds enter products as two BF16 numbers, which agrees
    with fp32 to about 1e-5; otherwise as one, as in the official code. The default is exact unless `numerics` (default:
    all on) simulates the official activations.
    Raises `KeyError` naming the first weight that is missing, `ValueError` for an unknown `isa`, for a weight that does
    not fit, and for a table that names an expert that there is not. Not to be used from two threads at once.
    """

    memory = None
    grain = 1

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Weight],
        *,
        numerics: Numerics | None = None,
        threads: int = 0,
        isa: str = "",
        exact: bool | None = None,
    ) -> None:
        self.config = config
        self.numerics = numerics or Numerics()
        self.exact = not self.numerics.activations if exact is None else exact
        self.runtime = _native.Runtime(threads=threads, isa=isa, exact=self.exact)
        self.keeper = LiveKeeper(self.runtime, fp4_keys=self.numerics.index)
        shape, ends = shape_of(config, self.numerics), ends_of(weights)
        layers = [layer_of(config, weights, layer) for layer in range(config.num_hidden_layers)]
        self._network = _native.Network(self.runtime, shape)
        for values in layers:
            self._network.add_layer(values)
        self._network.set_ends(ends)
        self._origin = Origin(config, self.numerics, self.runtime, shape, layers, ends, weights["embed.weight"])
        self._streams = self._streams_of(0)

    @property
    def arithmetic(self) -> str:
        """See `foveal.backends.Runner`. The kernels round activations to BF16 where the official code does."""
        precision = "bf16" if self.numerics.activations else "fp32"
        return f"{precision} activations, simulating {self.numerics}"

    def __call__(
        self, tokens: Array, segments: Sequence[Segment[Array]], observer: Observer[Array] | None = None
    ) -> Array:
        """Run the next tokens [n] (int64) of the segments through all layers; their states advance.

        Returns the streams [n, S, d] after the last layer, valid until the next call. Raises `ValueError` when the
        segments do not add up to the tokens or a token id is unknown, `CacheFull` when pages are lacking,
        `NotFiniteError` when streams hold NaN or an infinity; no state has moved then.
        """
        states = [self._sequence(segment) for segment in segments]
        if len({id(state) for state in states}) != len(states):
            raise ValueError("the same sequence stands in two segments of one batch")
        trace = observer is not None
        parts = []
        try:
            for state, segment in zip(states, segments, strict=True):
                live = state.begin_work(segment.count, self.keeper)
                assert isinstance(live, Live)
                parts.append((live.native, segment.count, trace))
            streams = self._room(len(tokens))
            self._network.step(np.ascontiguousarray(tokens, dtype=I64), parts, streams)
            self._require_finite(tokens, [segment.count for segment in segments], streams)
        except BaseException:
            for state in states:
                state.rollback()
            raise
        start = 0
        for state, segment in zip(states, segments, strict=True):
            state.commit_work(tokens[start : start + segment.count])
            start += segment.count
        if observer is not None:
            observer.traces += self._traces([state.length for state in states])
        return streams

    def logits(self, streams: Array) -> Array:
        """Streams [m, S, d] -> logits [m, V] fp32."""
        out = np.empty((len(streams), self.config.vocab_size), dtype=F32)
        self._network.logits(np.ascontiguousarray(streams), out)
        return out

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

    def _sequence(self, segment: Segment[Array]) -> CachedSequence:
        if not isinstance(segment.state, CachedSequence):
            raise TypeError(
                f"the native network runs sequences in pages, not {type(segment.state).__name__}; run the Transformer "
                "itself for other states"
            )
        return segment.state

    def _streams_of(self, count: int) -> Array:
        return np.empty((count, self.config.hc_mult, self.config.hidden_size), dtype=F32)

    def _room(self, count: int) -> Array:
        if len(self._streams) < count:
            self._streams = self._streams_of(count)
        return self._streams[:count]

    def _require_finite(self, tokens: Array, counts: Sequence[int], streams: Array) -> None:
        number = bad_segment(streams, counts)
        if number is not None:
            start = sum(counts[:number])
            raise NotFiniteError(self._origin.first_place(tokens[start : start + counts[number]]))

    def _traces(self, lengths: Sequence[int]) -> list[LayerTrace[Array]]:
        traces = []
        for layer, segment, ratio, indexed, indices, entry_bytes, window_bytes in self._network.traces():
            entry_mass = np.frombuffer(entry_bytes, dtype=F32)
            entries = np.arange(len(entry_mass))
            if indexed:
                chosen = np.frombuffer(indices, dtype=I64)
                entries, entry_mass = chosen[chosen >= 0], entry_mass[chosen >= 0]
            window_mass = np.frombuffer(window_bytes, dtype=F32)[-lengths[segment] :]
            traces.append(LayerTrace(layer, segment, ratio, entries, entry_mass, window_mass))
        return traces

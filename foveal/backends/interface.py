"""What a backend is: a module with `open_runner`, which makes a `Runner` of a checkpoint.

A runner takes and gives numpy arrays, and sequences in pages (`foveal.cache.Sequence`); what it has on a device, or as
tensors, is its own business. Four things differ between backends, and each has a place here: the arithmetic (for the
fingerprint), where a prompt may be cut (`grain`), where pages have to lie (`memory`), and what is kept of a sequence in
work (`keeper`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from foveal.cache.contract import LayerTrace, Observer, Segment
from foveal.cache.memory import PageMemory
from foveal.cache.work import Keeper
from foveal.checkpoint import Checkpoint
from foveal.config import ModelConfig, Numerics
from foveal.formats import Array


class Runner(Protocol):
    """A network ready to run. Not to be used from two threads at once."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def arithmetic(self) -> str:
        """The arithmetic in words: two runners with the same words and weights leave the same pages. A stage of a
        network says which layers it is."""
        ...

    @property
    def grain(self) -> int:
        """A prompt may be cut at every multiple of so many tokens without changing a bit of what it leaves. 1 says that
        a token's result depends on nothing but its sequence: then sequences may share a pass, too."""
        ...

    @property
    def memory(self) -> PageMemory | None:
        """Where the pages of its sequences have to lie; None: in the host's memory."""
        ...

    @property
    def keeper(self) -> Keeper | None:
        """What it keeps of sequences in work; None: nothing, it takes them as the contract says, layer by layer."""
        ...

    def __call__(
        self, tokens: Array, segments: Sequence[Segment[Array]], observer: Observer[Array] | None = None
    ) -> Any:
        """Run the next `tokens`, int64 [n], of the segments through all layers; their states advance.

        Returns the streams after the last layer, for `logits`; rows may be picked out of them by index. Valid until the
        next call. Raises `ValueError` when the segments do not add up to the tokens or a token id is unknown,
        `CacheFull` when pages are lacking, `NotFiniteError` when streams hold NaN or an infinity; no state has moved
        then.
        """
        ...

    def logits(self, streams: Any) -> Array:
        """Streams of m tokens -> logits, fp32 [m, V]."""
        ...


class Backend(Protocol):
    """A module of this room."""

    def open_runner(self, checkpoint: Checkpoint, *, numerics: Numerics, threads: int | None = None) -> Runner:
        """The checkpoint's network. `threads`: None for as many as the machine has cores."""
        ...


class Rules(Protocol):
    """How a token is chosen: the fields of `foveal.batch.SamplingParams` that say so."""

    @property
    def temperature(self) -> float: ...

    @property
    def top_k(self) -> int: ...

    @property
    def top_p(self) -> float: ...

    @property
    def min_p(self) -> float: ...

    @property
    def logprobs(self) -> int | None: ...


@dataclass(frozen=True)
class Choice:
    """A chosen token: its log-probability (natural logarithm) and the likeliest alternatives, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


__all__ = ["Backend", "Choice", "LayerTrace", "Observer", "Rules", "Runner", "Segment"]

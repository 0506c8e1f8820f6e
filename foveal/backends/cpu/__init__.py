"""The CPU backend: all layers in one native call a step, on sequences in pages.

It needs nothing but numpy and the native library. Weights are multiplied as the checkpoint stores them; a token's
result depends on nothing but its sequence, so prompts may be cut, and sequences batched, in any way.
"""

from __future__ import annotations

from foveal.backends.cpu.network import NativeNetwork
from foveal.checkpoint import Checkpoint
from foveal.config import Numerics


def open_runner(checkpoint: Checkpoint, *, numerics: Numerics, threads: int | None = None) -> NativeNetwork:
    """See `foveal.backends.interface.Backend`."""
    return NativeNetwork(checkpoint.config, checkpoint.weights, numerics=numerics, threads=threads or 0)


__all__ = ["NativeNetwork", "open_runner"]

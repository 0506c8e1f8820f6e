"""From a checkpoint to a network on torch."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from foveal.backends.reference.runner import ReferenceRunner
from foveal.checkpoint import Checkpoint, open_checkpoint
from foveal.config import Numerics
from foveal.model.transformer import Transformer
from foveal.model.weights import load_transformer
from foveal.ops import Operations, reference

DEQUANTIZE_UP_TO = 1 << 28
"""Models up to so many parameters (1 GiB in fp32) are dequantised when opened: much faster on the reference backend."""


def load_model(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    ops: Operations = reference,
    numerics: Numerics | None = None,
) -> Transformer:
    """The network stored at `path`, ready to serve.

    With `dtype` None matrices stay as stored: mapped from the files and packed. With a dtype they are dequantised once:
    more memory, less time on small models. Raises `CheckpointError` as `open_checkpoint` does.
    """
    checkpoint = open_checkpoint(path)
    return load_transformer(checkpoint.config, checkpoint.weights, dtype=dtype, ops=ops, numerics=numerics)


def open_runner(checkpoint: Checkpoint, *, numerics: Numerics, threads: int | None = None) -> ReferenceRunner:
    """See `foveal.backends.interface.Backend`. `threads` are torch's, those of the whole process."""
    if threads is not None:
        torch.set_num_threads(threads)
    small = sum(math.prod(weight.shape) for weight in checkpoint.weights.values()) <= DEQUANTIZE_UP_TO
    dtype = torch.float32 if small else None
    return ReferenceRunner(load_transformer(checkpoint.config, checkpoint.weights, dtype=dtype, numerics=numerics))

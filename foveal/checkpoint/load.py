"""From a checkpoint folder to a network that runs."""

from __future__ import annotations

from pathlib import Path

import torch

from foveal.checkpoint.reader import open_checkpoint
from foveal.model.transformer import Transformer
from foveal.model.weights import load_transformer
from foveal.ops import Backend, Numerics, reference


def load_model(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    ops: Backend = reference,
    numerics: Numerics | None = None,
) -> Transformer:
    """The network stored at `path`, ready to serve.

    With `dtype` None matrices stay as stored: mapped from the files and packed. With a dtype they are dequantised once:
    more memory, less time on small models. Raises `CheckpointError` as `open_checkpoint` does.
    """
    checkpoint = open_checkpoint(path)
    return load_transformer(checkpoint.config, checkpoint.weights, dtype=dtype, ops=ops, numerics=numerics)

"""The rotation of a layer as the operations take it (`foveal.config.frequencies`)."""

from __future__ import annotations

import torch

from foveal.config import ModelConfig
from foveal.config.frequencies import frequencies_of
from foveal.ops import Rotation


def rotation_of(config: ModelConfig, layer: int) -> Rotation:
    """The rotation of `layer`, frequencies in radians a position, fp32."""
    return Rotation(torch.from_numpy(frequencies_of(config, layer)))

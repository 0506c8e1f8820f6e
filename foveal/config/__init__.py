"""The architecture as numbers: the config of a model, how ``config.json`` spells it, and presets."""

from foveal.config.model import (
    CSA_RATIO,
    HCA_RATIO,
    PAGE_TOKENS,
    ConfigError,
    ExpertDtype,
    LayerKind,
    LinearDtype,
    ModelConfig,
    ScaleDtype,
    YarnScaling,
)
from foveal.config.numerics import Numerics
from foveal.config.official import read_fields
from foveal.config.presets import PRESETS, preset

__all__ = [
    "ModelConfig",
    "YarnScaling",
    "Numerics",
    "LayerKind",
    "ConfigError",
    "read_fields",
    "PRESETS",
    "preset",
    "PAGE_TOKENS",
    "CSA_RATIO",
    "HCA_RATIO",
    "ExpertDtype",
    "LinearDtype",
    "ScaleDtype",
]

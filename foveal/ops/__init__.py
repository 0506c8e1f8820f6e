"""The operations the network is made of, and the backends that carry them out."""

from foveal.ops import reference
from foveal.ops.interface import (
    AttendInput,
    Backend,
    CompressInput,
    ExpertWeights,
    HyperWeights,
    Mass,
    Numerics,
    Rotation,
    RouteInput,
)

__all__ = [
    "AttendInput",
    "Backend",
    "CompressInput",
    "ExpertWeights",
    "HyperWeights",
    "Mass",
    "Numerics",
    "Rotation",
    "RouteInput",
    "reference",
]

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
from foveal.ops.packed import PackedAttendInput, PackedCompressInput, Packing, Windows

__all__ = [
    "AttendInput",
    "Backend",
    "CompressInput",
    "ExpertWeights",
    "HyperWeights",
    "Mass",
    "Numerics",
    "PackedAttendInput",
    "PackedCompressInput",
    "Packing",
    "Rotation",
    "RouteInput",
    "Windows",
    "reference",
]

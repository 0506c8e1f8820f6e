"""The operations the network is made of, and the backends that carry them out."""

from foveal.errors import need_torch

need_torch("the network on tensors (foveal.ops, foveal.model)")

from foveal.ops import reference  # noqa: E402
from foveal.ops.interface import (  # noqa: E402
    AttendInput,
    CompressInput,
    ExpertWeights,
    HyperWeights,
    Mass,
    Operations,
    Rotation,
    RouteInput,
)
from foveal.ops.packed import PackedAttendInput, PackedCompressInput, Packing, Windows  # noqa: E402

__all__ = [
    "AttendInput",
    "CompressInput",
    "ExpertWeights",
    "HyperWeights",
    "Mass",
    "Operations",
    "PackedAttendInput",
    "PackedCompressInput",
    "Packing",
    "Rotation",
    "RouteInput",
    "Windows",
    "reference",
]

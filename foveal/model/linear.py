"""Weights as modules.

A `Matrix` is either a trainable fp32 parameter or a weight exactly as the checkpoint stores it (FP4, FP8 or BF16,
possibly memory-mapped). The network never asks which: it hands `operand()` to an operation. For quantisation-aware
training `fake_quantize` rounds the parameter on the way, with straight-through gradients.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveal.formats.tensors import Weight, dequantize, fake_quantize_weight_fp4, fake_quantize_weight_fp8


class Storage(enum.StrEnum):
    """How the official checkpoint stores a matrix."""

    BF16 = "bf16"
    FP8 = "fp8"
    FP4 = "fp4"


def _round(weight: Tensor, storage: Storage) -> Tensor:
    if storage is Storage.FP4:
        return fake_quantize_weight_fp4(weight)
    return fake_quantize_weight_fp8(weight) if storage is Storage.FP8 else weight


class Matrix(nn.Module):
    """One weight [out, in]. `storage` is its format in the checkpoint; `simulate` says whether the official kernels
    quantise its input (true for FP8 and FP4)."""

    weight: Tensor | None

    def __init__(self, out_features: int, in_features: int, storage: str = "bf16") -> None:
        super().__init__()
        self.shape = (out_features, in_features)
        self.storage = Storage(storage)
        self.fake_quantize = False
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self._stored: Weight | None = None

    @property
    def simulate(self) -> bool:
        return self.storage is not Storage.BF16

    def operand(self) -> Weight:
        """What an operation multiplies by."""
        if self._stored is not None:
            return self._stored
        assert self.weight is not None
        return _round(self.weight, self.storage) if self.fake_quantize else self.weight

    def hold(self, weight: Weight, dtype: torch.dtype | None) -> None:
        """Use `weight` from now on: as it is stored (dtype None) or dequantised to `dtype`. Not trainable any more."""
        if tuple(weight.shape) != self.shape:
            raise ValueError(f"weight has shape {tuple(weight.shape)}, the network needs {self.shape}")
        self.weight = None
        self._stored = weight if dtype is None else dequantize(weight, dtype)


class MatrixStack(nn.Module):
    """The same matrix of E experts: a parameter [E, out, in], or E stored weights."""

    weight: Tensor | None

    def __init__(self, count: int, out_features: int, in_features: int, storage: str) -> None:
        super().__init__()
        self.shape = (out_features, in_features)
        self.count = count
        self.storage = Storage(storage)
        self.fake_quantize = False
        self.weight = nn.Parameter(torch.empty(count, out_features, in_features))
        self._stored: list[Weight] | None = None

    def operand(self) -> Sequence[Weight] | Tensor:
        """What `experts` takes: E weights, by index."""
        if self._stored is not None:
            return self._stored
        assert self.weight is not None
        return _round(self.weight, self.storage) if self.fake_quantize else self.weight

    def hold(self, weights: Sequence[Weight], dtype: torch.dtype | None) -> None:
        """As `Matrix.hold`, for all experts."""
        wrong = [i for i, weight in enumerate(weights) if tuple(weight.shape) != self.shape]
        if wrong or len(weights) != self.count:
            raise ValueError(f"experts {wrong or len(weights)} do not fit: {self.count} of shape {self.shape} needed")
        self.weight = None
        self._stored = list(weights) if dtype is None else [dequantize(weight, dtype) for weight in weights]


class Vector(nn.Module):
    """A norm weight or other small tensor that is read as it is; named `.weight` in the checkpoint."""

    weight: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

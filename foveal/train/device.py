"""Where a run computes: the device, and which precision is fast on it.

BF16 is fast only where the hardware multiplies it. A CPU without AVX512-BF16 or AMX emulates it, three to four times
slower than FP32. Intel's cores begin one product of AVX512-BF16 a cycle where they begin two of FP32, half as wide. So
without AMX, which virtual machines often hide, FP32 is faster there (115 GFLOP/s for 51 on one core of a Xeon of family
6, model 207). ``precision: auto`` asks first.
"""

from __future__ import annotations

import ctypes
import sys

import torch

from foveal.measure.machine import cpu_field


def multiplies_bf16(device: torch.device) -> bool:
    """Whether matrix products in BF16 are faster than in FP32 on `device`."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    if torch.cpu._is_amx_tile_supported():
        return True
    return bool(torch.cpu._is_avx512_bf16_supported()) and cpu_field("vendor_id") != "GenuineIntel"


def product_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which `device` multiplies matrices fastest, of those that training may use."""
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32


def keep_freed_memory() -> None:
    """Let the C allocator keep what is freed instead of returning it to the system: a step frees and asks for the same
    hundreds of megabytes, and having them mapped and cleared anew costs a sixth of its time. Linux (glibc) only."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_max, trim_threshold, top_pad = -4, -1, -2
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 << 20)

"""The reference backend: the network as it is defined (`foveal.model`), on torch. Slow, and what the others agree with.

`native_ops` are the operations of `foveal.ops` on the native library, one call each, on torch tensors: tests hold each
kernel to its definition with them, and whatever needs the network's modules and some speed runs on them.
"""

from __future__ import annotations

from foveal.errors import need_torch

need_torch("the reference backend")

from foveal.backends.reference.load import load_model, open_runner  # noqa: E402
from foveal.backends.reference.runner import ReferenceRunner  # noqa: E402
from foveal.backends.reference.stage import Stage  # noqa: E402

__all__ = ["ReferenceRunner", "Stage", "load_model", "open_runner"]

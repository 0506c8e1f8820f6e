"""Sizes of the top-k that measurements tell of."""

from __future__ import annotations

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Other sizes of the top-k for which the share is told."""

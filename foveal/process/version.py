"""The version that is installed: its tag's, or a development version behind it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("foveal")
except PackageNotFoundError:  # run from its files without being installed
    __version__ = "0+unknown"

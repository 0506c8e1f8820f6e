"""Pretrained models of the Llama kind become DeepSeek-V4 networks of the same function (docs/convert.md)."""

from typing import TYPE_CHECKING

from foveal import lazily
from foveal.errors import need_torch

need_torch("converting models")

if TYPE_CHECKING:
    from foveal.convert.conversion import Report as Report
    from foveal.convert.conversion import Settings as Settings
    from foveal.convert.conversion import convert as convert
    from foveal.convert.errors import ConvertError as ConvertError
    from foveal.convert.llama import Llama as Llama
    from foveal.convert.opening import open_source as open_source
    from foveal.convert.source import Source as Source

_HOMES = {
    "ConvertError": "foveal.convert.errors",
    "Llama": "foveal.convert.llama",
    "Report": "foveal.convert.conversion",
    "Settings": "foveal.convert.conversion",
    "Source": "foveal.convert.source",
    "convert": "foveal.convert.conversion",
    "open_source": "foveal.convert.opening",
}

__all__ = [*_HOMES]
__getattr__ = lazily(__name__, _HOMES)

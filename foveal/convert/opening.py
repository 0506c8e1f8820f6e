"""From what a person names to a `Source`: a folder, a GGUF file, or the name of a packaged model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from foveal.convert.conversion import WORK
from foveal.convert.errors import ConvertError
from foveal.convert.gguf_file import read_gguf
from foveal.convert.hugging_face import read_folder
from foveal.convert.packaged import PACKAGED, find_packaged
from foveal.convert.source import Source


def is_packaged(name: str) -> bool:
    """Whether `name` stands for a packaged model: no file or model here has it. A folder that a conversion is being
    written into is no model yet."""
    path = Path(name)
    here = path.is_file() or ((path / "config.json").exists() and not (path / WORK).exists())
    return name in PACKAGED and not here


def open_source(name: str, work: Path, tell: Callable[[str], None]) -> Source:
    """The model that `name` stands for. A download goes into `work` and is announced through `tell`.

    Raises `ConvertError` when there is no such model, or it is not of the Llama kind.
    """
    path = Path(name)
    if is_packaged(name):
        return read_gguf(find_packaged(name, work, tell))
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        return read_gguf(path)
    raise ConvertError(
        f"there is no model at {name}: name a Hugging Face folder, a GGUF file, or {', '.join(PACKAGED)}"
    )

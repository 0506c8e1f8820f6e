"""Where a model lies, and what its folder says beside the checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

from foveal.errors import FovealError
from foveal.text.specials import RECALL_BLANKS

SHIPPED = ("nano",)
"""Models inside the package."""

_WEIGHTS = Path(__file__).parent.parent / "weights"


class ModelNotFound(FovealError, FileNotFoundError):
    """No such model directory, and no shipped model of that name."""

    code = "not_found"


def model_folder(model: str | Path) -> Path:
    """The directory of a shipped model's name, the directory itself, or one of the `user_models`.

    Raises `ModelNotFound`.
    """
    if isinstance(model, str) and model in SHIPPED:
        folder = _WEIGHTS / model
        if not (folder / "config.json").is_file():
            raise ModelNotFound(f"the shipped model {model!r} is missing from {folder.parent}; install Foveal again")
        return folder
    folder = Path(model)
    if not (folder / "config.json").is_file() and isinstance(model, str):
        folder = own_model(model) or folder
    if not (folder / "config.json").is_file():
        raise ModelNotFound(
            f"there is no model at {model} (a directory with config.json, safetensors and tokenizer.json); shipped "
            f"models: {', '.join(SHIPPED)}; `foveal convert smollm2` makes another one, smollm2"
        )
    return folder


def own_model(name: str) -> Path | None:
    """The folder of the model called `name` in `user_models`; None where there is none."""
    folder = user_models() / name
    return folder if name == folder.name and (folder / "config.json").is_file() else None


def user_models() -> Path:
    """Where a person's own models lie by name: $XDG_DATA_HOME/foveal/models."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "foveal" / "models"


def model_name(model: str | Path, folder: Path) -> str:
    """What `model`, which lies in `folder`, is called."""
    return model if isinstance(model, str) and model in SHIPPED else folder.resolve().name


def recall_blanks(folder: Path) -> int:
    """What the model's tokenizer_config.json says; 0 without one. Raises `ModelNotFound` when it is not readable."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return 0
    try:
        return int(json.loads(path.read_text(encoding="utf-8")).get(RECALL_BLANKS, 0))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelNotFound(f"cannot read {path}: {error}") from error

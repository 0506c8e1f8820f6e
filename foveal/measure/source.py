"""A model to measure: a directory, or a preset with random weights that exists only as long as it is measured.

Speed depends on shapes and formats, not on what the weights say, so a preset is measured with random ones, stored as
the published models are (FP4 experts, FP8 matrices). `Engine.open` wants a tokenizer, which random weights have none
of; a directory without one is opened through a temporary folder of links with nano's beside them. Tokens go in and out
as ids: that tokenizer is never used.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from foveal.checkpoint import random_weights, write_checkpoint
from foveal.config import ModelConfig, preset
from foveal.engine import model_folder

_TOKENIZER = "tokenizer.json"


def stored_as_published(config: ModelConfig) -> ModelConfig:
    """`config` with FP4 experts, FP8 matrices and power-of-two scales."""
    return config.replace(expert_dtype="fp4", linear_dtype="fp8", scale_dtype="ue8m0")


@contextmanager
def preset_model(name: str, *, say: Callable[[str], None] = lambda _: None, seed: int = 0) -> Iterator[Path]:
    """A directory with random weights in the shape of preset `name`, deleted at the end.

    Raises `foveal.config.ConfigError` for an unknown name, `OSError` when the disk is full.
    """
    config = stored_as_published(preset(name))
    with tempfile.TemporaryDirectory(prefix=f"foveal-{name}-") as folder:
        say(f"writing random weights for {name} to {folder}")
        write_checkpoint(Path(folder), config, random_weights(config, seed=seed))
        with openable(folder) as ready:
            yield ready


@contextmanager
def openable(model: str | Path) -> Iterator[Path]:
    """The directory of `model` (a shipped name or a path) as `Engine.open` takes it, with a tokenizer in any case.

    Raises `foveal.engine.ModelNotFound`.
    """
    folder = model_folder(model)
    if (folder / _TOKENIZER).exists():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="foveal-links-") as made:
        for file in folder.iterdir():
            (Path(made) / file.name).symlink_to(file.resolve())
        (Path(made) / _TOKENIZER).symlink_to(model_folder("nano") / _TOKENIZER)
        yield Path(made)

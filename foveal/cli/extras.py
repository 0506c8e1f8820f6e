"""Packages that only some commands need."""

from __future__ import annotations

from foveal.cli.output import UserError
from foveal.errors import installed

_TRAINING = ("torch", "yaml", "tensorboard")
_SERVING = ("fastapi", "uvicorn", "mcp", "deepseek_recipe", "llguidance", "jinja2")


def check_training() -> None:
    """Raises `UserError` when a package that training needs is not installed."""
    missing = [name for name in _TRAINING if not installed(name)]
    if missing:
        raise UserError(
            f"training needs packages that are not installed ({', '.join(missing)}): pip install 'foveal[train]'"
        )


def check_serving() -> None:
    """Raises `UserError` when a package that serving needs is not installed."""
    missing = [name for name in _SERVING if not installed(name)]
    if missing:
        raise UserError(
            f"serving needs packages that are not installed ({', '.join(missing)}): pip install 'foveal[serve]'"
        )

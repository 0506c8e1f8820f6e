"""Backends: what runs a network. `interface` says what one is; each of the others is a room of its own.

| backend | what it is | needs |
| --- | --- | --- |
| `cpu` ("native") | all layers in one native call a step, on sequences in pages | the native library |
| `reference` | the definition of the network, on torch | `foveal[torch]` |

Nothing above this room knows which one runs. A backend is found by its name and imported when it is first used, so that
nothing is loaded that is not needed.
"""

from __future__ import annotations

import importlib
from typing import cast

from foveal.backends.interface import Backend, Runner
from foveal.errors import ParameterError

_HOMES = {"native": "foveal.backends.cpu", "reference": "foveal.backends.reference"}


def backend_of(name: str) -> Backend:
    """The backend called `name`. Raises `ParameterError` for an unknown one, `MissingExtra` for one whose packages are
    not installed."""
    if name not in _HOMES:
        raise ParameterError(f"there is no backend {name!r}; it must be one of {', '.join(_HOMES)}")
    return cast(Backend, importlib.import_module(_HOMES[name]))


__all__ = ["Backend", "Runner", "backend_of"]

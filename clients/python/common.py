"""What every script of a client needs: where the server is, and a word for each thing that went well."""

from __future__ import annotations

import os
from typing import Any

URL = os.environ["FOVEAL_URL"]
V1 = f"{URL}/v1"
KEY = os.environ["FOVEAL_KEY"]
MODEL = os.environ["FOVEAL_MODEL"]

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"path": {"enum": ["a.py", "b.py"]}, "line": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["path", "line"],
    "additionalProperties": False,
}


def check_look(arguments: dict[str, Any]) -> None:
    """Whether arguments follow `SCHEMA`."""
    assert set(arguments) == {"path", "line"}, arguments
    assert arguments["path"] in ("a.py", "b.py") and 1 <= arguments["line"] <= 99, arguments


def did(what: str) -> None:
    """Say that something went as it should."""
    print(f"ok {what}", flush=True)

"""What bodies of requests and answers have in common.

What a field means stands below it, and in /openapi.json (`foveal.server.description`).
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

Json = dict[str, Any]


class Open(BaseModel):
    """A body that may hold more than we know of."""

    model_config = ConfigDict(extra="allow")

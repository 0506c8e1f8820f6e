"""What the server says of its API. `make page` makes the page's types of it, `make docs` the reference of its routes.

python -m tools.openapi > openapi.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from foveal.server.app import make_app
from foveal.server.auth import Keys
from foveal.server.registry import Registry
from foveal.server.settings import Settings


def document() -> dict[str, Any]:
    """The OpenAPI document. No model is opened, and no store."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(store=Path(folder) / "store")
        app = make_app(Registry({}, settings), Keys(), settings)
        app.state.service.responses.close()
        return app.openapi()


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=1, sort_keys=True)

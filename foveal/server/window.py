"""The page for browsers: files that `make page` makes, with a policy that lets nothing in from outside."""

from __future__ import annotations

import mimetypes
from functools import cache
from pathlib import Path

from starlette.responses import Response

from foveal.server.failures import ApiError

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
DAY = 24 * 3600


def file(name: str) -> Response:
    """A file of the page. Raises `ApiError` for one that it has not got."""
    data = _files().get(name)
    if data is None:
        raise ApiError("not_found", f"the page has no file {name!r}", detail="not_found")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    keep = "no-cache" if name == "index.html" else f"public, max-age={365 * DAY}, immutable"  # names have digests
    return Response(data, media_type=kind, headers=HEADERS | {"cache-control": keep})


@cache
def _files() -> dict[str, bytes]:
    """All files of the page, by name. Empty in a checkout whose page was not built."""
    folder = Path(__file__).parent / "page"
    return {each.name: each.read_bytes() for each in folder.rglob("*") if each.is_file()}

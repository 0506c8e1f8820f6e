"""What a conversion raises on purpose."""

from __future__ import annotations

from foveal.errors import FovealError


class ConvertError(FovealError, ValueError):
    """A source that cannot be converted: it is not readable, or some part of it has no place in V4. The message names
    what does not fit."""

    code = "unsupported"

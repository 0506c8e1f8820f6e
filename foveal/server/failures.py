"""Errors in the shape of the API that was asked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from foveal.errors import ContextLengthError, FovealError, ParameterError
from foveal.memory import MemoryNotFound
from foveal.process.failures import reason
from foveal.server.wire import JSONBytes
from foveal.store.errors import StoreError

_FOLDERS = re.compile(r"""(?<![\w.~/-])/(?:[^/\s:;,'"()]+/)+""")
_UNREADABLE = "There was an error parsing the body"
"""FastAPI's words for a body at which the JSON parser gave up."""


class ApiError(FovealError):
    """A request that cannot be answered. `code` is one of `foveal.errors.STATUS`; `param` names the field."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        detail: str | None = None,
        retry: float | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """`detail`: the code that OpenAI's clients know it by.   retry: seconds after which it may work.
        more: what the error tells beside that."""
        super().__init__(message)
        self.code = code  # type: ignore[misc]
        self.param, self.detail, self.retry, self.more = param, detail, retry, more or {}


class TooLong(ContextLengthError):
    """A prompt of `tokens` tokens where `most` are allowed. Clients read both numbers out of the message."""

    def __init__(self, tokens: int, most: int) -> None:
        super().__init__(f"prompt is too long: {tokens} tokens > {most} maximum")
        self.tokens, self.most = tokens, most


def unsupported(param: str, message: str) -> ApiError:
    """A sound request for what this server cannot do."""
    return ApiError("invalid_request", message, param=param, detail="unsupported_parameter")


def speaks_anthropic(request: Request) -> bool:
    """Whether the caller wants answers in the shape of the Messages API."""
    path = request.url.path
    return path.startswith("/v1/messages") or (path.startswith("/v1/models") and "anthropic-version" in request.headers)


def status_of(error: FovealError) -> int:
    """The HTTP status; what was cancelled here, not by the caller, is a server that is going away."""
    return 503 if error.code == "cancelled" else error.status


_OPENAI_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_OPENAI_CODES: Mapping[int, str] = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
_ANTHROPIC_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def openai_error(error: FovealError) -> dict[str, Any]:
    """The body of an error of the OpenAI APIs."""
    status = status_of(error)
    detail = getattr(error, "detail", None)
    if detail is None:
        detail = error.code if isinstance(error, ContextLengthError) else _OPENAI_CODES.get(status, error.code)
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    told = {"message": str(error), "type": kind, "param": getattr(error, "param", None), "code": detail}
    return {"error": told | dict(getattr(error, "more", {}))}


def anthropic_error(error: FovealError, request_id: str) -> dict[str, Any]:
    """The body of an error of the Messages API."""
    kind = _ANTHROPIC_TYPES.get(status_of(error), "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}, "request_id": request_id}


def as_failure(error: BaseException) -> FovealError:
    """Any exception as one of ours. What nobody expected says no more than that."""
    if isinstance(error, MemoryNotFound):  # where the store lies is the operator's matter
        return ApiError("not_found", str(error).split(" in ")[0], param="memory", detail="memory_not_found")
    if isinstance(error, StoreError):
        said = without_folders(str(error))
        return error if said == str(error) else ApiError(error.code, said)
    if isinstance(error, FovealError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        if error.detail == _UNREADABLE:
            return ApiError(
                "invalid_request", "the body is JSON nested too deeply, or with a number too long to be read"
            )
        code = {404: "not_found", 405: "invalid_request", 413: "too_large"}.get(error.status_code, "invalid_request")
        return ApiError(code, str(error.detail), detail="not_found" if code == "not_found" else None)
    return (
        ApiError("failed", without_folders(reason(error) or "the server failed; its log says why"))
        if isinstance(error, Exception)
        else ApiError("cancelled", "the server is being stopped; try again", retry=1)
    )


def without_folders(text: str) -> str:
    """A text without the folders of absolute paths: where files lie is the operator's matter."""
    return _FOLDERS.sub("", text)


def without_places(error: Exception, paths: Iterable[str | Path]) -> str:
    """What an error about sources says, without the folders above them."""
    said = str(error)
    for path in paths:
        said = said.replace(str(path), Path(path).name)
    return without_folders(said)


def _invalid(error: RequestValidationError) -> FovealError:
    """The first thing that is wrong with a body."""
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"] if part not in ("body", "query", "path"))
    if found["type"] == "json_invalid":
        said = found.get("ctx", {}).get("error", "")
        return ApiError("invalid_request", f"the body is not JSON ({said})")
    if not place:
        return ApiError("invalid_request", "the body must be a JSON object, with content-type application/json")
    return ApiError("invalid_request", f"{place}: {found['msg']}", param=place)


def response_of(request: Request, error: BaseException) -> Response:
    """The whole answer to a request that failed before its first byte."""
    error = request.scope.get("state", {}).get("failure", error)
    failure = as_failure(error)
    retry = getattr(failure, "retry", None)
    status = error.status_code if isinstance(error, HTTPException) else status_of(failure)
    if retry is None and status in (429, 503):
        retry = 1.0
    headers = {} if retry is None else {"retry-after": str(max(1, round(retry)))}
    if speaks_anthropic(request):
        status = 529 if status == 503 else status
        return JSONBytes(anthropic_error(failure, request_id(request)), status_code=status, headers=headers)
    return JSONBytes(openai_error(failure), status_code=status, headers=headers)


def request_id(request: Request) -> str:
    """What this request is called in logs and headers."""
    return str(request.scope.get("state", {}).get("request_id", ""))


__all__ = ["ApiError", "ParameterError", "TooLong", "as_failure", "response_of", "unsupported"]

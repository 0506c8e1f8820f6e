"""Keys: who may do what.

A key is kept as its SHA-256, compared in constant time with every key there is, and is drawn by us with 256 random
bits, so that no slow hash is needed. What is not allowed to a key does not exist for it.

The file of keys is TOML, one table for each:

    [alice]
    sha256 = "…"                # what `foveal serve --new-key` prints
    tenant = "team"             # whose memories and hits they are; default: the key's own name
    models = ["nano"]           # patterns; default: all
    memories = ["docs-*"]       # default: all of the tenant
    writes = false              # may not create, change or delete memories; default: true
    concurrency = 4             # requests at once; default: as many as the server has
    output_tokens = 2000        # most tokens of one reply; default: the server's limit
    background = true           # goes behind those who are waited for; default: false
    metrics = true              # may read /metrics, which counts for all tenants; default: if there is one only
"""

from __future__ import annotations

import hmac
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import Request

from foveal.errors import ParameterError
from foveal.server.failures import ApiError


@dataclass(frozen=True, kw_only=True)
class Key:
    """What a caller may do. `digest` is the SHA-256 of its secret; empty: of nobody."""

    name: str
    digest: bytes = b""
    tenant: str = ""
    models: tuple[str, ...] = ("*",)
    memories: tuple[str, ...] = ("*",)
    writes: bool = True
    concurrency: int | None = None
    output_tokens: int | None = None
    background: bool = False
    metrics: bool | None = None

    def may_use(self, model: str) -> bool:
        """Whether it may use a model."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    def may_see(self, memory: str) -> bool:
        """Whether it may use a memory of its tenant."""
        return any(fnmatchcase(memory, pattern) for pattern in self.memories)

    def check_writes(self) -> None:
        """Raises `ApiError` if it may not change memories."""
        if not self.writes:
            raise ApiError("forbidden", f"the key {self.name} may read memories, and not change them")


ANYBODY = Key(name="anybody")


class Keys:
    """All keys. Without any, everybody is `ANYBODY`."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    @classmethod
    def read(cls, file: Path | None, secret: str | None = None) -> Keys:
        """The keys of a file, and one whose secret is given. Raises `ParameterError` for a file that is no good."""
        keys = [Key(name="default", digest=digest_of(secret), metrics=True)] if secret else []
        if file is not None:
            try:
                tables = tomllib.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ParameterError(f"cannot read the keys in {file}: {error}") from error
            keys += [_key(name, table, file) for name, table in tables.items()]
        return cls(keys)

    def of(self, secret: str | None) -> Key | None:
        """Whose secret it is. Takes as long for any secret."""
        if not self._keys:
            return ANYBODY
        given, found = digest_of(secret or ""), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, given):
                found = key
        return found

    def check_metrics(self, key: Key) -> None:
        """Raises `ApiError` if the key may not read numbers that tell of other tenants, too."""
        alone = len({each.tenant for each in self._keys}) <= 1
        if not (alone if key.metrics is None else key.metrics):
            raise ApiError("forbidden", f"the key {key.name} may not read the metrics, which count for all tenants")

    def caller(self, request: Request) -> Key:
        """Who sent a request: by ``Authorization: Bearer`` or ``x-api-key``. Raises `ApiError`."""
        return self.caller_of(request.headers)

    def caller_of(self, headers: Mapping[str, str]) -> Key:
        """`caller`, by the headers of a request (names in lower case, or in any)."""
        given = [headers.get("x-api-key")]
        kind, _, secret = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            given.append(secret.strip())
        found = [key for secret in given if secret and (key := self.of(secret)) is not None]
        if not self._keys:
            return ANYBODY
        if not found:
            said = "the key is not known" if any(given) else "there is no key"
            raise ApiError(
                "unauthorized",
                f"{said}; send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                detail="invalid_api_key",
            )
        return found[0]


def digest_of(secret: str) -> bytes:
    """The SHA-256 of a secret."""
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()


def new_secret() -> str:
    """A secret of 256 random bits."""
    return "fvl-" + secrets.token_urlsafe(32)


_LISTS = ("models", "memories")
_TYPES: dict[str, type] = {
    "sha256": str,
    "tenant": str,
    "models": list,
    "memories": list,
    "writes": bool,
    "concurrency": int,
    "output_tokens": int,
    "background": bool,
    "metrics": bool,
}


def _key(name: str, table: Any, file: Path) -> Key:
    if not isinstance(table, dict):
        raise ParameterError(f"{file}: {name} is no table; write [{name}] and its settings below")
    for field, value in table.items():
        if not _fits(_TYPES.get(field), value):
            known = ", ".join(_TYPES)
            raise ParameterError(f"{file}: [{name}] has {field} = {value!r}, which is no setting of a key ({known})")
    try:
        digest = bytes.fromhex(table["sha256"])
    except (KeyError, ValueError):
        digest = b""
    if len(digest) != 32:
        raise ParameterError(f"{file}: [{name}] needs sha256, 64 hexadecimal digits (foveal serve --new-key)")
    rest: dict[str, Any] = {
        field: tuple(value) if field in _LISTS else value for field, value in table.items() if field != "sha256"
    }
    return Key(name=name, digest=digest, **{"tenant": name, **rest})


def _fits(kind: type | None, value: Any) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return kind is not None and isinstance(value, kind)

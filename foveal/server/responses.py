"""Stored responses: in one SQLite file beside the store, on the disk before anybody hears of them.

Each row belongs to a tenant, and is looked up by tenant and id together. An encrypted store keeps its secrets: its
server holds responses in memory only.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.errors import FovealError
from foveal.memory import StoreError, open_store
from foveal.server.settings import beside

DAYS = 30
"""How long a response is kept."""
_MADE = """
create table if not exists responses (
    tenant text not null, id text not null, created integer not null, body text not null, input text not null,
    items text not null, primary key (tenant, id)
) without rowid
"""

Json = dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """A response. `input`: the items of its own request.   items: all of the conversation, its output included."""

    body: Json
    input: list[Json]
    items: list[Json]


class Responses:
    """The stored responses of a server. Safe to use from several threads."""

    def __init__(self, path: Path | None) -> None:
        """None: in memory. Raises `StoreError` when the file cannot be used."""
        try:
            if path is not None:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path or ":memory:", check_same_thread=False)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.execute(_MADE)
            self._db.execute("delete from responses where created < unixepoch() - ?", (DAYS * 86400,))
            self._db.commit()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot keep responses in {path}: {error}") from error
        self._lock = threading.Lock()

    @classmethod
    def beside(cls, store: Path | None) -> Responses:
        """Those of the server on a store."""
        encrypted = False
        try:
            encrypted = open_store(store, create=False).cipher is not None
        except FovealError:
            encrypted = False  # there is none yet
        return cls(None if encrypted else beside(store) / "responses.sqlite")

    def put(self, tenant: str, stored: Stored) -> None:
        """Keep a response; it is on the disk when this returns. Raises `StoreError`."""
        row = (tenant, stored.body["id"], stored.body["created_at"])
        texts = (json.dumps(value) for value in (stored.body, stored.input, stored.items))
        with self._lock, self._telling():
            self._db.execute("insert or replace into responses values (?, ?, ?, ?, ?, ?)", (*row, *texts))
            self._db.commit()

    def get(self, tenant: str, id: str) -> Stored | None:
        """A response of this tenant. Raises `StoreError`."""
        query = "select body, input, items from responses where tenant = ? and id = ?"
        with self._lock, self._telling():
            row = self._db.execute(query, (tenant, id)).fetchone()
        return Stored(*map(json.loads, row)) if row is not None else None

    def delete(self, tenant: str, id: str) -> bool:
        """Delete a response; says whether there was one. Raises `StoreError`."""
        with self._lock, self._telling():
            count = self._db.execute("delete from responses where tenant = ? and id = ?", (tenant, id)).rowcount
            self._db.commit()
        return count > 0

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _telling(self) -> _Telling:
        return _Telling()


class _Telling:
    """SQLite's errors as ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"stored responses cannot be used: {error}") from error

"""The turns that were sampled for one tenant and model, in memory and in a file, so that a restart knows them too.

Losing them costs time only, so the file is written without waiting for the disk.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from foveal.text.chat import Rendered
from foveal.text.messages import AssistantMessage, Conversation
from foveal.text.replay import Replayed, TurnRecord, TurnRecords

MOST = 20_000
"""Turns that are remembered."""


class Turns:
    """The sampled turns of one tenant and model. Safe to use from several threads."""

    def __init__(self, path: Path | None = None) -> None:
        """path: the file; None, or a file that cannot be used: in memory only."""
        self._latest: deque[TurnRecord] = deque(maxlen=MOST)
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        if path is not None:
            with contextlib.suppress(OSError, sqlite3.Error, ValueError):
                self._db = _opened(path)
                self._latest.extend(_read(self._db))
        self._records = TurnRecords(self._latest)

    def add(self, prompt: Sequence[int], head: int, sampled: Sequence[int], message: AssistantMessage) -> None:
        """See `TurnRecords.add`. The oldest are forgotten."""
        with self._lock:
            record = self._records.add(prompt, head, sampled, message)
            self._latest.append(record)
            if len(self._records) > 2 * MOST:
                self._records = TurnRecords(self._latest)
            self._write(record)

    def replay(self, rendered: Rendered, conversation: Conversation, stop_tokens: Sequence[int]) -> Replayed:
        """See `TurnRecords.replay`."""
        with self._lock:
            return self._records.replay(rendered, conversation, stop_tokens)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _write(self, record: TurnRecord) -> None:
        if self._db is None:
            return
        with contextlib.suppress(sqlite3.Error):  # it is known here; a restart reads the turn's text instead
            self._db.execute("insert into turns (record) values (?)", (TurnRecords([record]).encode(),))
            self._db.execute("delete from turns where number <= (select max(number) from turns) - ?", (MOST,))
            self._db.commit()


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    db = sqlite3.connect(path, check_same_thread=False)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = normal")
    db.execute("create table if not exists turns (number integer primary key, record blob not null)")
    return db


def _read(db: sqlite3.Connection) -> list[TurnRecord]:
    rows = db.execute("select record from turns order by number").fetchall()
    return [record for (data,) in rows for record in TurnRecords.decode(data).all()]

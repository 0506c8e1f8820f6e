"""The tables of an index: made empty, and read as far as they can be when they are outdated or damaged."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from foveal.store.connection import SCHEMA_VERSION, SQL_ERRORS, any_text, translate
from foveal.store.errors import StoreError, StoreUnavailable
from foveal.store.files import Disk
from foveal.store.hashes import checksum
from foveal.store.rows import CONTEXT_COLUMNS, GoneRow, Legacy, State, context_of, gone_of

SCHEMA = """
CREATE TABLE state(id INTEGER PRIMARY KEY CHECK (id = 1), data BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE objects(
  id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, key BLOB NOT NULL,
  name BLOB NOT NULL, parent INTEGER NOT NULL, position INTEGER NOT NULL,
  pack INTEGER NOT NULL, offset INTEGER NOT NULL, span INTEGER NOT NULL,
  pack2 INTEGER NOT NULL, offset2 INTEGER NOT NULL);
CREATE UNIQUE INDEX objects_key ON objects(kind, key);
CREATE INDEX objects_name ON objects(kind, name);
CREATE INDEX objects_parent ON objects(parent, kind);
CREATE TABLE contexts(
  id INTEGER PRIMARY KEY, label BLOB NOT NULL UNIQUE, tenant BLOB NOT NULL, serial INTEGER NOT NULL,
  record BLOB NOT NULL, pack INTEGER NOT NULL, offset INTEGER NOT NULL, span INTEGER NOT NULL,
  pack2 INTEGER NOT NULL, offset2 INTEGER NOT NULL, used REAL NOT NULL);
CREATE TABLE uses(context INTEGER NOT NULL, object INTEGER NOT NULL, PRIMARY KEY(context, object)) WITHOUT ROWID;
CREATE INDEX uses_object ON uses(object);
CREATE TABLE gone(label BLOB PRIMARY KEY, serial INTEGER NOT NULL, pack INTEGER NOT NULL, offset INTEGER NOT NULL,
  span INTEGER NOT NULL, pack2 INTEGER NOT NULL, offset2 INTEGER NOT NULL) WITHOUT ROWID;
"""


def create_index(path: Path, disk: Disk) -> None:
    """A new empty index at `path`, on the disk when this returns."""
    discard_index(path, leave=True)
    temporary = _unfinished(path)
    os.close(disk.create(temporary))
    connection = sqlite3.connect(temporary, isolation_level=None)
    try:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.executescript(f"BEGIN; PRAGMA user_version={SCHEMA_VERSION};" + SCHEMA)
        data = State({}, 1, 1).to_bytes()
        connection.execute("INSERT INTO state VALUES(1, ?, ?)", (data, checksum(data)))
        disk.commit(connection, temporary)
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
    for end in ("-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)
    disk.rename(temporary, path)
    disk.sync_folder(path.parent)


def discard_index(path: Path, *, leave: bool = False) -> None:
    """Remove what `create_index` may have left, and (unless `leave`) an index at `path`, as far as the disk lets us."""
    for file in [_unfinished(path), *([] if leave else [path])]:
        for end in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(OSError):
                Path(f"{file}{end}").unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    """Where an index is made before it has its name."""
    return path.with_name(f".{path.name}.new")


def salvage(path: Path) -> Legacy | None:
    """What can still be read of an index that is outdated or not sound. What cannot leaves None. Raises
    `StoreUnavailable` for one that the system does not let us read now: it may know what no pack has any more."""
    columns = CONTEXT_COLUMNS
    connection = None
    if not path.is_file():
        return None
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        connection.text_factory = any_text
        data, proof = connection.execute("SELECT data, checksum FROM state").fetchone()
        if checksum(data) != proof:
            return None
        have = {row[1] for row in connection.execute("PRAGMA table_info(contexts)")}
        absent = "pack2" not in have
        columns = columns.replace("pack2, offset2", "0, 0") if absent else columns
        gone = ", ".join(GoneRow._fields)
        gone = gone.replace("pack2, offset2", "0, 0") if absent else gone
        contexts = [context_of(row) for row in connection.execute(f"SELECT {columns} FROM contexts ORDER BY id")]
        deleted = [gone_of(row) for row in connection.execute(f"SELECT {gone} FROM gone")]
        state = State.from_bytes(data)
        return Legacy(state.serial, state.next_pack, contexts, deleted)
    except (*SQL_ERRORS, StoreError, TypeError, ValueError) as error:
        if isinstance(error, SQL_ERRORS) and isinstance(problem := translate(error, path), StoreUnavailable):
            raise problem from error
        return None
    finally:
        if connection is not None:
            connection.close()

"""The index: where everything lies and who refers to whom. SQLite in WAL mode.

The index holds no content, only places, names and references, and all of it can be made again from the packs
(`foveal.memory.store.rebuild`). The commit of its transaction is the moment at which a save, a fork or a deletion has
happened. What it says is never trusted: a record that does not lie where the index says is a miss.

Only a file that SQLite could read and found wrong is damaged. One that cannot be opened or read, or whose log cannot,
is `StoreUnavailable`, and stays as it is.

An object is referred to by the contexts that use it (`uses`) and, if it is a node, by its children (`parent`). What
nobody refers to is deleted in the same transaction.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from foveal.memory.errors import IndexDamaged, IndexOutdated, StoreError, StoreUnavailable
from foveal.memory.store.files import Disk
from foveal.memory.store.names import checksum
from foveal.memory.store.packs import Place
from foveal.memory.store.records import Kind

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
SCHEMA_VERSION = 2
"""SQLite's `user_version` (0 before there were two copies of the records of contexts). An index of another one is made
again from the packs."""
LOG_BYTES = 1 << 20
"""What SQLite's log may keep on the disk when it is not in use."""
_OBJECT = "id, kind, key, name, parent, position, pack, offset, span, pack2, offset2"
_COLUMNS = _OBJECT.split(", ")
_OBJECT_TYPES = (int, int, bytes, bytes, *[int] * 7)
_CHAIN = f"""
WITH RECURSIVE chain(id, parent) AS (
  SELECT id, parent FROM objects WHERE id = ? AND kind = 1
  UNION ALL SELECT o.id, o.parent FROM chain c JOIN objects o ON o.id = c.parent WHERE o.kind = 1 LIMIT ?)
SELECT {", ".join("o." + column for column in _COLUMNS)}, {", ".join("p." + column for column in _COLUMNS)}
FROM chain c JOIN objects o ON o.id = c.id LEFT JOIN objects p ON p.kind = 2 AND p.key = o.key
"""


_PATH = """
WITH RECURSIVE path(key, parent, position, pack, offset, span) AS (
  SELECT key, parent, position, pack, offset, span FROM objects WHERE kind = 1 AND key = ?1
  UNION ALL SELECT o.key, o.parent, o.position, o.pack, o.offset, o.span FROM path p JOIN objects o ON o.id = p.parent
  WHERE p.position > ?2 AND o.kind = 1 AND o.position < p.position)
SELECT key, pack, offset, span FROM path
"""


_FULL_OR_TAKEN = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_OUTSIDE = (
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_ABORT, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_INTERRUPT),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_NOLFS),
    sqlite3.SQLITE_AUTH,
)
"""What SQLite says when the cause lies outside the file. Whatever else it says, it has read the file, which is not
sound: our own questions are always answered by a sound one."""


class Entry(NamedTuple):
    """One object.

    `name` is a node's page name or a tail's place; `parent` a node's parent, or the node a tail stands behind (0 when
    there is none); `position` the tokens up to its end. A second copy lies in `pack2` at `offset2` (0: there is none).
    """

    id: int
    kind: int
    key: bytes
    name: bytes
    parent: int
    position: int
    pack: int
    offset: int
    span: int
    pack2: int
    offset2: int

    @property
    def places(self) -> list[Place]:
        """Where the record lies, and where its copy does."""
        return _places(self.pack, self.offset, self.span, self.pack2, self.offset2)

    @property
    def copies(self) -> int:
        """How many there should be: what cannot be computed again is there twice."""
        return 2 if self.kind in (Kind.NODE, Kind.MAP) else 1


_KINDS = {int(kind) for kind in (Kind.NODE, Kind.PAGE, Kind.TAIL, Kind.MAP)}


class ContextRow(NamedTuple):
    """`record` is the context's record as it lies twice in the packs as well."""

    id: int
    label: bytes
    tenant: bytes
    serial: int
    record: bytes
    pack: int
    offset: int
    span: int
    pack2: int
    offset2: int
    used: float

    @property
    def places(self) -> list[Place]:
        """Where the record lies, and where its copy does."""
        return _places(self.pack, self.offset, self.span, self.pack2, self.offset2)


_CONTEXT = ", ".join(ContextRow._fields)


class GoneRow(NamedTuple):
    """A deletion that is remembered, of the context `label`."""

    label: bytes
    serial: int
    pack: int
    offset: int
    span: int
    pack2: int
    offset2: int

    @property
    def places(self) -> list[Place]:
        """Where its record lies, and where its copy does."""
        return _places(self.pack, self.offset, self.span, self.pack2, self.offset2)


def _places(pack: int, offset: int, span: int, pack2: int, offset2: int) -> list[Place]:
    first = [Place(pack, offset, span)]
    return [*first, Place(pack2, offset2, span)] if pack2 else first


class Legacy(NamedTuple):
    """What an index knew before transaction `serial`: contexts, whose records prove themselves, and deletions."""

    serial: int
    contexts: list[ContextRow]
    gone: list[GoneRow]


class State(NamedTuple):
    """What must be right before anything is cut off or deleted: committed size of each pack, next pack, next serial."""

    sizes: dict[int, int]
    next_pack: int
    serial: int
    complete: bool = True
    """Off when the index was made again, and what is kept twice has not been completed since."""

    def to_bytes(self) -> bytes:
        data = {"sizes": sorted(self.sizes.items()), "next_pack": self.next_pack, "serial": self.serial}
        if not self.complete:
            data["complete"] = 0
        return json.dumps(data, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        found = json.loads(data)
        sizes = {int(pack): int(size) for pack, size in found["sizes"]}
        return cls(sizes, found["next_pack"], found["serial"], bool(found.get("complete", 1)))


class Index:
    """One connection. Methods raise `IndexDamaged` when the file is not a sound index; see `translate`."""

    def __init__(self, path: Path, disk: Disk, durability: str, *, wait: float) -> None:
        self.path, self.disk = path, disk
        self.read_only = ""
        """Why it cannot be written to, when it cannot."""
        self._connection, self._inode = self._connect_settled(wait)
        try:
            level = {"full": "FULL", "normal": "NORMAL", "off": "OFF"}[durability]
            self.execute(f"PRAGMA synchronous={level}")
            self.execute("PRAGMA cell_size_check=ON")
            self.execute(f"PRAGMA journal_size_limit={LOG_BYTES}")
            self.state()
        except BaseException:
            self._connection.close()
            raise

    def _connect_settled(self, wait: float) -> tuple[sqlite3.Connection, int]:
        """A connection, and the number of the file that it has open.

        SQLite opens the file first and its log by name, later: when another process puts a new index in place just
        then, one would have the old file with the new log. So whoever finds another file there begins again.
        """
        while True:
            inode = _inode(self.path)
            connection = self._connect(wait)
            if inode is not None and inode == _inode(self.path):
                return connection, inode
            connection.close()

    def _connect(self, wait: float) -> sqlite3.Connection:
        """Opened for writing, or for reading where the file system allows no more.

        Raises `IndexDamaged` for an index that is missing or not sound, `StoreUnavailable` for one that cannot be read.
        """
        if not self._exists(self.path):
            raise IndexDamaged(f"{self.path} is missing")
        writable = os.access(self.path.parent, os.W_OK)
        self.read_only = "" if writable else "read-only"
        problem: StoreError | None = None
        for options in ("mode=rw", "mode=ro", "mode=ro&immutable=1"):
            if "immutable" in options and (writable or self._has_log()):
                break  # it would pass over what only the log holds
            connection = None
            try:
                self.disk.look("query", self.path)
                connection = sqlite3.connect(
                    f"{self.path.absolute().as_uri()}?{options}",
                    uri=True,
                    timeout=wait,
                    isolation_level=None,
                    check_same_thread=False,
                    cached_statements=64,
                )
                self._check_schema(connection)
                if options != "mode=rw" and writable:
                    self.read_only = "read-only"
                return connection
            except (*_SQL_ERRORS, IndexDamaged) as error:
                if connection is not None:
                    connection.close()
                problem = translate(error, self.path)
                if isinstance(problem, IndexDamaged) or _code(error) in _FULL_OR_TAKEN:
                    break  # with less it would be no better
        raise problem or AssertionError("not reached")

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        connection.execute("SELECT 1 FROM state").fetchone()
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            raise IndexOutdated(f"{self.path} has an older form")
        if version != SCHEMA_VERSION:
            raise IndexDamaged(f"{self.path} has the form {version}, and this version writes {SCHEMA_VERSION}")

    def _exists(self, path: Path) -> bool:
        try:
            return self.disk.stat(path) is not None
        except OSError as error:
            raise StoreUnavailable(path, error) from error

    def _has_log(self) -> bool:
        """Whether there is a log that may hold what the index itself does not."""
        path = Path(f"{self.path}-wal")
        try:
            found = self.disk.stat(path)
        except OSError as error:
            raise StoreUnavailable(path, error) from error
        return found is not None and found.st_size > 0

    @staticmethod
    def create(path: Path, disk: Disk) -> None:
        """A new empty index at `path`, on the disk when this returns."""
        Index.discard(path, leave=True)
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

    @staticmethod
    def discard(path: Path, *, leave: bool = False) -> None:
        """Remove what `create` may have left, and (unless `leave`) an index at `path`, as far as the disk lets us."""
        for file in [_unfinished(path), *([] if leave else [path])]:
            for end in ("", "-wal", "-shm", "-journal"):
                with contextlib.suppress(OSError):
                    Path(f"{file}{end}").unlink(missing_ok=True)

    def replaced(self) -> bool:
        """Whether another process has made the index anew. Raises `StoreUnavailable`."""
        return _inode(self.path) != self._inode

    def stamp(self) -> tuple[int, int]:
        """Another one after every change of the store."""
        return self._inode, self.state().serial

    def close(self) -> None:
        self._connection.close()

    # ------------------------------------------------------------------ transactions

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction or a view was begun, and not ended."""
        return self._connection.in_transaction

    def execute(self, sql: str, values: Iterable[object] = ()) -> sqlite3.Cursor:
        try:
            self.disk.look("query", self.path)
            return self._connection.execute(sql, tuple(values))
        except _SQL_ERRORS as error:
            raise translate(error, self.path) from error

    def _execute_all(self, sql: str, values: list[tuple[object, ...]]) -> None:
        try:
            self.disk.look("query", self.path)
            self._connection.executemany(sql, values)
        except _SQL_ERRORS as error:
            raise translate(error, self.path) from error

    def rows(self, sql: str, values: Iterable[object] = ()) -> list[tuple[object, ...]]:
        try:
            self.disk.look("query", self.path)
            return self._connection.execute(sql, tuple(values)).fetchall()
        except _SQL_ERRORS as error:
            raise translate(error, self.path) from error

    def begin(self) -> None:
        self.execute("BEGIN IMMEDIATE")

    def commit(self, state: State) -> None:
        data = state.to_bytes()
        self.execute("UPDATE state SET data = ?, checksum = ?", (data, checksum(data)))
        try:
            self.disk.commit(self._connection, self.path)
        except _SQL_ERRORS as error:
            raise translate(error, self.path) from error

    def rollback(self) -> None:
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # SQLite has rolled it back itself
                self._connection.execute("ROLLBACK")

    def state(self) -> State:
        """Raises `IndexDamaged` when it is not as it was written."""
        rows = self.rows("SELECT data, checksum FROM state")
        if len(rows) != 1 or not isinstance(rows[0][0], bytes) or checksum(rows[0][0]) != rows[0][1]:
            raise IndexDamaged(f"{self.path}: its state is damaged")
        return State.from_bytes(rows[0][0])

    def shrink(self) -> None:
        """Give back the space of deleted rows, and the log. Does not wait for those who read."""
        wait = self.rows("PRAGMA busy_timeout")[0][0]
        self.execute("PRAGMA busy_timeout=100")
        try:
            self.rows("PRAGMA incremental_vacuum")
            self.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self.execute(f"PRAGMA busy_timeout={wait}")

    # ------------------------------------------------------------------ objects

    def find(self, kind: Kind, key: bytes) -> Entry | None:
        found = self.rows(f"SELECT {_OBJECT} FROM objects WHERE kind = ? AND key = ?", (int(kind), key))
        return _entry(found[0]) if found else None

    def named(self, kind: Kind, name: bytes) -> list[Entry]:
        """Nodes of a page name, or tails at a place; oldest first."""
        found = self.rows(f"SELECT {_OBJECT} FROM objects WHERE kind = ? AND name = ? ORDER BY id", (int(kind), name))
        return [_entry(row) for row in found]

    def objects(self, kind: Kind | None = None) -> list[Entry]:
        """All objects (of a kind)."""
        where, values = ("", ()) if kind is None else (" WHERE kind = ?", (int(kind),))
        return [_entry(row) for row in self.rows(f"SELECT {_OBJECT} FROM objects{where}", values)]

    def lying_in(self, pack: int) -> list[Entry]:
        """All objects of which a copy lies in a pack."""
        sql = f"SELECT {_OBJECT} FROM objects WHERE pack = ?1 OR pack2 = ?1"
        return [_entry(row) for row in self.rows(sql, (pack,))]

    def singles(self) -> list[tuple[Kind, bytes]]:
        """Kind and key (of contexts and deletions: the label) of what is to be there twice and is entered once."""
        rows = self.rows(
            f"SELECT kind, key FROM objects WHERE kind IN ({int(Kind.NODE)}, {int(Kind.MAP)}) AND pack != 0 AND pack2 = 0"
            f" UNION ALL SELECT {int(Kind.CONTEXT)}, label FROM contexts WHERE pack2 = 0"
            f" UNION ALL SELECT {int(Kind.GONE)}, label FROM gone WHERE pack2 = 0"
        )
        for row in rows:
            _check_types(row, (int, bytes))
        return [(Kind(kind), key) for kind, key in rows]  # type: ignore[arg-type, misc]

    def chain(self, node: int, depth: int) -> list[tuple[Entry, Entry | None]]:
        """The node numbered `node` and its ancestors, at most `depth` of them, the first page's first; with each its
        page, or None where that was evicted."""
        found = []
        for row in self.rows(_CHAIN, (node, depth)):
            half = len(_COLUMNS)
            page = None if row[half] is None else _entry(row[half:])
            found.append((_entry(row[:half]), page))
        return sorted(found, key=lambda pair: pair[0].position)

    def way_up(self, key: bytes, position: int) -> list[tuple[bytes, Place]]:
        """Key and place of node `key`, of the one before it, and so on to the one that ends at `position`."""
        rows = self.rows(_PATH, (key, position))
        return [(row[0], Place(row[1], row[2], row[3])) for row in rows]  # type: ignore[misc, arg-type]

    def tails_behind(self, node: int) -> list[Entry]:
        """The tails that stand behind a node (0: before the first page), the furthest first."""
        sql = f"SELECT {_OBJECT} FROM objects WHERE kind = 3 AND parent = ? ORDER BY position DESC, id"
        return [_entry(row) for row in self.rows(sql, (node,))]

    def kind(self, number: int) -> int:
        """The kind of an object; 0 when there is none of that number."""
        rows = self.rows("SELECT kind FROM objects WHERE id = ?", (number,))
        return int(rows[0][0]) if rows else 0  # type: ignore[call-overload]

    def forget(self, number: int) -> None:
        """The object lies nowhere: neither copy was whole."""
        self.execute("UPDATE objects SET pack = 0, offset = 0, pack2 = 0, offset2 = 0 WHERE id = ?", (number,))

    def move(self, number: int, place: Place, copy: Place | None = None) -> None:
        """The object lies elsewhere now."""
        second = (copy.pack, copy.offset) if copy is not None else (0, 0)
        self.execute(
            "UPDATE objects SET pack = ?, offset = ?, span = ?, pack2 = ?, offset2 = ? WHERE id = ?",
            (*place, *second, number),
        )

    def add(
        self,
        kind: Kind,
        key: bytes,
        place: Place,
        copy: Place | None = None,
        *,
        name: bytes = b"",
        parent: int = 0,
        position: int = 0,
    ) -> int:
        """Enter an object; returns its number."""
        second = (copy.pack, copy.offset) if copy is not None else (0, 0)
        row = (int(kind), key, name, parent, position, *place, *second)
        columns = _OBJECT.partition(", ")[2]
        return int(self.execute(f"INSERT INTO objects({columns}) VALUES(?,?,?,?,?,?,?,?,?,?)", row).lastrowid or 0)

    def remove(self, ids: Iterable[int]) -> None:
        for number in ids:
            self.execute("DELETE FROM objects WHERE id = ?", (number,))

    # ------------------------------------------------------------------ contexts and references

    def check_contexts(self) -> None:
        """Raise `IndexDamaged` when a context may be missing though nobody deleted it."""
        if self.rows("PRAGMA integrity_check(contexts)") != [("ok",)]:
            raise IndexDamaged(f"{self.path}: its list of contexts is not sound")

    def context(self, label: bytes) -> ContextRow | None:
        found = self.rows(f"SELECT {_CONTEXT} FROM contexts WHERE label = ?", (label,))
        return _context(found[0]) if found else None

    def seek(self, label: bytes) -> ContextRow | None:
        """The row of a context; that there is none is believed only if the index is sound."""
        row = self.context(label)
        if row is None:
            self.check_contexts()
        return row

    def contexts(self) -> list[ContextRow]:
        return [_context(row) for row in self.rows(f"SELECT {_CONTEXT} FROM contexts ORDER BY id")]

    def gone(self) -> list[GoneRow]:
        """The deletions that are remembered."""
        rows = self.rows(f"SELECT {', '.join(GoneRow._fields)} FROM gone")
        for row in rows:
            _check_types(row, (bytes, *[int] * 6))
        return [GoneRow(*row) for row in rows]  # type: ignore[arg-type]

    def put_gone(self, label: bytes, serial: int, places: Sequence[Place]) -> None:
        """Remember a deletion. `places`: where its record lies, and where its copy does, if there is one."""
        self.execute("INSERT OR REPLACE INTO gone VALUES(?,?,?,?,?,?,?)", (label, serial, *_six(places)))

    def legacy(self) -> Legacy | None:
        """What an index that is to be made again leaves to the next one; None when it cannot be read."""
        try:
            return Legacy(self.state().serial, self.contexts(), self.gone())
        except StoreError:
            return None

    def put_context(
        self,
        label: bytes,
        tenant: bytes,
        serial: int,
        record: bytes,
        places: Sequence[Place],
        used: float,
        objects: Iterable[int],
    ) -> None:
        """Enter a context in place of one of the same label, and what it uses; then drop what nobody refers to.
        `places`: where its record lies, and where its copy does, if there is one."""
        before = self._unlink(label)
        self.execute("DELETE FROM gone WHERE label = ?", (label,))
        row = (label, tenant, serial, record, *_six(places), used)
        columns = ", ".join(ContextRow._fields[1:])
        cursor = self.execute(f"INSERT INTO contexts({columns}) VALUES(?,?,?,?,?,?,?,?,?,?)", row)
        self._execute_all(
            "INSERT INTO uses VALUES(?, ?)", [(cursor.lastrowid, number) for number in sorted(set(objects))]
        )
        self.collect(before)

    def move_context(self, number: int, record: bytes, places: Sequence[Place]) -> None:
        """A context's record lies elsewhere now."""
        sql = "UPDATE contexts SET record=?, pack=?, offset=?, span=?, pack2=?, offset2=? WHERE id=?"
        self.execute(sql, (record, *_six(places), number))

    def drop_context(self, label: bytes) -> None:
        """Delete a context and what nobody else refers to."""
        self.collect(self._unlink(label))

    def _unlink(self, label: bytes) -> list[int]:
        """Delete a context's row; returns the objects it used."""
        row = self.context(label)
        if row is None:
            return []
        used = self.used_by(row.id)
        self.execute("DELETE FROM uses WHERE context = ?", (row.id,))
        self.execute("DELETE FROM contexts WHERE id = ?", (row.id,))
        return used

    def used_by(self, context: int) -> list[int]:
        """The numbers of the objects that context number `context` uses."""
        rows = self.rows("SELECT object FROM uses WHERE context = ?", (context,))
        return [int(number) for (number,) in rows]  # type: ignore[call-overload]

    def keys_used_by(self, context: int) -> dict[tuple[int, bytes], int]:
        """Kind and key -> number, of the objects that context number `context` uses."""
        rows = self.rows(
            "SELECT o.kind, o.key, o.id FROM uses u JOIN objects o ON o.id = u.object WHERE u.context = ?", (context,)
        )
        for row in rows:
            _check_types(row, (int, bytes, int))
        return {(kind, key): number for kind, key, number in rows}  # type: ignore[misc]

    def references(self, number: int) -> int:
        """How many contexts and children refer to an object."""
        rows = self.rows(
            "SELECT (SELECT count(*) FROM uses WHERE object = ?1)"
            " + (SELECT count(*) FROM objects WHERE parent = ?1 AND kind = 1)",
            (number,),
        )
        return int(rows[0][0])  # type: ignore[call-overload]

    def all_references(self) -> Counter[int]:
        """Object number -> `references`, of all objects."""
        found: Counter[int] = Counter()
        for sql in (
            "SELECT object, count(*) FROM uses GROUP BY object",
            "SELECT parent, count(*) FROM objects WHERE kind = 1 GROUP BY parent",
        ):
            found.update(dict(self.rows(sql)))  # type: ignore[arg-type]
        return found

    def collect(self, candidates: Iterable[int]) -> None:
        """Delete those of the objects that nobody refers to, with their pages, and then their parents likewise."""
        waiting = list(candidates)
        while waiting:
            number = waiting.pop()
            found = self.rows(f"SELECT {_OBJECT} FROM objects WHERE id = ?", (number,))
            if not found or self.references(number):
                continue
            entry = _entry(found[0])
            self.remove([number])
            if entry.kind == Kind.NODE:
                self.execute("DELETE FROM objects WHERE kind = ? AND key = ?", (int(Kind.PAGE), entry.key))
                waiting.append(entry.parent)

    def orphans(self) -> list[Entry]:
        """Objects that nothing refers to; there should never be any."""
        columns = ", ".join(f"o.{column}" for column in _OBJECT.split(", "))
        rows = self.rows(
            f"SELECT {columns} FROM objects o WHERE"
            " (o.kind IN (1, 3, 4) AND NOT EXISTS (SELECT 1 FROM uses u WHERE u.object = o.id)"
            "  AND NOT (o.kind = 1 AND EXISTS (SELECT 1 FROM objects c WHERE c.kind = 1 AND c.parent = o.id)))"
            " OR (o.kind = 2 AND NOT EXISTS (SELECT 1 FROM objects n WHERE n.kind = 1 AND n.key = o.key))"
        )
        return [_entry(row) for row in rows]

    def dangling(self) -> int:
        """References to what is not there; there should never be any."""
        rows = self.rows(
            "SELECT (SELECT count(*) FROM uses u WHERE NOT EXISTS (SELECT 1 FROM objects o WHERE o.id = u.object)"
            " OR NOT EXISTS (SELECT 1 FROM contexts c WHERE c.id = u.context))"
            " + (SELECT count(*) FROM objects o WHERE o.kind = 1 AND o.parent != 0"
            "    AND NOT EXISTS (SELECT 1 FROM objects p WHERE p.kind = 1 AND p.id = o.parent))"
        )
        return int(rows[0][0])  # type: ignore[call-overload]

    def live_bytes(self) -> dict[int, int]:
        """Pack number -> bytes of records that are entered."""
        rows = self.rows(
            "SELECT pack, sum(span) FROM (SELECT pack, span FROM objects WHERE pack != 0"
            " UNION ALL SELECT pack2, span FROM objects WHERE pack2 != 0 UNION ALL SELECT pack, span FROM contexts"
            " UNION ALL SELECT pack2, span FROM contexts UNION ALL SELECT pack, span FROM gone"
            " UNION ALL SELECT pack2, span FROM gone) WHERE pack != 0 GROUP BY pack"
        )
        return {int(pack): int(size) for pack, size in rows}  # type: ignore[call-overload]


def _six(places: Sequence[Place]) -> tuple[int, int, int, int, int]:
    """The columns pack, offset, span, pack2 and offset2 of one or two places."""
    second = (places[1].pack, places[1].offset) if len(places) > 1 else (0, 0)
    return (*places[0], *second)


def _inode(path: Path) -> int | None:
    """None when there is no such file. Raises `StoreUnavailable`."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnavailable(path, error) from error


def _unfinished(path: Path) -> Path:
    """Where an index is made before it has its name."""
    return path.with_name(f".{path.name}.new")


def _entry(row: tuple[object, ...]) -> Entry:
    """An object's row. Raises `IndexDamaged` when a value has another type than was written."""
    _check_types(row, _OBJECT_TYPES)
    if row[1] not in _KINDS:
        raise IndexDamaged(f"a row has the kind {row[1]}")
    return Entry(*row)  # type: ignore[arg-type]


def _context(row: tuple[object, ...]) -> ContextRow:
    _check_types(row, (int, bytes, bytes, int, bytes, *[int] * 5, float))
    return ContextRow(*row)  # type: ignore[arg-type]


def _check_types(row: tuple[object, ...], types: tuple[type, ...]) -> None:
    if tuple(map(type, row)) != types:
        raise IndexDamaged("a row holds values of other types than it should")


def salvage(path: Path) -> Legacy | None:
    """What can still be read of an index that is outdated or not sound. What cannot leaves None."""
    columns = _CONTEXT
    connection = None
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        data, proof = connection.execute("SELECT data, checksum FROM state").fetchone()
        if checksum(data) != proof:
            return None
        have = {row[1] for row in connection.execute("PRAGMA table_info(contexts)")}
        absent = "pack2" not in have
        columns = columns.replace("pack2, offset2", "0, 0") if absent else columns
        gone = ", ".join(GoneRow._fields)
        gone = gone.replace("pack2, offset2", "0, 0") if absent else gone
        contexts = [_context(row) for row in connection.execute(f"SELECT {columns} FROM contexts ORDER BY id")]
        deleted = [GoneRow(*row) for row in connection.execute(f"SELECT {gone} FROM gone")]
        return Legacy(State.from_bytes(data).serial, contexts, deleted)
    except (*_SQL_ERRORS, StoreError, TypeError, ValueError):
        return None
    finally:
        if connection is not None:
            connection.close()


_SQL_ERRORS = (sqlite3.Error, UnicodeDecodeError, OSError)
"""What asking SQLite may raise: it quotes what is damaged in its messages, which need not be UTF-8."""


def translate(error: Exception, path: Path) -> StoreError:
    """What a failure of SQLite means for the store: `IndexDamaged` only where it has read the file and found it wrong."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, UnicodeDecodeError):
        return IndexDamaged(f"{path}: {error}")
    code = _code(error)
    if code in _FULL_OR_TAKEN:
        return StoreError(f"cannot write the index {path}: {error}")
    return StoreUnavailable(path, error) if code is None or code in _OUTSIDE else IndexDamaged(f"{path}: {error}")


def _code(error: Exception) -> int | None:
    """SQLite's primary result code; None for an error that is not SQLite's."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF

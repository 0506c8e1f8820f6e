"""The index: where everything lies and who refers to whom. SQLite in WAL mode.

The index holds no content, only places, names and references, and all of it can be made again from the packs
(`foveal.memory.store.rebuild`). The commit of its transaction is the moment at which a save, a fork or a deletion has
happened. What it says is never trusted: a record that does not lie where the index says is a miss.

An object is referred to by the contexts that use it (`uses`) and, if it is a node, by its children (`parent`). What
nobody refers to is deleted in the same transaction.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from foveal.memory.errors import IndexDamaged, StoreError, StoreUnavailable
from foveal.memory.store.connection import SCHEMA_VERSION, SQL_ERRORS, Connection, any_text, translate
from foveal.memory.store.files import Disk
from foveal.memory.store.names import checksum
from foveal.memory.store.packs import Place
from foveal.memory.store.records import Kind
from foveal.memory.store.rows import (
    CONTEXT_COLUMNS,
    ContextRow,
    Entry,
    GoneRow,
    Legacy,
    State,
    check_types,
    columns_of,
    context_of,
    entry_of,
    gone_of,
)

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
_OBJECT = "id, kind, key, name, parent, position, pack, offset, span, pack2, offset2"
_COLUMNS = _OBJECT.split(", ")
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


class Index(Connection):
    """Questions and changes. Methods raise `IndexDamaged` when the file is not a sound index, `StoreUnavailable` when
    it cannot be read now; see `connection`."""

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

    def find(self, kind: Kind, key: bytes) -> Entry | None:
        found = self.rows(f"SELECT {_OBJECT} FROM objects WHERE kind = ? AND key = ?", (int(kind), key))
        return entry_of(found[0]) if found else None

    def named(self, kind: Kind, name: bytes) -> list[Entry]:
        """Nodes of a page name, or tails at a place; oldest first."""
        found = self.rows(f"SELECT {_OBJECT} FROM objects WHERE kind = ? AND name = ? ORDER BY id", (int(kind), name))
        return [entry_of(row) for row in found]

    def objects(self, kind: Kind | None = None) -> list[Entry]:
        """All objects (of a kind)."""
        where, values = ("", ()) if kind is None else (" WHERE kind = ?", (int(kind),))
        return [entry_of(row) for row in self.rows(f"SELECT {_OBJECT} FROM objects{where}", values)]

    def lying_in(self, pack: int) -> list[Entry]:
        """All objects of which a copy lies in a pack."""
        sql = f"SELECT {_OBJECT} FROM objects WHERE pack = ?1 OR pack2 = ?1"
        return [entry_of(row) for row in self.rows(sql, (pack,))]

    def singles(self) -> list[tuple[Kind, bytes]]:
        """Kind and key (of contexts and deletions: the label) of what is to be there twice and is entered once."""
        rows = self.rows(
            f"SELECT kind, key FROM objects WHERE kind IN ({int(Kind.NODE)}, {int(Kind.MAP)})"
            " AND pack != 0 AND pack2 = 0"
            f" UNION ALL SELECT {int(Kind.CONTEXT)}, label FROM contexts WHERE pack2 = 0"
            f" UNION ALL SELECT {int(Kind.GONE)}, label FROM gone WHERE pack2 = 0"
        )
        for row in rows:
            check_types(row, (int, bytes))
        return [(Kind(kind), key) for kind, key in rows]  # type: ignore[arg-type, misc]

    def chain(self, node: int, depth: int) -> list[tuple[Entry, Entry | None]]:
        """The node numbered `node` and its ancestors, at most `depth` of them, the first page's first; with each its
        page, or None where that was evicted."""
        found = []
        for row in self.rows(_CHAIN, (node, depth)):
            half = len(_COLUMNS)
            page = None if row[half] is None else entry_of(row[half:])
            found.append((entry_of(row[:half]), page))
        return sorted(found, key=lambda pair: pair[0].position)

    def way_up(self, key: bytes, position: int) -> list[tuple[bytes, Place]]:
        """Key and place of node `key`, of the one before it, and so on to the one that ends at `position`."""
        rows = self.rows(_PATH, (key, position))
        for row in rows:
            check_types(row, (bytes, int, int, int))
        return [(row[0], Place(row[1], row[2], row[3])) for row in rows]  # type: ignore[misc, arg-type]

    def tails_behind(self, node: int) -> list[Entry]:
        """The tails that stand behind a node (0: before the first page), the furthest first."""
        sql = f"SELECT {_OBJECT} FROM objects WHERE kind = 3 AND parent = ? ORDER BY position DESC, id"
        return [entry_of(row) for row in self.rows(sql, (node,))]

    def kind(self, number: int) -> int:
        """The kind of an object; 0 when there is none of that number."""
        rows = self.rows("SELECT kind FROM objects WHERE id = ?", (number,))
        for row in rows:
            check_types(row, (int,))
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
        self.check_listed()

    def context(self, label: bytes) -> ContextRow | None:
        found = self.rows(f"SELECT {CONTEXT_COLUMNS} FROM contexts WHERE label = ?", (label,))
        return context_of(found[0]) if found else None

    def seek(self, label: bytes) -> ContextRow | None:
        """The row of a context; that there is none is believed only if the index is sound."""
        row = self.context(label)
        if row is None:
            self.check_contexts()
        return row

    def contexts(self) -> list[ContextRow]:
        return [context_of(row) for row in self.rows(f"SELECT {CONTEXT_COLUMNS} FROM contexts ORDER BY id")]

    def gone(self) -> list[GoneRow]:
        """The deletions that are remembered."""
        rows = self.rows(f"SELECT {', '.join(GoneRow._fields)} FROM gone")
        return [gone_of(row) for row in rows]

    def put_gone(self, label: bytes, serial: int, places: Sequence[Place]) -> None:
        """Remember a deletion. `places`: where its record lies, and where its copy does, if there is one."""
        self.execute("INSERT OR REPLACE INTO gone VALUES(?,?,?,?,?,?,?)", (label, serial, *columns_of(places)))

    def legacy(self) -> Legacy | None:
        """What an index that is to be made again leaves to the next one; None when it cannot be read."""
        try:
            state = self.state()
            return Legacy(state.serial, state.next_pack, self.contexts(), self.gone())
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
        row = (label, tenant, serial, record, *columns_of(places), used)
        columns = ", ".join(ContextRow._fields[1:])
        cursor = self.execute(f"INSERT INTO contexts({columns}) VALUES(?,?,?,?,?,?,?,?,?,?)", row)
        self.execute_all(
            "INSERT INTO uses VALUES(?, ?)", [(cursor.lastrowid, number) for number in sorted(set(objects))]
        )
        self.collect(before)

    def move_context(self, number: int, record: bytes, places: Sequence[Place]) -> None:
        """A context's record lies elsewhere now."""
        sql = "UPDATE contexts SET record=?, pack=?, offset=?, span=?, pack2=?, offset2=? WHERE id=?"
        self.execute(sql, (record, *columns_of(places), number))

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
        for row in rows:
            check_types(row, (int,))
        return [int(number) for (number,) in rows]  # type: ignore[call-overload]

    def keys_used_by(self, context: int) -> dict[tuple[int, bytes], int]:
        """Kind and key -> number, of the objects that context number `context` uses."""
        rows = self.rows(
            "SELECT o.kind, o.key, o.id FROM uses u JOIN objects o ON o.id = u.object WHERE u.context = ?", (context,)
        )
        for row in rows:
            check_types(row, (int, bytes, int))
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
            rows = self.rows(sql)
            for row in rows:
                check_types(row, (int, int))
            found.update(dict(rows))  # type: ignore[arg-type]
        return found

    def collect(self, candidates: Iterable[int]) -> None:
        """Delete those of the objects that nobody refers to, with their pages, and then their parents likewise."""
        waiting = list(candidates)
        while waiting:
            number = waiting.pop()
            found = self.rows(f"SELECT {_OBJECT} FROM objects WHERE id = ?", (number,))
            if not found or self.references(number):
                continue
            entry = entry_of(found[0])
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
        return [entry_of(row) for row in rows]

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
        for row in rows:
            check_types(row, (int, int))
        return {int(pack): int(size) for pack, size in rows}  # type: ignore[call-overload]


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

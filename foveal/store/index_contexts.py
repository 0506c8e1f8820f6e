"""The contexts that an index knows, and the deletions that are remembered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from foveal.store.connection import Connection
from foveal.store.errors import IndexDamaged
from foveal.store.index_references import References
from foveal.store.records import Extent
from foveal.store.rows import CONTEXT_COLUMNS, ContextRow, GoneRow, columns_of, context_of, gone_of


class ContextTable:
    """The tables `contexts` and `gone`. What nobody refers to after a change goes with it."""

    def __init__(self, connection: Connection, references: References) -> None:
        self._connection, self._references = connection, references

    def check(self) -> None:
        """Raise `IndexDamaged` when a context may be missing though nobody deleted it."""
        if self._connection.rows("PRAGMA integrity_check(contexts)") != [("ok",)]:
            raise IndexDamaged(f"{self._connection.path}: its list of contexts is not sound")
        self._connection.check_listed()

    def get(self, label: bytes) -> ContextRow | None:
        found = self._connection.rows(f"SELECT {CONTEXT_COLUMNS} FROM contexts WHERE label = ?", (label,))
        return context_of(found[0]) if found else None

    def seek(self, label: bytes) -> ContextRow | None:
        """The row of a context; that there is none is believed only if the index is sound."""
        row = self.get(label)
        if row is None:
            self.check()
        return row

    def all(self) -> list[ContextRow]:
        return [context_of(row) for row in self._connection.rows(f"SELECT {CONTEXT_COLUMNS} FROM contexts ORDER BY id")]

    def put(
        self,
        label: bytes,
        tenant: bytes,
        serial: int,
        record: bytes,
        extents: Sequence[Extent],
        used: float,
        objects: Iterable[int],
    ) -> None:
        """Enter a context in place of one of the same label, and what it uses; then drop what nobody refers to.
        `extents`: where its record lies, and where its copy does, if there is one."""
        before = self._unlink(label)
        self._connection.execute("DELETE FROM gone WHERE label = ?", (label,))
        row = (label, tenant, serial, record, *columns_of(extents), used)
        columns = ", ".join(ContextRow._fields[1:])
        cursor = self._connection.execute(f"INSERT INTO contexts({columns}) VALUES(?,?,?,?,?,?,?,?,?,?)", row)
        self._references.put(int(cursor.lastrowid or 0), objects)
        self._references.collect(before)

    def move(self, number: int, record: bytes, extents: Sequence[Extent]) -> None:
        """A context's record lies elsewhere now."""
        sql = "UPDATE contexts SET record=?, pack=?, offset=?, span=?, pack2=?, offset2=? WHERE id=?"
        self._connection.execute(sql, (record, *columns_of(extents), number))

    def drop(self, label: bytes) -> None:
        """Delete a context and what nobody else refers to."""
        self._references.collect(self._unlink(label))

    def _unlink(self, label: bytes) -> list[int]:
        """Delete a context's row; returns the objects it used."""
        row = self.get(label)
        if row is None:
            return []
        used = self._references.drop(row.id)
        self._connection.execute("DELETE FROM contexts WHERE id = ?", (row.id,))
        return used

    def gone(self) -> list[GoneRow]:
        """The deletions that are remembered."""
        rows = self._connection.rows(f"SELECT {', '.join(GoneRow._fields)} FROM gone")
        return [gone_of(row) for row in rows]

    def put_gone(self, label: bytes, serial: int, extents: Sequence[Extent]) -> None:
        """Remember a deletion. `extents`: where its record lies, and where its copy does, if there is one."""
        self._connection.execute(
            "INSERT OR REPLACE INTO gone VALUES(?,?,?,?,?,?,?)", (label, serial, *columns_of(extents))
        )

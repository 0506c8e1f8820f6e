"""Who refers to an object: the contexts that use it and, if it is a node, its children. What nobody refers to goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from foveal.store.connection import Connection
from foveal.store.index_objects import ObjectTable
from foveal.store.records import Kind
from foveal.store.rows import ENTRY_COLUMNS, Entry, check_types, entry_of


class References:
    """The table `uses`, and the column `parent` of `objects`."""

    def __init__(self, connection: Connection, objects: ObjectTable) -> None:
        self._connection, self._objects = connection, objects

    def put(self, context: int, objects: Iterable[int]) -> None:
        """Context number `context` uses the objects of these numbers."""
        rows: list[tuple[object, ...]] = [(context, number) for number in sorted(set(objects))]
        self._connection.execute_all("INSERT INTO uses VALUES(?, ?)", rows)

    def drop(self, context: int) -> list[int]:
        """Context number `context` uses nothing any more; returns what it used."""
        used = self.used_by(context)
        self._connection.execute("DELETE FROM uses WHERE context = ?", (context,))
        return used

    def used_by(self, context: int) -> list[int]:
        """The numbers of the objects that context number `context` uses."""
        rows = self._connection.rows("SELECT object FROM uses WHERE context = ?", (context,))
        for row in rows:
            check_types(row, (int,))
        return [int(number) for (number,) in rows]  # type: ignore[call-overload]

    def keys_used_by(self, context: int) -> dict[tuple[int, bytes], int]:
        """Kind and key -> number, of the objects that context number `context` uses."""
        rows = self._connection.rows(
            "SELECT o.kind, o.key, o.id FROM uses u JOIN objects o ON o.id = u.object WHERE u.context = ?", (context,)
        )
        for row in rows:
            check_types(row, (int, bytes, int))
        return {(kind, key): number for kind, key, number in rows}  # type: ignore[misc]

    def count(self, number: int) -> int:
        """How many contexts and children refer to an object."""
        rows = self._connection.rows(
            "SELECT (SELECT count(*) FROM uses WHERE object = ?1)"
            " + (SELECT count(*) FROM objects WHERE parent = ?1 AND kind = 1)",
            (number,),
        )
        return int(rows[0][0])  # type: ignore[call-overload]

    def all(self) -> Counter[int]:
        """Object number -> `count`, of all objects."""
        found: Counter[int] = Counter()
        for sql in (
            "SELECT object, count(*) FROM uses GROUP BY object",
            "SELECT parent, count(*) FROM objects WHERE kind = 1 GROUP BY parent",
        ):
            rows = self._connection.rows(sql)
            for row in rows:
                check_types(row, (int, int))
            found.update(dict(rows))  # type: ignore[arg-type]
        return found

    def collect(self, candidates: Iterable[int]) -> None:
        """Delete those of the objects that nobody refers to, with their pages, and then their parents likewise."""
        waiting = list(candidates)
        while waiting:
            number = waiting.pop()
            found = self._connection.rows(f"SELECT {ENTRY_COLUMNS} FROM objects WHERE id = ?", (number,))
            if not found or self.count(number):
                continue
            entry = entry_of(found[0])
            self._objects.remove([number])
            if entry.kind == Kind.NODE:
                self._connection.execute("DELETE FROM objects WHERE kind = ? AND key = ?", (int(Kind.PAGE), entry.key))
                waiting.append(entry.parent)

    def orphans(self) -> list[Entry]:
        """Objects that nothing refers to; there should never be any."""
        columns = ", ".join(f"o.{column}" for column in Entry._fields)
        rows = self._connection.rows(
            f"SELECT {columns} FROM objects o WHERE"
            " (o.kind IN (1, 3, 4) AND NOT EXISTS (SELECT 1 FROM uses u WHERE u.object = o.id)"
            "  AND NOT (o.kind = 1 AND EXISTS (SELECT 1 FROM objects c WHERE c.kind = 1 AND c.parent = o.id)))"
            " OR (o.kind = 2 AND NOT EXISTS (SELECT 1 FROM objects n WHERE n.kind = 1 AND n.key = o.key))"
        )
        return [entry_of(row) for row in rows]

    def dangling(self) -> int:
        """References to what is not there; there should never be any."""
        rows = self._connection.rows(
            "SELECT (SELECT count(*) FROM uses u WHERE NOT EXISTS (SELECT 1 FROM objects o WHERE o.id = u.object)"
            " OR NOT EXISTS (SELECT 1 FROM contexts c WHERE c.id = u.context))"
            " + (SELECT count(*) FROM objects o WHERE o.kind = 1 AND o.parent != 0"
            "    AND NOT EXISTS (SELECT 1 FROM objects p WHERE p.kind = 1 AND p.id = o.parent))"
        )
        return int(rows[0][0])  # type: ignore[call-overload]

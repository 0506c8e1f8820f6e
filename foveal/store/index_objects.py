"""The objects that an index knows: which there are, where they lie, and what is before and behind them."""

from __future__ import annotations

from collections.abc import Iterable

from foveal.store.connection import Connection
from foveal.store.records import Extent, Kind
from foveal.store.rows import ENTRY_COLUMNS, Entry, check_types, entry_of

_CHAIN = f"""
WITH RECURSIVE chain(id, parent) AS (
  SELECT id, parent FROM objects WHERE id = ? AND kind = 1
  UNION ALL SELECT o.id, o.parent FROM chain c JOIN objects o ON o.id = c.parent WHERE o.kind = 1 LIMIT ?)
SELECT {", ".join("o." + column for column in Entry._fields)}, {", ".join("p." + column for column in Entry._fields)}
FROM chain c JOIN objects o ON o.id = c.id LEFT JOIN objects p ON p.kind = 2 AND p.key = o.key
"""


_PATH = """
WITH RECURSIVE path(key, parent, position, pack, offset, span) AS (
  SELECT key, parent, position, pack, offset, span FROM objects WHERE kind = 1 AND key = ?1
  UNION ALL SELECT o.key, o.parent, o.position, o.pack, o.offset, o.span FROM path p JOIN objects o ON o.id = p.parent
  WHERE p.position > ?2 AND o.kind = 1 AND o.position < p.position)
SELECT key, pack, offset, span FROM path
"""


class ObjectTable:
    """The table `objects`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def find(self, kind: Kind, key: bytes) -> Entry | None:
        found = self._connection.rows(
            f"SELECT {ENTRY_COLUMNS} FROM objects WHERE kind = ? AND key = ?", (int(kind), key)
        )
        return entry_of(found[0]) if found else None

    def named(self, kind: Kind, name: bytes) -> list[Entry]:
        """Nodes of a page name, or tails of a name; oldest first."""
        found = self._connection.rows(
            f"SELECT {ENTRY_COLUMNS} FROM objects WHERE kind = ? AND name = ? ORDER BY id", (int(kind), name)
        )
        return [entry_of(row) for row in found]

    def all(self, kind: Kind | None = None) -> list[Entry]:
        """All objects (of a kind)."""
        where, values = ("", ()) if kind is None else (" WHERE kind = ?", (int(kind),))
        return [entry_of(row) for row in self._connection.rows(f"SELECT {ENTRY_COLUMNS} FROM objects{where}", values)]

    def lying_in(self, pack: int) -> list[Entry]:
        """All objects of which a copy lies in a pack."""
        sql = f"SELECT {ENTRY_COLUMNS} FROM objects WHERE pack = ?1 OR pack2 = ?1"
        return [entry_of(row) for row in self._connection.rows(sql, (pack,))]

    def chain(self, node: int, depth: int) -> list[tuple[Entry, Entry | None]]:
        """The node numbered `node` and its ancestors, at most `depth` of them, the first page's first; with each its
        page, or None where that was evicted."""
        found = []
        for row in self._connection.rows(_CHAIN, (node, depth)):
            half = len(Entry._fields)
            page = None if row[half] is None else entry_of(row[half:])
            found.append((entry_of(row[:half]), page))
        return sorted(found, key=lambda pair: pair[0].position)

    def way_up(self, key: bytes, position: int) -> list[tuple[bytes, Extent]]:
        """Key of node `key`, of the one before it, and so on to the one that ends at `position`."""
        rows = self._connection.rows(_PATH, (key, position))
        for row in rows:
            check_types(row, (bytes, int, int, int))
        return [(row[0], Extent(row[1], row[2], row[3])) for row in rows]  # type: ignore[misc, arg-type]

    def tails_behind(self, node: int) -> list[Entry]:
        """The tails that stand behind a node (0: before the first page), the furthest first."""
        sql = f"SELECT {ENTRY_COLUMNS} FROM objects WHERE kind = 3 AND parent = ? ORDER BY position DESC, id"
        return [entry_of(row) for row in self._connection.rows(sql, (node,))]

    def kind(self, number: int) -> int:
        """The kind of an object; 0 when there is none of that number."""
        rows = self._connection.rows("SELECT kind FROM objects WHERE id = ?", (number,))
        for row in rows:
            check_types(row, (int,))
        return int(rows[0][0]) if rows else 0  # type: ignore[call-overload]

    def forget(self, number: int) -> None:
        """The object lies nowhere: neither copy was whole."""
        self._connection.execute(
            "UPDATE objects SET pack = 0, offset = 0, pack2 = 0, offset2 = 0 WHERE id = ?", (number,)
        )

    def move(self, number: int, extent: Extent, copy: Extent | None = None) -> None:
        """The object lies elsewhere now."""
        second = (copy.pack, copy.offset) if copy is not None else (0, 0)
        self._connection.execute(
            "UPDATE objects SET pack = ?, offset = ?, span = ?, pack2 = ?, offset2 = ? WHERE id = ?",
            (*extent, *second, number),
        )

    def add(
        self,
        kind: Kind,
        key: bytes,
        extent: Extent,
        copy: Extent | None = None,
        *,
        name: bytes = b"",
        parent: int = 0,
        position: int = 0,
    ) -> int:
        """Enter an object; returns its number."""
        second = (copy.pack, copy.offset) if copy is not None else (0, 0)
        row = (int(kind), key, name, parent, position, *extent, *second)
        columns = ENTRY_COLUMNS.partition(", ")[2]
        return int(
            self._connection.execute(f"INSERT INTO objects({columns}) VALUES(?,?,?,?,?,?,?,?,?,?)", row).lastrowid or 0
        )

    def remove(self, ids: Iterable[int]) -> None:
        for number in ids:
            self._connection.execute("DELETE FROM objects WHERE id = ?", (number,))

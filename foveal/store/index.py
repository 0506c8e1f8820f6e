"""The index: where everything lies and who refers to whom. SQLite in WAL mode.

The index holds no content, only extents, names and references, and all of it can be made again from the packs
(`foveal.store.rebuild`). The commit of its transaction is the moment at which a save, a fork or a deletion has
happened. What it says is never trusted: a record that does not lie where the index says is a miss.

An object is referred to by the contexts that use it (`uses`) and, if it is a node, by its children (`parent`). What
nobody refers to is deleted in the same transaction.
"""

from __future__ import annotations

from pathlib import Path

from foveal.store.connection import Connection
from foveal.store.errors import StoreError
from foveal.store.files import Disk
from foveal.store.index_contexts import ContextTable
from foveal.store.index_objects import ObjectTable
from foveal.store.index_references import References
from foveal.store.records import Kind
from foveal.store.rows import Legacy, check_types


class Index(Connection):
    """The index at `path`, open. Questions and changes raise `IndexDamaged` when the file is not a sound index,
    `StoreUnavailable` when it cannot be read now; see `connection`."""

    def __init__(self, path: Path, disk: Disk, durability: str, *, wait: float) -> None:
        super().__init__(path, disk, durability, wait=wait)
        self.objects = ObjectTable(self)
        self.references = References(self, self.objects)
        self.contexts = ContextTable(self, self.references)

    def is_sound(self) -> bool:
        """Whether the index agrees with itself: its file, its references."""
        check = self.rows("PRAGMA integrity_check(1)")
        return check == [("ok",)] and not self.references.dangling() and not self.references.orphans()

    def legacy(self) -> Legacy | None:
        """What an index that is to be made again leaves to the next one; None when it cannot be read."""
        try:
            state = self.state()
            return Legacy(state.serial, state.next_pack, self.contexts.all(), self.contexts.gone())
        except StoreError:
            return None

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

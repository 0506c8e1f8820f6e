"""One connection to SQLite: opened as far as the file system allows, with every failure told apart.

Only a file that SQLite could read and found wrong is damaged. One that cannot be opened or read, or whose log cannot,
is `StoreUnavailable`, and stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterable
from pathlib import Path

from foveal.store.errors import IndexDamaged, IndexOutdated, StoreError, StoreUnavailable
from foveal.store.files import Disk, not_a_file
from foveal.store.hashes import checksum
from foveal.store.rows import State

SCHEMA_VERSION = 2
"""SQLite's `user_version` (0 before there were two copies of the records of contexts). An index of another one is made
again from the packs."""
LOG_BYTES = 1 << 20
"""What SQLite's log may keep on the disk when it is not in use."""
_FULL_OR_TAKEN = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_OUTSIDE = (
    *(
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_ABORT,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
    ),
    *(
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_NOLFS,
    ),
    sqlite3.SQLITE_AUTH,
)
"""What SQLite says when the cause lies outside the file. Whatever else it says, it has read the file, which is not
sound: our own questions are always answered by a sound one."""


SQL_ERRORS = (sqlite3.Error, UnicodeDecodeError, OSError)
"""What asking SQLite may raise: it quotes what is damaged in its messages, which need not be UTF-8."""


class Connection:
    """One connection to the index at `path`. Methods raise what `translate` makes of SQLite's errors."""

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
            self._check_whole()
        except BaseException:
            self._connection.close()
            raise

    def _check_whole(self) -> None:
        """`check_listed`, of one moment."""
        self.execute("BEGIN")
        try:
            self.check_listed()
        finally:
            self.rollback()

    def _connect_settled(self, wait: float) -> tuple[sqlite3.Connection, int]:
        """A connection, and the number of the file that it has open.

        SQLite opens the file first and its log by name, later: when another process puts a new index in place just
        then, one would have the old file with the new log, or none. So whoever finds another file there begins again.
        """
        while True:
            inode = _inode(self.path)
            try:
                connection = self._connect(wait)
            except StoreUnavailable:
                if inode == _inode(self.path):
                    raise
                continue
            if inode is not None and inode == _inode(self.path):
                return connection, inode
            connection.close()

    def _connect(self, wait: float) -> sqlite3.Connection:
        """Opened for writing, or for reading where the file system allows no more.

        Raises `IndexDamaged` for an index that is missing or not sound, `StoreUnavailable` for one that cannot be read.
        """
        if not self._exists(self.path):
            raise IndexDamaged(f"{self.path} is missing")
        for end in ("-wal", "-shm", "-journal"):
            self._exists(Path(f"{self.path}{end}"))
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
                connection.text_factory = any_text
                self._check_schema(connection)
                if options != "mode=rw" and writable:
                    self.read_only = "read-only"
                return connection
            except (*SQL_ERRORS, IndexDamaged) as error:
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
        return self._size(path) is not None

    def _has_log(self) -> bool:
        """Whether there is a log that may hold what the index itself does not."""
        return bool(self._size(Path(f"{self.path}-wal")))

    def _size(self, path: Path) -> int | None:
        """Bytes of a file; None when there is none. Raises `StoreUnavailable`, also for what is no file: SQLite would
        wait for ever at a named pipe."""
        try:
            found = self.disk.stat(path)
        except OSError as error:
            raise StoreUnavailable(path, error) from error
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise StoreUnavailable(path, not_a_file(path))
        return None if found is None else found.st_size

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
        except SQL_ERRORS as error:
            raise translate(error, self.path) from error

    def execute_all(self, sql: str, values: list[tuple[object, ...]]) -> None:
        """One statement for each of `values`."""
        try:
            self.disk.look("query", self.path)
            self._connection.executemany(sql, values)
        except SQL_ERRORS as error:
            raise translate(error, self.path) from error

    def rows(self, sql: str, values: Iterable[object] = ()) -> list[tuple[object, ...]]:
        """All rows that a question gives."""
        try:
            self.disk.look("query", self.path)
            return self._connection.execute(sql, tuple(values)).fetchall()
        except SQL_ERRORS as error:
            raise translate(error, self.path) from error

    def begin(self) -> None:
        self.execute("BEGIN IMMEDIATE")

    def commit(self, state: State) -> None:
        data = state._replace(listed=self._listed()).to_bytes()
        self.execute("UPDATE state SET data = ?, checksum = ?", (data, checksum(data)))
        try:
            self.disk.commit(self._connection, self.path)
        except SQL_ERRORS as error:
            raise translate(error, self.path) from error

    def rollback(self) -> None:
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # SQLite has rolled it back itself
                self._connection.execute("ROLLBACK")

    def check_listed(self) -> None:
        """Raise `IndexDamaged` when its contexts and deletions are not those that its state was committed with.

        SQLite takes in any log whose own checksums are right. That of another moment, or of another store, puts whole
        pages of it in place of ours, and every page is sound.
        """
        state = self.state()
        if state.listed and state.listed != self._listed():
            raise IndexDamaged(f"{self.path} does not list what was saved last: its log belongs to another one")

    def _listed(self) -> str:
        rows = self.rows("SELECT 0, label, serial FROM contexts UNION ALL SELECT 1, label, serial FROM gone")
        return checksum(*(repr(row).encode() for row in sorted(rows, key=repr))).hex()

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


def any_text(data: bytes) -> str:
    """Text of any bytes: none of our columns holds any, so a damaged row is found by the types of its values."""
    return data.decode("utf-8", "backslashreplace")


def _inode(path: Path) -> int | None:
    """None when there is no such file. Raises `StoreUnavailable`."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnavailable(path, error) from error


def translate(error: Exception, path: Path) -> StoreError:
    """What a failure of SQLite means: `IndexDamaged` only where it has read the file and found it wrong."""
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

"""A full-text search over a memory's own text: SQLite's FTS5, ranked by BM25.

The index is derived. It is made of the memory's tokens and source map when the first question comes, holds no text
(only where each word stands), and is made again when it is missing, damaged or of other tokens. It lies in a folder
beside the store, closed to others; that of an encrypted store, or of a memory that is in no store, is in this process
only.

A conversation has two: that of the memory it stands behind, which it shares with it, and one of its turns, which is
made in this process for each question, since each turn adds to it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.errors import FovealError
from foveal.memory.asking.index_place import index_path
from foveal.memory.asking.passages import heading_of, passages
from foveal.memory.asking.texts import MemoryTexts
from foveal.memory.asking.words import indexed, phrases

if TYPE_CHECKING:
    from foveal.memory.memory import Memory

VERSION = 2
"""Of what is written: raised whenever passages, words or tables change."""
TOKENIZER = "porter unicode61 remove_diacritics 2"
TITLE_WEIGHT, PATH_WEIGHT = 1.0, 0.3
"""What a word counts in the headings over a passage, and in its path; 1 in the passage."""
MOST_HITS = 32

_TABLES = f"""
create table about (version integer, digest text);
create table passage (id integer primary key, document integer, start integer, "end" integer);
create virtual table words using fts5(body, title, path, content='', tokenize='{TOKENIZER}');
"""


Row = tuple[int, int, int, str, str, str]
"""A passage: document, start, end; its words, those of what stands over it, and of its path."""
Rows = Callable[[], Iterator[Row]]


class SearchUnavailable(FovealError):
    """Texts cannot be searched here; the message says why."""

    code = "unsupported"


@dataclass(frozen=True)
class Hit:
    """Characters `start` to `end` of the text of `document` (its number in the source map); the higher the `score`, the
    better."""

    document: int
    start: int
    end: int
    score: float


class TextIndex:
    """The index of one memory, as it is now. Safe to use from several threads."""

    def __init__(self, connection: sqlite3.Connection, again: Callable[[], sqlite3.Connection]) -> None:
        """`again` makes one in this process, when `connection` proves to be of a damaged file."""
        self._connection, self._again = connection, again
        self._lock = threading.Lock()

    @classmethod
    def of(cls, memory: Memory, texts: MemoryTexts | None = None) -> TextIndex:
        """The memory's index, made if there is none that fits; of a conversation, of what it stands behind. `texts`: of
        this memory. Raises `SearchUnavailable`."""
        digest, texts = _digest(memory), texts or MemoryTexts(memory)
        rows = partial(_rows, texts, texts.documents)
        for path in _paths(memory):
            with contextlib.suppress(OSError, sqlite3.Error):
                found = _found(path, digest)
                if found is not None:
                    return cls(found, partial(_made_again, path, digest, rows))
        for path in _paths(memory)[:1]:
            with contextlib.suppress(OSError, sqlite3.Error):
                return cls(_made(path, digest, rows), partial(_made_again, path, digest, rows))
        return cls(_in_process(digest, rows), partial(_in_process, digest, rows))

    @classmethod
    def of_turns(cls, texts: MemoryTexts) -> TextIndex:
        """The index of a conversation's turns. Raises `SearchUnavailable`."""
        rows = partial(_rows, texts, texts.turns)
        return cls(_in_process("", rows), partial(_in_process, "", rows))

    def search(self, question: str, most: int = MOST_HITS) -> list[Hit]:
        """The passages that hold the most telling of the question's words, best first."""
        wanted = phrases(question)
        if not wanted:
            return []
        query = " OR ".join('"' + " ".join(word.replace('"', "") for word in phrase) + '"' for phrase in wanted)
        with self._lock:
            try:
                rows = self._ranked(query, most)
            except sqlite3.DatabaseError:
                self._connection.close()
                self._connection = self._again()
                rows = self._ranked(query, most)
        return [Hit(document, start, end, -rank) for document, start, end, rank in rows]

    def _ranked(self, query: str, most: int) -> list[tuple[int, int, int, float]]:
        return self._connection.execute(
            'select document, start, "end", bm25(words, 1.0, ?, ?) as rank from words'
            " join passage on passage.id = words.rowid where words match ? order by rank, passage.id limit ?",
            (TITLE_WEIGHT, PATH_WEIGHT, query, most),
        ).fetchall()

    def count(self) -> int:
        """Passages in the index."""
        with self._lock:
            return int(self._connection.execute("select count(*) from passage").fetchone()[0])

    def close(self) -> None:
        """Close its file."""
        with self._lock:
            self._connection.close()


def _paths(memory: Memory) -> list[Path]:
    """Where its index may lie, or be made at the first of them: by its own name, and by that of what it is a fork
    of."""
    names = dict.fromkeys(name for name in (memory.name, memory.forked_from[0]) if name)
    found = (index_path(memory.store, name) for name in names) if memory.store is not None else ()
    return [path for path in found if path is not None]


def _in_process(digest: str, rows: Rows) -> sqlite3.Connection:
    try:
        return _filled(sqlite3.connect(":memory:", check_same_thread=False), digest, rows)
    except sqlite3.Error as error:
        raise SearchUnavailable(f"this Python's SQLite cannot search texts ({error}); FTS5 is needed") from error


def _made_again(path: Path, digest: str, rows: Rows) -> sqlite3.Connection:
    """In the place of a file that is damaged; it is made anew with the next question."""
    with contextlib.suppress(OSError):
        path.unlink()
    return _in_process(digest, rows)


def _digest(memory: Memory) -> str:
    """Of all that an index is made of; of a conversation, of what it stands behind."""
    tokens, documents = memory.sequence.tokens, memory.places.documents
    if memory.chat is not None:
        tokens, documents = tokens[: memory.chat], tuple(each for each in documents if each[1] < memory.chat)
    made_of = blake2b(tokens.tobytes(), digest_size=16)
    made_of.update(repr(documents).encode("utf-8", "surrogatepass"))
    return made_of.hexdigest()


def _found(path: Path, digest: str) -> sqlite3.Connection | None:
    """The index at `path`, if it is of these tokens."""
    if not path.is_file():
        return None
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, check_same_thread=False)
    if _says(connection) == (VERSION, digest):
        return connection
    connection.close()
    return None


def _says(connection: sqlite3.Connection) -> tuple[int, str] | None:
    """Version and digest of an index; None for a file that is none."""
    with contextlib.suppress(sqlite3.Error):
        row = connection.execute("select version, digest from about").fetchone()
        return None if row is None else (row[0], row[1])
    return None


def _made(path: Path, digest: str, rows: Rows) -> sqlite3.Connection:
    """A new index at `path`, in the place of an older one. What killed processes left is deleted."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*"):
        if not _runs(left.name.rpartition(".")[2].partition("-")[0]):
            left.unlink(missing_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(new)) as connection:
            connection.execute("pragma journal_mode = off")
            connection.execute("pragma synchronous = off")
            _filled(connection, digest, rows)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    found = _found(path, digest)
    if found is None:
        raise OSError(f"{path} was replaced meanwhile")
    return found


def _runs(process: str) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _filled(connection: sqlite3.Connection, digest: str, rows: Rows) -> sqlite3.Connection:
    connection.executescript(_TABLES)
    for number, (document, start, end, body, title, path) in enumerate(rows(), start=1):
        connection.execute("insert into passage values (?, ?, ?, ?)", (number, document, start, end))
        connection.execute(
            "insert into words (rowid, body, title, path) values (?, ?, ?, ?)", (number, body, title, path)
        )
    connection.execute("insert into words (words) values ('optimize')")
    connection.execute("insert into about values (?, ?)", (VERSION, digest))
    connection.commit()
    return connection


def _rows(texts: MemoryTexts, documents: Sequence[int]) -> Iterator[Row]:
    clean: Callable[[str], str] = lambda text: indexed(text).encode("utf-8", "replace").decode()  # noqa: E731
    for document in documents:
        file = texts.file(document)
        for passage in passages(file.text, heading_of(file.path)):
            body = clean(file.text[passage.start : passage.end])
            yield document, passage.start, passage.end, body, clean(passage.title), clean(file.path)

"""The search over a memory's own text: passages, words, and an index that is made again when it does not fit."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_support import make_engine

from foveal.engine import Engine
from foveal.memory import Memory, MemoryStore, delete_memory, open_store
from foveal.memory.asking.index_place import index_path
from foveal.memory.asking.passages import LONGEST, heading_of, passages
from foveal.memory.asking.text_index import TextIndex
from foveal.memory.asking.texts import MemoryTexts
from foveal.memory.asking.widening import widened
from foveal.memory.asking.words import indexed, phrases

CODE = '''import os

LIMIT = 16


@cached
def parse_config(path):
    """Read the settings."""
    with open(path) as file:

        return file.read()


class ReplyParser:
    def push(self, token):
        return self.table[token]
'''
PROSE = """# Harbours

The pilot of Bergen keeps a tortoise.
He fears thunder.

## Winter

In winter the boats of Trieste lie on land. 東京の港は静かです。

# Towers

The clock tower of Graz was repaired in 1998.
"""


@pytest.fixture
def engine() -> Iterator[Engine]:
    with make_engine() as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return open_store(tmp_path / "store")


def remembered(engine: Engine, store: MemoryStore, folder: Path, **files: str) -> Memory:
    """A saved memory `notes` of these files (their names' last underscore is the dot)."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text(text, encoding="utf-8")
    memory = store.read(engine, folder, name="notes")
    memory.save(root=store)
    return memory


def first(memory: Memory, question: str) -> str:
    """Path and lines of the best passage, as a citation."""
    texts = MemoryTexts(memory)
    hit = TextIndex.of(memory, texts).search(question)[0]
    file = texts.file(hit.document)
    return f"{file.path}:{file.line_at(hit.start)}-{file.line_at(hit.end - 1)}"


@given(st.text(alphabet=st.sampled_from("ab .\n#的\tdef "), max_size=3000))
def test_passages_cover_all_that_is_no_white_space_once_in_order_and_none_is_long(text: str) -> None:
    cut = passages(text)
    ends = [0, *(one.end for one in cut)]
    for one, before in zip(cut, ends, strict=False):
        assert before <= one.start < one.end <= len(text) and one.end - one.start <= LONGEST
        assert not text[before : one.start].strip()
    assert not text[ends[-1] :].strip()


def test_a_definition_and_a_heading_begin_a_passage_and_stand_over_what_is_in_it() -> None:
    body = "\n".join(f"    value_{number} = compute({number})" for number in range(20))
    text = f"class Big:\n    def one(self):\n{body}\n\n    def two(self):\n{body}\n"
    titles = {one.title for one in passages(text)}
    assert "class Big: / def two(self):" in titles
    winter = next(one for one in passages(PROSE) if "In winter" in PROSE[one.start : one.end])
    assert winter.title.endswith("Winter")


def test_a_comment_in_code_is_no_heading() -> None:
    code = "# Settings\n\ndef one():\n    return 1\n"
    assert [one.title for one in passages(code, heading_of("a/b.py"))] == ["", "def one():"]
    assert [one.title for one in passages(code, heading_of("a/b.md"))] == ["Settings", "Settings / def one():"]
    assert heading_of("Makefile") is heading_of("x.yml") is not heading_of("notes.txt")


def test_words_that_say_nothing_are_left_out_unless_there_are_no_others() -> None:
    assert phrases("What does raw_decode do?") == [("raw", "decode"), ("raw",), ("decode",)]
    assert phrases("Where is the ReplyParser?") == [("replyparser",), ("reply",), ("parser",)]
    assert phrases("who is it") == [("who",), ("is",), ("it",)]
    assert phrases("東京港") == [("東", "京"), ("京", "港")]
    assert "Reply Parser" in indexed("class ReplyParser:")


def test_the_best_passage_is_found_by_words_parts_of_names_and_scripts_without_spaces(
    engine: Engine, store: MemoryStore, tmp_path: Path
) -> None:
    with remembered(engine, store, tmp_path / "src", code_py=CODE, prose_md=PROSE) as memory:
        assert first(memory, "Who reads the config?").startswith("code.py")
        assert first(memory, "which parser pushes a token").startswith("code.py:14")
        assert first(memory, "When was the tower of Graz repaired?").startswith("prose.md:10")
        assert first(memory, "東京").startswith("prose.md:6")
        assert TextIndex.of(memory).search("zebra AND (quagga)") == []
        assert TextIndex.of(memory).search('"; * ^ NEAR(') == []


def test_the_index_is_a_closed_file_that_is_used_again_and_made_again_when_it_does_not_fit(
    engine: Engine, store: MemoryStore, tmp_path: Path
) -> None:
    with remembered(engine, store, tmp_path / "src", prose_md=PROSE) as memory:
        path = index_path(store, "notes")
        assert path is not None and not path.exists()
        TextIndex.of(memory).close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        made = path.stat().st_ino
        TextIndex.of(memory).close()
        assert path.stat().st_ino == made
        path.write_bytes(b"no database" * 1000)
        assert TextIndex.of(memory).search("tortoise")
        made = path.stat().st_ino
        with sqlite3.connect(path) as damaged:
            damaged.execute("update about set version = -1")
        damaged.close()
        assert TextIndex.of(memory).search("tortoise") and path.stat().st_ino != made
        data = bytearray(path.read_bytes())
        data[3 * 4096 :] = bytes(len(data) - 3 * 4096)  # the first pages say that all is well
        path.write_bytes(data)
        assert first(memory, "tortoise").startswith("prose.md:1") and not path.exists()
        left = path.with_name(f".{path.name}.{2**22 + 1}-1")
        left.write_bytes(b"of a process that was killed")
        TextIndex.of(memory).close()
        assert not left.exists() and path.exists()
    with remembered(engine, store, tmp_path / "src", prose_md=PROSE, more_md="A heron nests here.\n") as longer:
        assert first(longer, "heron").startswith("more.md")
    assert [child.name for child in path.parent.iterdir()] == [path.name]
    delete_memory("notes", store)
    assert not path.exists()


def test_a_fork_has_an_index_of_its_own_tokens_and_a_memory_in_no_store_one_in_this_process(
    engine: Engine, store: MemoryStore, tmp_path: Path
) -> None:
    with remembered(engine, store, tmp_path / "src", a_md=PROSE, b_md="A heron nests here.\n") as memory:
        cut = memory.places.documents[0][2]
        with memory.fork(cut) as fork:
            assert TextIndex.of(fork).search("heron") == [] and TextIndex.of(fork).search("tortoise")
        assert TextIndex.of(memory).search("heron")
        memory.store = None
        assert TextIndex.of(memory).search("heron")


def test_an_encrypted_store_has_no_words_on_the_disk(engine: Engine, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    store = open_store(tmp_path / "store", key=bytes(32))
    with remembered(engine, store, tmp_path / "src", prose_md=PROSE) as memory:
        assert TextIndex.of(memory).search("tortoise")
    assert not (tmp_path / "store.search").exists()


def test_only_the_latest_version_of_a_file_is_searched(engine: Engine, store: MemoryStore, tmp_path: Path) -> None:
    with remembered(engine, store, tmp_path / "src", a_md=PROSE, b_md="Nothing here yet.\n") as memory:
        (tmp_path / "src" / "a.md").write_text(PROSE.replace("tortoise", "pelican"), encoding="utf-8")
        memory.sync("append")
        assert TextIndex.of(memory).search("tortoise") == []
        assert first(memory, "pelican").startswith("a.md:1")


def test_a_place_is_widened_to_its_paragraph_its_definition_or_its_section_as_far_as_there_is_room() -> None:
    at = CODE.index("return file")
    whole = widened(CODE, at, at + 10, 1000, len)
    assert CODE[whole.start : whole.end].startswith("@cached") and CODE[whole.start : whole.end].endswith("read()\n")
    at = PROSE.index("He fears")
    section = widened(PROSE, at, at + 5, 1000, len)
    assert PROSE[section.start : section.end].startswith("# Harbours") and "winter" not in PROSE[: section.end]
    paragraph = widened(PROSE, at, at + 5, 60, len)
    assert PROSE[paragraph.start : paragraph.end].split("\n")[0] == "The pilot of Bergen keeps a tortoise."
    narrow = widened(PROSE, at, at + 17, 9, len)
    assert PROSE[narrow.start : narrow.end] == "He fears"

"""Two copies stay two: single flips, each followed by a repair, compactions and evictions, lose nothing; what is mended
is told once; what is given up lies in `lost`."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from store_damage import flip
from store_support import CHUNK, Runner, made_up_source_map, random_tokens, same

from foveal.store import contexts, eviction, gc, loading, records, saving, usage
from foveal.store.about import ABOUT, ABOUT_COPY
from foveal.store.errors import StoreError, StoreUnavailable
from foveal.store.index_file import INDEX
from foveal.store.objects import Context
from foveal.store.own_files import RESERVE
from foveal.store.pack_file import PACK_HEADER_BYTES
from foveal.store.records import HEADER_BYTES, Extent, Kind
from foveal.store.store import Store
from foveal.store.verify import verify

pytestmark = pytest.mark.slow

TOKENS = random_tokens(1100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def opened(folder: Path) -> Store:
    store = Store(folder, durability="off")
    store.packs.pack_bytes = 200_000
    return store


def save(store: Store, size: int, name: str = "a") -> None:
    runner = Runner()
    saving.save(store, name, runner.read(TOKENS[:size], tail_every=256), runner.fingerprint)


def is_right(store: Store, size: int, name: str = "a") -> bool:
    runner = Runner()
    loaded = loading.load(store, store.context(name), runner.fingerprint, runner, chunk=CHUNK)
    return same(loaded.sequence, Runner().read(TOKENS[:size]))


def first_pack(folder: Path) -> Path:
    return min((folder / "packs").iterdir())


def mended(store: Store) -> bool:
    verify(store, repair=True)
    return verify(store).sound


# ---------------------------------------------------------------------- sequences that once lost a memory


@pytest.mark.parametrize("size", [1, 256])
@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("compact", [0, 2])
def test_flips_with_a_repair_after_each(folder: Path, size: int, bit: int, compact: int) -> None:
    """The index's first byte; then, again and again, the first record of a pack."""
    store = opened(folder)
    save(store, size)
    flip(folder / INDEX, 0, 0)
    for _ in range(compact):
        gc.collect(store, threshold=0.0)
    flip(first_pack(folder), PACK_HEADER_BYTES, bit)
    store.close()
    store = opened(folder)
    eviction.evict(store, 0)
    for _ in range(3):
        assert mended(store)
        flip(first_pack(folder), PACK_HEADER_BYTES, bit)
        for _ in range(compact):
            gc.collect(store, threshold=0.0)
    contexts.fork(store, "a", "b", at=1)
    assert is_right(store, size)
    store.close()


@pytest.mark.parametrize("place", [0.0, 0.5, 0.85, 0.921, 0.96, 0.999])
def test_no_memory_comes_back_as_an_older_version_of_itself(folder: Path, place: float) -> None:
    """A flip in the latest record of a context, and then the index is lost."""
    store = opened(folder)
    save(store, 256)
    for _ in range(6):
        gc.collect(store, threshold=0.0)
    save(store, 767)
    pack = max((folder / "packs").iterdir())
    flip(pack, int(pack.stat().st_size * place), 7)
    assert not verify(store).sound, "while the index still has it"
    store.close()
    (folder / INDEX).unlink()
    with opened(folder) as again:
        assert again.context("a").length == 767 and is_right(again, 767)


def test_an_unreadable_latest_record_is_an_error_and_not_the_one_before(folder: Path) -> None:
    """Both copies in packs are damaged, once in their payload and once in their header, and the index is lost."""
    for byte in (HEADER_BYTES + 3, 3):
        shutil.rmtree(folder, ignore_errors=True)
        with opened(folder) as store:
            save(store, 256)
            save(store, 767)
            save(store, 100, "other")
            row = store.look(lambda index: index.contexts.get(store.names.label("a")))
            assert row is not None and len(row.extents) == 2
            for place in row.extents:
                flip(store.packs.path(place.pack), place.offset + byte, 0)
        (folder / INDEX).unlink()
        with opened(folder) as again:
            with pytest.raises(StoreError, match=row.label.hex()[:12]):
                again.context("a")
            assert again.context("other").length == 100
            assert [type(found).__name__ for found in again.contexts()] == ["Context", "StoreError"]
            kept = gc.collect(again, threshold=0.0).kept
            assert kept and row.label.hex()[:12] in kept[0], "nothing is given up that may belong to it"
            assert any(problem.what == "record" and problem.lost for problem in verify(again, repair=True).problems)
            assert again.context("a").length == 256, "repair goes back, and has said so"
            assert is_right(again, 256) and verify(again).sound


def test_reading_by_one_copy_makes_two_again(folder: Path) -> None:
    """Tokens, source map, record: whoever comes across a damaged copy has the other one written again."""
    runner = Runner()
    with opened(folder) as store:
        saving.save(store, "a", runner.read(TOKENS), runner.fingerprint, source_map=made_up_source_map(len(TOKENS)))
        entries = store.look(lambda index: [e for e in index.objects.all() if e.kind in (Kind.NODE, Kind.MAP)])
        for entry in entries:
            flip(store.packs.path(entry.pack), entry.offset + HEADER_BYTES + 40, 1)
        is_right(store, len(TOKENS))
        contexts.read_map(store, store.context("a"))
        store.mend()
        again = store.look(lambda index: [e for e in index.objects.all() if e.kind in (Kind.NODE, Kind.MAP)])
        assert all(
            store.packs.read(place, Kind(entry.kind), entry.key) is not None
            for entry in again
            for place in entry.extents
        )
        assert all(len(entry.extents) == 2 for entry in again)
        told = verify(store).problems
        assert len(told) == len(entries) and all(problem.mended for problem in told)
        assert verify(store).sound, "told once"


def test_eviction_keeps_pages_whose_tokens_are_lost(folder: Path) -> None:
    """Without its tokens a page could never be computed again; all before it can still be evicted."""
    with opened(folder) as store:
        save(store, 1024)
        nodes = sorted(store.look(lambda index: index.objects.all(Kind.NODE)), key=lambda entry: entry.position)
        for place in nodes[2].extents:
            flip(store.packs.path(place.pack), place.offset + HEADER_BYTES + 1, 2)
        eviction.evict(store, 0)
        pages = {page.key for page in store.look(lambda index: index.objects.all(Kind.PAGE))}
        assert [node.key in pages for node in nodes] == [False, False, True, True]


# ---------------------------------------------------------------------- what is given up


def test_what_compaction_could_not_save_is_moved_and_not_deleted(folder: Path) -> None:
    with opened(folder) as store:
        saving.save(store, "b", Runner().read(random_tokens(300, seed=5)), Runner().fingerprint)
        save(store, 1024)
        contexts.delete(store, "b")
        page = min(store.look(lambda index: index.objects.all(Kind.PAGE)), key=lambda entry: (entry.pack, entry.offset))
        path = store.packs.path(page.pack)
        flip(path, page.offset + HEADER_BYTES + 5, 0)
        before = path.read_bytes()
        gc.collect(store, threshold=0.0)
        assert (folder / "lost" / path.name).read_bytes() == before and not path.exists()
        assert verify(store).lost == {path.name: len(before)} == store.packs.lost.sizes()
        assert os.stat(folder / "lost").st_mode & 0o777 == 0o700
        assert is_right(store, 1024)
        assert gc.empty_lost(store) == len(before) and store.packs.lost.sizes() == {}


def test_packs_of_which_nothing_can_be_read_are_kept(folder: Path) -> None:
    with opened(folder) as store:
        save(store, 1024)
    pack = first_pack(folder)
    pack.write_bytes(bytes(pack.stat().st_size))
    (folder / INDEX).unlink()
    with opened(folder) as store:
        assert (folder / "lost" / pack.name).exists()
        assert any(pack.name in problem.where for problem in verify(store).problems)


def test_a_damaged_index_is_kept(folder: Path) -> None:
    with opened(folder) as store:
        save(store, 300)
    flip(folder / INDEX, 0, 0)
    with opened(folder) as store:
        assert (folder / "lost" / INDEX).exists()
        assert [problem.mended for problem in verify(store).problems] == [True] and verify(store).sound


def test_what_a_crash_leaves_is_cut_off_and_not_kept(folder: Path) -> None:
    with opened(folder) as store:
        save(store, 300)
    pack = first_pack(folder)
    size = pack.stat().st_size
    with pack.open("ab") as file:
        torn = b"".join(records.make(Kind.CONTEXT, bytes(32), bytes(500), 99, None))
        file.write(torn[:200])
    with opened(folder) as store:
        save(store, 400, "b")
        assert not (folder / "lost").exists() and verify(store).sound
    assert pack.stat().st_size != size + 200


# ---------------------------------------------------------------------- what verify tells


@pytest.mark.parametrize("name", [ABOUT, ABOUT_COPY])
@pytest.mark.parametrize("how", ["flipped", "deleted"])
def test_store_json_is_mended_and_that_is_told(folder: Path, name: str, how: str) -> None:
    with opened(folder) as store:
        save(store, 300)
    if how == "flipped":
        flip(folder / name, 20, 3)
    else:
        (folder / name).unlink()
    with opened(folder) as store:
        assert store.context("a").length == 300
    with opened(folder) as later:
        problems = verify(later).problems
        assert [(problem.what, problem.mended) for problem in problems] == [("about", True)] and name in str(
            problems[0]
        )
        assert verify(later).sound and (folder / ABOUT).read_bytes() == (folder / ABOUT_COPY).read_bytes()


def test_a_flip_in_the_log_is_told(folder: Path, tmp_path: Path) -> None:
    """A process died before SQLite took its log in; then a bit of it flips, and SQLite passes over what follows."""
    copy = tmp_path / "copy"
    with opened(folder) as store:
        for number in range(3):
            save(store, 300 + number, f"m{number}")
        shutil.copytree(folder, copy)
    log = copy / f"{INDEX}-wal"
    flip(log, log.stat().st_size // 3, 1)
    with opened(copy) as store:
        report = verify(store)
        assert any(problem.what == "index" for problem in report.problems), report.problems
        assert sorted(c.name for c in store.contexts() if isinstance(c, Context)) == ["m0", "m1", "m2"]


def test_a_flip_where_nothing_is_read_is_told(folder: Path) -> None:
    """What fills records up, and the reserve."""
    with opened(folder) as store:
        save(store, 300)
        padded = next(e for e in store.look(lambda index: index.objects.all()) if _padding(store, e.extents[0]))
        flip(store.packs.path(padded.pack), padded.offset + padded.span - 1, 0)
        assert any("fills it up" in str(problem) for problem in verify(store).problems)
        assert mended(store)
        flip(folder / RESERVE, 1000, 0)
        assert [problem.what for problem in verify(store).problems] == ["reserve"]
        assert mended(store)


def _padding(store: Store, place: Extent) -> int:
    raw = store.packs.raw(place)
    assert raw is not None
    return place.span - HEADER_BYTES - records.size_in(raw)


# ---------------------------------------------------------------------- older stores, and folders


def test_an_index_of_the_older_form_is_made_anew_in_silence(folder: Path) -> None:
    """As the first version wrote it: one copy of the records of contexts in packs, another one in the index."""
    with opened(folder) as store:
        save(store, 300)
        contexts.fork(store, "a", "b")
        contexts.delete(store, "b")
        row = store.look(lambda index: index.contexts.get(store.names.label("a")))
        assert row is not None
    connection = sqlite3.connect(folder / INDEX)
    connection.executescript(
        "ALTER TABLE contexts DROP COLUMN pack2; ALTER TABLE contexts DROP COLUMN offset2;"
        "ALTER TABLE gone DROP COLUMN pack2; ALTER TABLE gone DROP COLUMN offset2; PRAGMA user_version=0;"
    )
    connection.close()
    for place in row.extents:  # what only the older index has left is not lost with it
        flip(folder / "packs" / f"{place.pack:010}.pack", place.offset + HEADER_BYTES + 3, 0)
    with opened(folder) as store:
        assert [c.name for c in store.contexts() if isinstance(c, Context)] == ["a"] and is_right(store, 300)
        assert not (folder / "lost" / INDEX).exists()
        assert mended(store)


def test_a_store_is_closed_to_others(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    for folder in (empty, full):
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
    (full / "notes.txt").write_text("mine")
    with Store(empty):
        assert empty.stat().st_mode & 0o777 == 0o700
    with pytest.raises(StoreError, match="holds other files"):
        Store(full)
    assert sorted(path.name for path in full.iterdir()) == ["notes.txt"] and full.stat().st_mode & 0o777 == 0o755
    empty.chmod(0o755)
    with Store(empty):
        assert empty.stat().st_mode & 0o777 == 0o700, "however it came to be open"


def test_compaction_without_room_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(folder) as store:
        save(store, 1024)
        save(store, 600, "b")
        contexts.delete(store, "a")
        before = {path.name for path in (folder / "packs").iterdir()}

        def full(raw: object) -> Extent:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(store.packs, "copy", full)
        done = gc.collect(store, threshold=0.0)
        assert done.packs == 0 and done.kept and "no room" in done.kept[0]
        assert before <= {path.name for path in (folder / "packs").iterdir()}


# ---------------------------------------------------------------------- of another moment, or away for a while


def listed(store: Store) -> list[str]:
    return [found.name if isinstance(found, Context) else str(found) for found in store.contexts()]


def test_a_log_of_another_moment_is_not_believed(folder: Path, tmp_path: Path) -> None:
    """SQLite takes in every log that is whole, and all that an index says of what it has may stand in one page."""
    with opened(folder) as store:
        save(store, 700)
        contexts.fork(store, "a", "b", at=300)
        first = shutil.copytree(folder, tmp_path / "first")  # all is in its log still, and its process dies
    index = (first / INDEX).read_bytes()
    (first / INDEX).unlink()
    with opened(first):  # makes it again, and dies
        copy = shutil.copytree(first, tmp_path / "copy")
    assert (copy / f"{INDEX}-wal").stat().st_size
    (copy / INDEX).write_bytes(index)
    with opened(copy) as store:
        assert listed(store) == ["a", "b"]
        assert gc.collect(store, threshold=0.0).kept == ()
        assert is_right(store, 700) and is_right(store, 300, "b")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_pack_that_comes_back_is_taken_in_again(folder: Path, tmp_path: Path, number: int) -> None:
    """Its disk was not there, say, while the index was made again without it."""
    with opened(folder) as store:
        store.packs.pack_bytes = 100_000
        save(store, 1000)
        save(store, 700, "b")
    pack, away = folder / "packs" / f"{number:010}.pack", tmp_path / "away"
    pack.rename(away)
    with opened(folder) as store:
        problems = verify(store, repair=True).problems
        assert any("is missing" in problem.where for problem in problems)
        save(store, 500, "c")
    assert not pack.exists(), "no number is used again"
    away.rename(pack)
    with opened(folder) as store:
        assert listed(store) == ["a", "b", "c"] and pack.exists()
        assert is_right(store, 1000) and is_right(store, 700, "b") and is_right(store, 500, "c")
        assert not (folder / "lost").exists()


def test_while_a_pack_is_missing_nothing_is_called_damaged(folder: Path, tmp_path: Path) -> None:
    """What only it has cannot be had now; compaction waits for it."""
    with opened(folder) as store:
        save(store, 700)
    pack = first_pack(folder)
    pack.rename(tmp_path / "away")
    with opened(folder) as store:
        with pytest.raises(StoreUnavailable, match=f"{pack.name} just now"):
            is_right(store, 700)
        assert gc.collect(store, threshold=0.0).kept == (f"{pack.name} is missing",)
        assert listed(store) == ["a"]
    (tmp_path / "away").rename(pack)
    with opened(folder) as store:
        assert is_right(store, 700) and verify(store).sound


def test_a_value_of_the_index_that_became_text_is_damage(folder: Path) -> None:
    """One bit of the byte that says of which type a value is; the text is none in UTF-8."""
    with opened(folder) as store:
        save(store, 300)
        label = store.names.label("a")
    data = bytearray((folder / INDEX).read_bytes())
    blob, text = 12 + 2 * len(label), 13 + 2 * len(label)  # SQLite's serial types of that many bytes
    start = data.find(label)
    while start >= 0:
        types = data.find(bytes([blob]), start - 16, start)
        data[max(types, 0)] = text if types >= 0 else data[0]
        start = data.find(label, start + 1)
    (folder / INDEX).write_bytes(data)
    with opened(folder) as store:
        assert listed(store) == ["a"] and is_right(store, 300)
        assert any(problem.what == "index" and problem.mended for problem in verify(store).problems)


@pytest.mark.parametrize("names", [(ABOUT,), (ABOUT_COPY,), (ABOUT, ABOUT_COPY)])
def test_another_stores_identity_is_not_taken_on(folder: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    """Its packs would look damaged, and all its memories gone."""
    with opened(folder) as store, opened(tmp_path / "other"):
        save(store, 300)
    own = (folder / ABOUT).read_bytes()
    for name in names:
        shutil.copy(tmp_path / "other" / name, folder / name)
    if len(names) == 2:
        with pytest.raises(StoreError, match="another store"):
            opened(folder)
        (folder / ABOUT).write_bytes(own)
    with opened(folder) as store:
        assert listed(store) == ["a"] and is_right(store, 300)
        assert any(problem.what == "about" and problem.mended for problem in verify(store).problems)
    assert (folder / ABOUT).read_bytes() == (folder / ABOUT_COPY).read_bytes() == own


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM objects WHERE kind = 3",
        "DELETE FROM objects WHERE position = 512",
        "UPDATE objects SET parent = id WHERE kind = 1 AND position = 512",
        "UPDATE objects SET parent = (SELECT max(id) FROM objects WHERE kind = 1) WHERE kind = 1 AND position = 256",
        "UPDATE objects SET parent = parent + 90 WHERE kind = 1 AND position > 256",
        "UPDATE uses SET object = object + 90",
        "DELETE FROM uses",
        "DELETE FROM objects",
    ],
)
@pytest.mark.parametrize("work", ["usage", "collect", "evict", "fork", "save", "verify"])
def test_an_index_that_does_not_fit_together(folder: Path, change: str, work: str) -> None:
    """As one with pages of another moment: every question is answered, and nothing is lost."""
    with opened(folder) as store:
        save(store, 1000)
        save(store, 700, "other")
        contexts.delete(store, "other")
    connection = sqlite3.connect(folder / INDEX)
    connection.executescript(change)
    connection.close()
    with opened(folder) as store:
        doing = {
            "usage": lambda: usage.usage(store)["a"],
            "collect": lambda: gc.collect(store, threshold=0.0),
            "evict": lambda: eviction.evict(store, 100_000),
            "fork": lambda: contexts.fork(store, "a", "b", at=600),
            "save": lambda: save(store, 1100),
            "verify": lambda: verify(store, repair=True),
        }
        doing[work]()
        assert is_right(store, 1100 if work == "save" else 1000)
        assert mended(store)

"""Several processes on one store, and what they leave each other: each test is a fault that was once there."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.children import ended, forked
from store_damage import flip
from store_support import CHUNK, Runner, made_up_source_map, random_tokens, same

from foveal.sources import SourceMap
from foveal.store import contexts, eviction, gc, loading, saving, transfer
from foveal.store.chain import read_chain
from foveal.store.errors import CorruptMemory, MemoryNotFound, StoreBusy, StoreError
from foveal.store.files import Presence, exclusive
from foveal.store.index import Index
from foveal.store.index_file import INDEX
from foveal.store.objects import Context
from foveal.store.own_files import LIVE
from foveal.store.pack_file import pack_header
from foveal.store.packs import Packs
from foveal.store.records import HEADER_BYTES, Kind
from foveal.store.store import Store
from foveal.store.verify import verify

pytestmark = pytest.mark.slow

TOKENS = random_tokens(1400)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", durability="off") as opened:
        yield opened


@pytest.fixture
def runner() -> Runner:
    return Runner()


def save(store: Store, name: str, tokens: np.ndarray, runner: Runner, *, tail_every: int | None = None) -> Context:
    with runner.read(tokens, tail_every=tail_every) as sequence:
        places = made_up_source_map(len(tokens))
        return saving.save(store, name, sequence, runner.fingerprint, source_map=places)


def load(store: Store, name: str, runner: Runner) -> loading.Loaded:
    return loading.load(store, store.context(name), runner.fingerprint, runner, chunk=CHUNK)


def find(store: Store, kind: Kind) -> list[tuple[Path, int]]:
    """File and place of each record of a kind."""
    found = [record for pack in sorted(store.packs.files()) for record in store.packs.scan(pack)]
    return [(store.packs.path(place.pack), place.offset) for place, header in found if header.kind is kind]


# ---------------------------------------------------------------------- what is left behind


def test_nothing_is_left_of_a_deleted_context(store: Store, runner: Runner) -> None:
    save(store, "a", TOKENS[:300], runner)
    held, let_go = contexts.presence(store, "a"), contexts.presence(store, "b")
    assert held is not None and let_go is not None
    let_go.close()
    contexts.delete(store, "a")
    gc.collect(store)
    assert [path.name for path in (store.folder / LIVE).iterdir()] == [store.names.label("a").hex()], "still in use"
    held.close()
    gc.collect(store)
    assert not list((store.folder / LIVE).iterdir())


def test_files_that_a_dead_process_did_not_finish_are_swept(store: Store) -> None:
    for name in (".store.json.new", "index.replaced.sqlite", ".index.rebuilt.sqlite.new", "index.rebuilt.sqlite-wal"):
        (store.folder / name).write_bytes(b"half")
    gc.collect(store)
    assert not [path for path in store.folder.iterdir() if "new" in path.name or "ed." in path.name]


def test_being_there_is_said_also_while_somebody_looks(store: Store, tmp_path: Path) -> None:
    """Who looks whether a context is in use holds its lock for a moment; nobody is evicted for that."""
    place = tmp_path / "label"
    with exclusive(place, 0):
        thread = threading.Thread(target=lambda: made.append(Presence(place)))
        made: list[Presence] = []
        thread.start()
        time.sleep(0.05)
        place.unlink()  # and may have swept it
    thread.join()
    assert Presence.anywhere(place)
    made[0].close()
    assert not Presence.anywhere(place)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_that_make_one_store_at_once(tmp_path: Path) -> None:
    for turn in range(10):
        folder = tmp_path / str(turn)
        children = [forked(lambda: Store(folder).close()) for _ in range(4)]  # noqa: B023 - called before the next turn
        assert [ended(child) for child in children] == [0] * 4


# ---------------------------------------------------------------------- others change it meanwhile


class Meddling:
    """Something that another process does just when a record is to be read, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: Store, work: Callable[[Store], object]) -> None:
        self.done, read = False, Packs.stored

        def meddle(packs: Packs, *arguments: object) -> object:
            if packs is store.packs and not self.done:
                self.done = True
                with Store(store.folder, durability="off") as other:
                    work(other)
            return read(packs, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Packs, "stored", meddle)


def compact(store: Store) -> None:
    assert gc.collect(store, threshold=0.0).packs


@pytest.fixture
def wasteful(store: Store, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in which everything moves when it is compacted; another process opened it, and has mapped nothing yet."""
    save(store, "gone", random_tokens(600, seed=3), runner)
    save(store, "a", TOKENS, runner)
    contexts.delete(store, "gone")
    monkeypatch.setattr(store.transactions, "repair", lambda problem=None: pytest.fail("the index was sound"))
    store.packs.maps.clear()
    return store


def test_loading_while_others_compact_takes_nothing_for_damaged(
    wasteful: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        engine = Runner()
        meddling = Meddling(monkeypatch, wasteful, lambda other: other.packs.disk)
        loaded = load(wasteful, "a", engine)
        assert meddling.done and not loaded.damaged and not engine.run
        assert same(loaded.sequence, Runner().read(TOKENS))


@pytest.mark.parametrize("work", ["load", "map", "verify", "export", "fork"])
def test_compaction_in_the_middle(wasteful: Store, monkeypatch: pytest.MonkeyPatch, work: str, tmp_path: Path) -> None:
    context, engine = wasteful.context("a"), Runner()
    meddling = Meddling(monkeypatch, wasteful, compact)
    if work == "load":
        loaded = load(wasteful, "a", engine)
        assert not loaded.damaged and not engine.run and same(loaded.sequence, Runner().read(TOKENS))
    elif work == "map":
        assert contexts.read_map(wasteful, context).tokens == 1400
    elif work == "verify":
        assert verify(wasteful).sound
    elif work == "fork":
        assert contexts.fork(wasteful, "a", "b", at=700).length == 700
    else:
        with (tmp_path / "file").open("wb") as file:
            assert transfer.export(wasteful, "a", file) > 5 * engine.pool.layout.page_bytes
    assert meddling.done


def test_forking_what_is_just_being_replaced_forks_the_new_one(
    store: Store, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, "a", TOKENS[:600], runner)

    def replace(other: Store) -> None:
        save(other, "a", random_tokens(900, seed=5), Runner())
        gc.collect(other, threshold=0.0)

    meddling = Meddling(monkeypatch, store, replace)
    fork = contexts.fork(store, "a", "b", at=500)
    assert meddling.done and fork.length == 500
    assert same(load(store, "b", Runner()).sequence, Runner().read(random_tokens(900, seed=5)[:500]))


def test_deleting_does_not_wait_for_who_reads(store: Store, runner: Runner) -> None:
    save(store, "a", TOKENS, runner)
    save(store, "b", TOKENS[:300], runner)
    with Store(store.folder) as reader:
        index = reader.index
        index.execute("BEGIN")
        index.contexts.all()
        started = time.monotonic()
        contexts.delete(store, "a")
        gc.collect(store, threshold=0.0)
        assert time.monotonic() - started < 20, "60 seconds is what SQLite would wait"
        index.rollback()


def test_tails_that_are_gone_do_not_hold_up_who_puts_pages_back(store: Store, runner: Runner) -> None:
    """Looking at the index within a transaction once waited for itself."""
    store.wait = 1.0
    save(store, "a", TOKENS, runner, tail_every=256)
    eviction.evict(store, 0)
    assert same(load(store, "a", Runner()).sequence, Runner().read(TOKENS))
    assert not load(store, "a", Runner()).replayed, "it was put back"
    assert verify(store).sound


def test_an_index_made_again_after_an_eviction_is_sound(store: Store, runner: Runner) -> None:
    save(store, "a", TOKENS, runner, tail_every=256)
    eviction.evict(store, 0)
    store.repair()
    assert verify(store).sound
    assert same(load(store, "a", Runner()).sequence, Runner().read(TOKENS))


# ---------------------------------------------------------------------- one flip, and then something else


def test_a_damaged_row_does_not_replace_a_sound_record(store: Store, runner: Runner) -> None:
    """Compaction copies the record of a context from where it is whole: the index may be what was damaged."""
    save(store, "gone", TOKENS[:900], runner)
    save(store, "a", TOKENS[:300], runner)
    contexts.delete(store, "gone")
    row = store.index.contexts.get(store.names.label("a"))
    assert row is not None
    bad = bytearray(row.record)
    bad[HEADER_BYTES + 9] ^= 4
    store.index.execute("UPDATE contexts SET record = ? WHERE id = ?", (bytes(bad), row.id))
    assert not verify(store).sound
    compact(store)
    assert [problem.mended for problem in verify(store).problems] == [True], "what was mended is told"
    assert verify(store).sound, "once"
    assert store.context("a").length == 300


def test_a_deleted_context_does_not_come_back(store: Store, runner: Runner) -> None:
    save(store, "a", TOKENS[:300], runner)
    contexts.delete(store, "a")
    path, offset = find(store, Kind.GONE)[0]
    flip(path, offset + 40, 2)
    assert [problem.what for problem in verify(store).problems] == ["record"]
    store.repair()
    with pytest.raises(MemoryNotFound):
        store.context("a")
    assert not verify(store, repair=True).sound
    assert verify(store).sound
    (store.folder / INDEX).unlink()
    with Store(store.folder) as reopened, pytest.raises(MemoryNotFound):
        reopened.context("a")


def test_a_context_does_not_go_back_in_time(store: Store, runner: Runner) -> None:
    """Its latest record is damaged where it lies, and the index is made again for some other reason."""
    save(store, "a", TOKENS[:600], runner)
    save(store, "a", TOKENS, runner)
    path, offset = find(store, Kind.CONTEXT)[2]  # each of the two lies twice
    flip(path, offset + HEADER_BYTES + 30, 2)
    store.repair()
    assert store.context("a").length == 1400
    assert not verify(store, repair=True).sound
    assert verify(store).sound
    (store.folder / INDEX).unlink()
    with Store(store.folder) as reopened:
        assert same(load(reopened, "a", Runner()).sequence, Runner().read(TOKENS))


def test_what_a_process_has_mapped_is_verified_when_it_is_loaded_again(store: Store, runner: Runner) -> None:
    save(store, "a", TOKENS, runner)
    engine = Runner()
    first = load(store, "a", engine)
    path, offset = find(store, Kind.PAGE)[1]
    flip(path, offset + HEADER_BYTES + 77, 3)
    again = load(store, "a", engine)
    assert len(again.damaged) == 1
    assert same(again.sequence, Runner().read(TOKENS))
    first.sequence.free()
    assert verify(store).sound, "it was put back"


def test_a_pack_that_was_cut_while_it_is_mapped_is_a_miss(store: Store, runner: Runner) -> None:
    """And no signal: what is loaded anew is not looked at through the old map."""
    save(store, "a", TOKENS, runner)

    def cut() -> None:
        engine = Runner()
        first = load(store, "a", engine)
        path, offset = find(store, Kind.PAGE)[3]
        os.truncate(path, offset + 1000)
        with pytest.raises(StoreError, match="damaged"):
            load(store, "a", engine)
        first.sequence.free()

    assert ended(forked(cut)) == 0


def test_verify_tells_of_an_index_that_had_to_be_made_again(store: Store, runner: Runner) -> None:
    save(store, "a", TOKENS[:300], runner)
    store.close()
    flip(store.folder / INDEX, 20, 1)  # the header: it is no database any more
    with Store(store.folder) as damaged:
        assert [problem.what for problem in verify(damaged).problems] == ["index"]
        assert verify(damaged).sound
    (store.folder / INDEX).unlink()  # as after a process died while it made one: nothing was damaged
    with Store(store.folder) as missing:
        assert verify(missing).sound


def test_verify_counts_what_contexts_say_they_are_made_of(store: Store, runner: Runner) -> None:
    save(store, "a", TOKENS, runner)
    contexts.fork(store, "a", "b", at=700)
    row = store.index.contexts.get(store.names.label("b"))
    assert row is not None
    store.index.execute(
        "DELETE FROM uses WHERE context = ? AND object IN (SELECT id FROM objects WHERE kind = 4)", (row.id,)
    )
    problems = verify(store, repair=True).problems
    assert any(problem.what == "index" and problem.contexts == ("b",) for problem in problems)
    assert verify(store).sound
    contexts.delete(store, "a")
    assert contexts.read_map(store, store.context("b")).tokens == 700


def test_a_stamp_changes_with_every_change(store: Store, runner: Runner) -> None:
    stamps = [store.look(Index.stamp)]
    for work in (
        lambda: save(store, "a", TOKENS[:600], runner),
        lambda: contexts.fork(store, "a", "b"),
        lambda: contexts.change(store, "a", labels={"x": "y"}),
        lambda: eviction.evict(store, 0),
        lambda: contexts.delete(store, "a"),
        lambda: store.repair(),
    ):
        work()
        stamps.append(store.look(Index.stamp))
    assert len(set(stamps)) == len(stamps)


def test_a_flip_in_the_index_and_then_work_on_its_word(tmp_path: Path, runner: Runner) -> None:
    """Somebody deletes another context and compacts before anybody looks."""
    dice = random.Random(11)
    with Store(tmp_path / "saved", durability="off") as store:
        store.packs.pack_bytes = 120_000
        save(store, "gone", random_tokens(700, seed=2), runner)
        save(store, "a", TOKENS[:700], runner)
        contexts.fork(store, "a", "b", at=600)
    data = (tmp_path / "saved" / INDEX).read_bytes()
    for turn in range(40):
        folder = shutil.copytree(tmp_path / "saved", tmp_path / str(turn))
        flip(folder / INDEX, dice.choice([place for place, value in enumerate(data) if value]), dice.randrange(8))
        with Store(folder, durability="off") as store:
            store.packs.pack_bytes = 120_000
            contexts.delete(store, "gone")
            gc.collect(store, threshold=0.0)
            for name, length in (("a", 700), ("b", 600)):
                assert same(load(store, name, Runner()).sequence, Runner().read(TOKENS[:length]))
            verify(store, repair=True)
            assert verify(store).sound
        shutil.rmtree(folder)


def test_one_name_is_read_into_by_one_process(store: Store, runner: Runner) -> None:
    with contexts.claim(store, "a"), Store(store.folder) as other:
        with (
            pytest.raises(StoreBusy, match=rf"pid {os.getpid()}\) is reading into memory 'a'"),
            contexts.claim(other, "a"),
        ):
            pass
        with contexts.claim(other, "b"):
            pass
        gc.collect(other)
        with pytest.raises(StoreBusy), contexts.claim(other, "a"):
            pass
    with contexts.claim(store, "a"):
        pass
    gc.collect(store)
    assert not list((store.folder / LIVE).iterdir())


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for create in (True, False):
        with pytest.raises(StoreError, match="is a file"):
            Store(tmp_path / "file", create=create)


def test_an_index_that_is_replaced_while_it_is_opened(
    store: Store, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite opens the log later than the file, by its name: it once was that of the new index, for the old file."""
    save(store, "a", TOKENS[:600], runner)
    connect, others = sqlite3.connect, []

    def slow(*arguments: object, **options: object) -> sqlite3.Connection:
        connection = connect(*arguments, **options)  # type: ignore[arg-type]  # the file is open now
        if not others and "mode=rw" in str(arguments[0]):
            others.append(None)
            others.append(Store(store.folder, durability="off"))
            save(others[1], "b", random_tokens(900, seed=7), Runner())
            others[1].repair()
            contexts.change(others[1], "a", labels={"x": "y"})
        return connection

    monkeypatch.setattr(sqlite3, "connect", slow)
    with Store(store.folder) as late:
        assert [found.name for found in late.contexts() if isinstance(found, Context)] == ["a", "b"]
        late.look(lambda index: index.rows("PRAGMA wal_checkpoint"))
    others[1].close()
    with Store(store.folder) as after:
        assert len(after.contexts()) == 2 and verify(after).sound


def test_a_pack_that_never_counted_is_not_taken_for_the_next_of_its_number(store: Store, runner: Runner) -> None:
    """A process looked at a pack whose writer then died; the next writer made another one with that number."""
    save(store, "a", TOKENS[:300], runner)
    store.packs.pack_bytes = 1
    number = store.look(lambda index: index.state().next_pack)
    torn = store.packs.path(number)
    torn.write_bytes(pack_header(number, store.id) + random.Random(1).randbytes(500_000))
    assert store.packs.sound(number)
    Store(store.folder).close()  # cuts it off
    assert not torn.exists()
    save(store, "b", TOKENS, runner)
    assert torn.exists()
    assert verify(store).sound
    assert same(load(store, "b", Runner()).sequence, Runner().read(TOKENS))


def test_a_tail_that_comes_back_with_another_context_is_no_problem(store: Store, runner: Runner) -> None:
    save(store, "a", TOKENS, runner)
    eviction.evict(store, 0)
    store.repair()  # knows no tail of "a" now
    save(store, "b", TOKENS, runner)
    assert verify(store).sound
    contexts.delete(store, "b")
    assert verify(store).sound
    assert same(load(store, "a", Runner()).sequence, Runner().read(TOKENS))


@pytest.mark.parametrize("tails", [None, 256])
def test_forking_near_a_damaged_node_is_right(store: Store, runner: Runner, tails: int | None) -> None:
    """The way from the end to where the fork ends is proved, by the other copy where one is damaged."""
    save(store, "a", TOKENS, runner, tail_every=tails)
    for path, offset in find(store, Kind.NODE)[::2]:
        flip(path, offset + HEADER_BYTES + 5, 1)  # the parent of a first copy
    for at in (1, 255, 256, 257, 1023, 1024, 1025, 1279, 1280, 1300):
        contexts.fork(store, "a", "b", at=at)
        assert same(load(store, "b", Runner()).sequence, Runner().read(TOKENS[:at]))
        contexts.delete(store, "b")
    store.index.execute("UPDATE objects SET parent = parent + 2 WHERE kind = 1 AND position = 1024")
    contexts.fork(store, "a", "b", at=300)
    assert same(load(store, "b", Runner()).sequence, Runner().read(TOKENS[:300]))


def test_a_fork_has_no_more_of_the_source_map_than_its_tokens(store: Store, runner: Runner, tmp_path: Path) -> None:
    save(store, "a", TOKENS, runner)
    for name, base, at in (("b", "a", 700), ("c", "b", 333), ("d", "c", 333)):
        contexts.fork(store, base, name, at=at)
        assert contexts.read_map(store, store.context(name)).tokens == at
    for name in "abc":
        contexts.delete(store, name)
    assert contexts.read_map(store, store.context("d")).tokens == 333 and verify(store).sound
    with (tmp_path / "file").open("wb") as file:
        transfer.export(store, "d", file)
    with Store(tmp_path / "other") as other, (tmp_path / "file").open("rb") as file:
        transfer.import_file(other, file)
        assert contexts.read_map(other, other.context("d")).tokens == 333
        entries = other.look(lambda index: index.objects.all(Kind.MAP))
        payload = other.objects.read(entries[0])
        assert payload is not None and SourceMap.from_bytes(bytes(payload)).tokens == 333, "the rest did not travel"


LENGTHS = sorted({*range(1, 133), *range(255, 258), *range(383, 386), *range(511, 514)})


def test_equality_at_every_residue_and_at_random_lengths(tmp_path: Path) -> None:
    """Saved, restored by another engine, gone on with; forked, forked again, evicted: as if it had never been away."""
    dice, tokens, more = random.Random(5), random_tokens(1500), random_tokens(140, seed=8)
    lengths = [*LENGTHS, *(dice.randint(1, 1400) for _ in range(30))]
    assert {length % 128 for length in LENGTHS} == set(range(128))
    with Store(tmp_path / "store", durability="off") as store:
        for number, length in enumerate(lengths):
            writer, reader, other = Runner(), Runner(), Runner()
            with writer.read(tokens[:length], tail_every=dice.choice([None, 128, 256])) as sequence:
                saving.save(store, "a", sequence, writer.fingerprint, facts={})
                at = dice.randint(1, length)
                again = dice.randint(1, at)
                contexts.fork(store, "a", f"b{number}", at=at)
                contexts.fork(store, f"b{number}", f"c{number}", at=again)
                if number % 3 == 0:
                    eviction.evict(store, 0)
                loaded = load(store, "a", reader).sequence
                for runner, live in ((writer, sequence), (reader, loaded)):
                    runner.prefill(live, more.tolist())
                assert same(loaded, sequence)
            for name, end in ((f"b{number}", at), (f"c{number}", again)):
                forked = load(store, name, other).sequence
                other.prefill(forked, more[:7].tolist())
                assert same(forked, Runner().read(np.concatenate([tokens[:end], more[:7]]))), (length, name, end)
                contexts.delete(store, name)
        assert verify(store).sound


def test_a_store_that_others_change_all_the_time_is_not_called_damaged(tmp_path: Path) -> None:
    engine, tried = Runner(), 0
    with Store(tmp_path) as store, Store(tmp_path) as other, engine.read(random_tokens(300)) as sequence:
        saving.save(store, "a", sequence, engine.fingerprint)

        def moved_away() -> str | None:
            """Found only while nobody else writes."""
            nonlocal tried
            tried += 1
            if store.index.in_transaction:
                return "found"
            contexts.change(other, "a", pinned=bool(tried % 2))
            return None

        assert store.insist(moved_away) == "found"
        assert store.repairs.told() == []
        assert verify(store).sound


def test_what_is_not_there_is_not_found_however_busy_the_store_is(tmp_path: Path) -> None:
    engine = Runner()
    with Store(tmp_path) as store, Store(tmp_path) as other, engine.read(random_tokens(300)) as sequence:
        saving.save(store, "a", sequence, engine.fingerprint)

        def nowhere() -> None:
            if not store.index.in_transaction:
                contexts.change(other, "a", pinned=not other.context("a").pinned)

        assert store.insist(nowhere) is None
        assert store.repairs.told() == [] and verify(store).sound


def test_what_comes_back_while_the_index_is_made_again_was_not_misled_to(tmp_path: Path) -> None:
    """A context that is gone, and is saved again by somebody else before the index is in question."""
    engine = Runner()
    with Store(tmp_path) as store, Store(tmp_path) as other, engine.read(random_tokens(300)) as sequence:
        gone = saving.save(other, "a", sequence, engine.fingerprint)
        contexts.delete(other, "a")
        gc.collect(other, threshold=0.0)
        check = store._check_packs

        def comes_back() -> None:
            check()
            if not store.index.in_transaction:  # within one nobody else can
                saving.save(other, "a", sequence, engine.fingerprint)

        store._check_packs = comes_back  # type: ignore[method-assign]
        with pytest.raises(CorruptMemory):
            read_chain(store, gone, engine.fingerprint.digest)
        assert store.repairs.told() == [] and verify(store).sound


def test_an_index_that_misleads_is_made_again_and_told_of(tmp_path: Path) -> None:
    engine = Runner()
    with Store(tmp_path) as store, engine.read(random_tokens(600)) as sequence:
        saved = saving.save(store, "a", sequence, engine.fingerprint)
        entry = store.look(lambda index: index.objects.find(Kind.NODE, saved.head))
        assert entry is not None
        connection = sqlite3.connect(tmp_path / INDEX)
        with connection:
            connection.execute(
                "UPDATE objects SET offset = offset + 64, offset2 = offset2 + 64 WHERE id = ?", (entry.id,)
            )
        connection.close()
        assert read_chain(store, saved, engine.fingerprint.digest).keys[-1] == saved.head
        assert [what for what, _ in store.repairs.told()] == ["index"]


def test_damage_of_what_nobody_refers_to_is_not_told(store: Store, runner: Runner) -> None:
    """Neither by `verify`, which does not look at it, nor when the index is made again, which does."""
    save(store, "b", random_tokens(300), runner)
    save(store, "a", TOKENS[:600], runner)
    for kind in (Kind.MAP, Kind.CONTEXT):
        path, offset = find(store, kind)[-1]
        flip(path, offset + HEADER_BYTES + 30, 2)
    contexts.delete(store, "a")
    store.repair()
    assert store.repairs.told() == [] and verify(store).sound


def test_an_index_that_is_put_in_place_just_then_is_opened(
    store: Store, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the old file and the new one there is none for a moment."""
    save(store, "a", TOKENS[:600], runner)
    store.close()
    path, fresh, connect, tried = store.folder / INDEX, store.folder / "fresh", sqlite3.connect, 0

    def in_between(*arguments: Any, **options: Any) -> sqlite3.Connection:
        nonlocal tried
        tried += 1
        if tried > 2:
            return connect(*arguments, **options)
        if tried == 1:
            shutil.copyfile(path, fresh)
            path.unlink()
        try:
            connection = connect(*arguments, **options)
            connection.execute("SELECT 1 FROM state")
            return connection
        finally:
            if tried == 2:
                fresh.rename(path)

    monkeypatch.setattr(sqlite3, "connect", in_between)
    with Store(store.folder) as opened:
        assert opened.context("a").length == 600 and tried == 3
        assert opened.repairs.told() == []

"""The store with an exact stand-in for the network: what is written, comes back, is shared, is freed."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cache_support import CONFIG, split
from store_damage import flip
from store_support import CHUNK, Runner, random_tokens, same

from foveal import cache
from foveal.cache.replay import replay_start
from foveal.store import contexts, eviction, gc, loading, records, saving, transfer, usage
from foveal.store.cipher import key_file, key_from
from foveal.store.errors import CorruptMemory, FingerprintMismatch, FormatError, MemoryNotFound, StoreBusy, StoreError
from foveal.store.files import exclusive
from foveal.store.index import Index
from foveal.store.index_file import LOCK
from foveal.store.loading import Loaded
from foveal.store.objects import Context
from foveal.store.prefix import find_prefix, load_prefix
from foveal.store.records import Extent, Kind
from foveal.store.store import Store
from foveal.store.verify import verify

pytestmark = pytest.mark.slow

LENGTHS = [1, 2, 3, 4, 5, 127, 128, 129, 130, 255, 256, 257, 383, 384, 385, 511, 512, 513, 1025]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", durability="off") as opened:
        yield opened


@pytest.fixture
def runner() -> Runner:
    return Runner()


def save(store: Store, name: str, sequence: cache.Sequence, runner: Runner, **options: bool) -> Context:
    return saving.save(store, name, sequence, runner.fingerprint, **options)


def load(store: Store, name: str, runner: Runner | None = None) -> tuple[Loaded, Runner]:
    """By default into another engine, as another process would."""
    runner = runner or Runner()
    return loading.load(store, store.context(name), runner.fingerprint, runner, chunk=CHUNK), runner


def is_right(store: Store, name: str, tokens: np.ndarray) -> bool:
    """Loading `name` gives the state of `tokens`, computed from nothing."""
    loaded, _ = load(store, name)
    return same(loaded.sequence, Runner().read(tokens))


# ---------------------------------------------------------------------- save and load


@pytest.mark.parametrize("length", LENGTHS)
def test_what_was_saved_comes_back_bit_for_bit(store: Store, runner: Runner, length: int) -> None:
    tokens = random_tokens(length)
    save(store, "a", runner.read(tokens), runner)
    with Store(store.folder) as other:
        loaded, engine = load(other, "a")
    assert loaded.exact and not loaded.replayed and not loaded.damaged and engine.run == 0
    assert same(loaded.sequence, runner.read(tokens))
    more = random_tokens(300, seed=1)
    engine.prefill(loaded.sequence, more.tolist())
    assert same(loaded.sequence, runner.read(np.concatenate([tokens, more])))


@pytest.mark.parametrize("start", range(0, 128, 16))
def test_fork_and_fork_of_a_fork_at_every_residue(store: Store, runner: Runner, start: int) -> None:
    """Every residue of 128 (and so of 4), and after eviction: the state is that of the tokens computed from nothing."""
    tokens = random_tokens(700)
    save(store, "a", runner.read(tokens), runner)
    for length in range(384 + start, 384 + start + 16):
        contexts.fork(store, "a", "b", at=length)
        contexts.fork(store, "b", "c", at=length - 129)
        if length % 8 == 0:
            eviction.evict(store, 0)
        assert is_right(store, "b", tokens[:length])
        if length % 4 == 3 or length % 8 == 0:
            assert is_right(store, "c", tokens[: length - 129])
        for name in ("b", "c"):
            contexts.delete(store, name)


def test_a_second_save_writes_what_is_new(store: Store, runner: Runner) -> None:
    tokens = random_tokens(5 * 1024)
    sequence = runner.read(tokens[:4096])
    save(store, "a", sequence, runner)
    before = store.packs.written
    runner.prefill(sequence, tokens[4096:].tolist())
    save(store, "a", sequence, runner)
    page, tail = runner.pool.layout.page_bytes, runner.pool.layout.tail_bytes(5120, mtp=True)
    assert 4 * page + tail < store.packs.written - before < 4 * page + tail + 4 * 3000 + 6000
    before = store.packs.written
    save(store, "a", sequence, runner)
    assert store.packs.written - before < 2000, "a save without news is a row"
    assert verify(store).sound


def test_the_same_text_from_another_engine_is_stored_once(store: Store, runner: Runner) -> None:
    tokens = random_tokens(2000)
    save(store, "a", runner.read(tokens), runner)
    before = store.packs.written
    other = Runner()
    save(store, "b", other.read(np.concatenate([tokens[:1024], random_tokens(100, seed=5)])), other)
    assert store.packs.written - before < runner.pool.layout.tail_bytes(1124, mtp=True) + 2 * 33024 + 6000
    assert len(store.look(lambda index: index.objects.all(Kind.PAGE))) == 2000 // 256


def test_pages_that_differ_in_their_last_bits_are_kept_apart(store: Store, runner: Runner) -> None:
    """As when one was read and the other was generated: what comes back is what was saved, for each."""
    tokens = random_tokens(1024)
    one, two = runner.read(tokens), Runner().read(tokens)
    two.pages[1].data[5] ^= 1
    save(store, "one", one, runner)
    save(store, "two", two, runner)
    assert same(load(store, "one")[0].sequence, one) and same(load(store, "two")[0].sequence, two)
    assert len(store.look(lambda index: index.objects.all(Kind.PAGE))) == 4 + 3
    found = find_prefix(store, tokens, runner.fingerprint)
    assert found is not None and found.length == 1024


def test_loading_shares_what_is_in_memory(store: Store, runner: Runner) -> None:
    sequence = runner.read(random_tokens(2048))
    save(store, "a", sequence, runner)
    live = runner.pool.live
    loaded, _ = load(store, "a", runner)
    assert runner.pool.live == live and loaded.sequence.pages == sequence.pages
    other = Runner()
    first, _ = load(store, "a", other)
    second, _ = load(store, "a", other)
    assert first.sequence.pages == second.sequence.pages and other.pool.live == 8
    other.pool.check_integrity([first.sequence.pages, second.sequence.pages])


@pytest.mark.parametrize(("every", "tails"), [(256, True), (1024, True), (None, False)])
def test_tail_policies(store: Store, runner: Runner, every: int | None, tails: bool) -> None:
    """Full, periodic, none: the fewer tails, the more tokens are run again, but never more than the window needs."""
    tokens = random_tokens(2900)
    sequence = runner.new_sequence(tail_every=every)
    for start in range(0, 2900, 256):
        runner.prefill(sequence, tokens[start : start + 256].tolist())
    save(store, "a", sequence, runner, tails=tails)
    loaded, engine = load(store, "a")
    assert same(loaded.sequence, sequence) and loaded.exact
    assert engine.run == (0 if tails else 2900 - replay_start(CONFIG, 2900 // 256 * 256))
    for at in (700, 2100):
        contexts.fork(store, "a", f"at{at}", at=at)
        forked, engine = load(store, f"at{at}")
        assert same(forked.sequence, Runner().read(tokens[:at]))
        nearest = at // every * every if every else 0
        assert engine.run == at - max(nearest, replay_start(CONFIG, at // 256 * 256))


# ---------------------------------------------------------------------- fork, delete, references


def test_fork_touches_no_page_and_lives_on_its_own(store: Store, runner: Runner) -> None:
    tokens = random_tokens(3000)
    save(store, "a", runner.read(tokens), runner)
    before = store.packs.written
    fork = contexts.fork(store, "a", "b")
    contexts.fork(store, "b", "c")
    assert store.packs.written - before < 6500
    assert (fork.parent, fork.forked_at) == ("a", 3000)
    contexts.fork(store, "a", "d", at=1300)
    contexts.delete(store, "a")
    assert verify(store).sound
    assert is_right(store, "b", tokens) and is_right(store, "c", tokens) and is_right(store, "d", tokens[:1300])
    loaded, engine = load(store, "d")
    engine.prefill(loaded.sequence, [1, 2, 3])
    save(store, "e", loaded.sequence, engine)
    for name in "bc":
        contexts.delete(store, name)
    assert len(store.look(lambda index: index.objects.all(Kind.PAGE))) == 1300 // 256
    contexts.delete(store, "d")
    contexts.delete(store, "e")
    assert store.look(lambda index: index.objects.all()) == [] and verify(store).sound
    gc.collect(store, threshold=0)
    assert usage.disk_bytes(store) < 5000


def many_tails(runner: Runner, length: int, every: int) -> cache.Sequence:
    sequence = runner.new_sequence(tail_every=every)
    for part in split(random_tokens(length), every):
        runner.prefill(sequence, part.tolist())
    return sequence


@pytest.mark.parametrize("at", [None, 2000, 300])
def test_a_fork_asks_as_little_of_a_context_with_many_tails(
    store: Store, runner: Runner, at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither questions nor statements are as many as tails, or as pages where there are none."""
    asked: list[str] = []
    for way in ("rows", "execute"):
        ask = getattr(Index, way)
        monkeypatch.setattr(
            Index, way, lambda self, sql, values=(), ask=ask: (asked.append(sql), ask(self, sql, values))[1]
        )
    counts = []
    for every, tails in ((1500, True), (64, True), (3000, False)):
        name = f"a{every}"
        context = save(store, name, many_tails(runner, 3000, every), runner, tails=tails)
        asked.clear()
        contexts.fork(store, name, f"b{every}", at=at)
        counts.append(len(asked))
    assert len(context.tails) == 0 and len(store.context("a64").tails) == 3000 // 64 + 1
    assert max(counts) - min(counts) <= 4 and max(counts) < 35, counts


def test_a_fork_uses_all_of_its_own_also_where_its_base_does_not(store: Store, runner: Runner) -> None:
    tokens = random_tokens(3000)
    save(store, "a", many_tails(runner, 3000, 256), runner)
    store.transact(lambda tx: (setattr(tx, "changed", True), tx.index.execute("DELETE FROM uses WHERE object % 2 = 0")))
    for name, at in (("b", 3000), ("c", 1300)):
        fork = contexts.fork(store, "a", name, at=at)
        row = store.look(lambda index, name=name: index.contexts.get(store.names.label(name)))
        assert row is not None
        used = store.look(lambda index, row=row: index.references.used_by(row.id))
        assert sorted(used) == sorted(store.transact(lambda tx, fork=fork: tx.uses(fork)))
        assert len(used) == 1 + len(fork.tails) > 3
        assert is_right(store, name, tokens[:at])


def test_the_way_to_a_fork_is_proved_and_not_believed(store: Store, runner: Runner) -> None:
    """Without tails it leads over all pages: through damaged records by their copies, and never into another past."""
    tokens, other = random_tokens(3000), random_tokens(3000, seed=1)
    save(store, "other", runner.read(other), runner, tails=False)
    base = save(store, "a", runner.read(tokens), runner, tails=False)
    nodes = {entry.key: entry for entry in store.look(lambda index: index.objects.all(Kind.NODE))}
    path = store.look(lambda index: index.objects.way_up(base.head, 256))
    ours, theirs = nodes[path[4][0]], next(e for e in nodes.values() if e.position == 6 * 256 and e.key != path[5][0])
    assert ours.position == 7 * 256
    store.transact(
        lambda tx: (
            setattr(tx, "changed", True),
            tx.index.execute("UPDATE objects SET parent = ? WHERE id = ?", (theirs.id, ours.id)),
        )
    )
    contexts.fork(store, "a", "b", at=900)
    assert is_right(store, "b", tokens[:900]) and store.repairs.told(), "the index was made again"
    for number in range(2):  # the copy that was damaged is written again: there are always two
        for place in _extents(store, path[3][0])[:1]:
            flip(store.packs.path(place.pack), place.offset + records.HEADER_BYTES + 3, 0)
        contexts.fork(store, "a", f"c{number}", at=900)
        assert is_right(store, f"c{number}", tokens[:900])
    for place in _extents(store, path[3][0]):
        flip(store.packs.path(place.pack), place.offset + records.HEADER_BYTES + 3, 0)
    with pytest.raises(CorruptMemory, match="both copies"):
        contexts.fork(store, "a", "d", at=900)


def _extents(store: Store, node: bytes) -> list[Extent]:
    entry = store.look(lambda index: index.objects.find(Kind.NODE, node))
    assert entry is not None and len(entry.extents) == 2
    return entry.extents


def test_fork_is_refused_where_it_makes_no_sense(store: Store, runner: Runner) -> None:
    save(store, "a", runner.read(random_tokens(300)), runner)
    for at in (0, 301, -1):
        with pytest.raises(StoreError, match="300"):
            contexts.fork(store, "a", "b", at=at)
    with pytest.raises(StoreError, match="already"):
        contexts.fork(store, "a", "a")
    with pytest.raises(MemoryNotFound):
        contexts.fork(store, "x", "y")
    with pytest.raises(MemoryNotFound):
        contexts.delete(store, "x")
    assert [context.name for context in store.contexts() if isinstance(context, Context)] == ["a"]


def test_compaction_keeps_what_lives_and_readers_keep_what_they_have(store: Store, runner: Runner) -> None:
    store.packs.pack_bytes = 300_000
    texts = {f"c{n}": random_tokens(1500, seed=n) for n in range(8)}
    for name, tokens in texts.items():
        save(store, name, runner.read(tokens), runner)
    held, _ = load(store, "c1")
    for number in (0, 1, 3, 4, 6):
        contexts.delete(store, f"c{number}")
    size = usage.disk_bytes(store)
    done = gc.collect(store, threshold=0)
    assert done.freed > size // 2 and usage.disk_bytes(store) == size - done.freed
    assert same(held.sequence, runner.read(texts["c1"])), "mapped pages outlive their pack"
    for name in ("c2", "c5", "c7"):
        assert is_right(store, name, texts[name])
    assert verify(store).sound and gc.collect(store, threshold=0).packs == 0
    os.unlink(store.folder / "index.sqlite")
    with Store(store.folder) as rebuilt:
        names = [context.name for context in rebuilt.contexts() if isinstance(context, Context)]
        assert names == ["c2", "c5", "c7"] and verify(rebuilt).sound


# ---------------------------------------------------------------------- eviction


def test_eviction_takes_the_least_valuable_first(store: Store, runner: Runner) -> None:
    base = random_tokens(1024)
    texts = {name: np.concatenate([base, random_tokens(1024, seed=n)]) for n, name in enumerate("abc")}
    texts["alone"] = random_tokens(2048, seed=9)
    for name, tokens in texts.items():
        save(store, name, runner.read(tokens), runner)
    contexts.change(store, "c", pinned=True)
    live = contexts.presence(store, "b")
    page = runner.pool.layout.page_bytes
    used = sum(store.look(lambda index: index.live_bytes()).values())
    assert eviction.evict(store, used).pages == 0
    done = eviction.evict(store, used - 5 * page)
    assert done.within and 0 < done.pages <= 5
    assert usage.disk_bytes(store) < used - 4 * page
    for name in "bc":
        _, engine = load(store, name)
        assert engine.run == 0, "pinned and live contexts are whole"
    for name, tokens in texts.items():
        assert is_right(store, name, tokens)
    assert load(store, "alone")[1].run == 0, "what was computed again is kept again"
    assert not eviction.evict(store, 0).within
    assert load(store, "c")[1].run == 0
    assert live is not None
    live.close()
    contexts.change(store, "c", pinned=False)
    eviction.evict(store, 0)
    assert store.look(lambda index: index.objects.all(Kind.PAGE)) == []
    for name, tokens in texts.items():
        assert is_right(store, name, tokens), "tokens are never evicted"
    assert verify(store).sound


def test_what_is_shared_by_many_outlives_a_leaf(store: Store, runner: Runner) -> None:
    base = random_tokens(1024)
    for number in range(3):
        tokens = np.concatenate([base, random_tokens(300, seed=number)])
        save(store, f"s{number}", runner.read(tokens, tail_every=1024), runner)
    save(store, "leaf", runner.read(random_tokens(1024, seed=7)), runner)
    ends = [entry.span for entry in store.look(lambda index: index.objects.all(Kind.TAIL)) if entry.position > 1024]
    used = sum(store.look(lambda index: index.live_bytes()).values())
    eviction.evict(store, used - sum(ends) - 5 * runner.pool.layout.page_bytes)
    assert load(store, "leaf")[1].run > 0
    for number in range(3):
        assert load(store, f"s{number}")[1].run <= 300


# ---------------------------------------------------------------------- prefixes


def test_a_prompt_starts_from_the_longest_stored_prefix(store: Store, runner: Runner) -> None:
    tokens = random_tokens(3000)
    save(store, "a", runner.read(tokens[:1300], tail_every=512), runner)
    save(store, "b", runner.read(np.concatenate([tokens[:600], random_tokens(900, seed=2)])), runner)
    for length, expected in [(3000, 1300), (1300, 1300), (1299, 1280), (1000, 768), (255, 0), (511, 256)]:
        engine = Runner()
        found = load_prefix(store, tokens[:length], engine.fingerprint, engine, chunk=CHUNK)
        assert (found.sequence.length if found is not None else 0) == expected
        if found is not None:
            assert same(found.sequence, runner.read(tokens[:expected]))
            assert engine.run <= 256, "only the tokens since the last tail are run"
    changed = tokens.copy()
    changed[700] += 1
    found = load_prefix(store, changed % 512, runner.fingerprint, runner, chunk=CHUNK)
    assert found is not None and found.sequence.length == 512
    aligned = load_prefix(store, tokens, runner.fingerprint, runner, chunk=CHUNK, grain=512)
    assert aligned is not None and aligned.sequence.length == 1024
    assert find_prefix(store, tokens, Runner("other").fingerprint) is None


# ---------------------------------------------------------------------- identity and secrecy


def test_another_model_does_not_find_it(store: Store, runner: Runner) -> None:
    save(store, "a", runner.read(random_tokens(300)), runner)
    with pytest.raises(FingerprintMismatch, match="weights") as caught:
        load(store, "a", Runner("other"))
    assert caught.value.differing == ("weights",)


def test_another_format_version_is_refused_with_what_to_do(store: Store) -> None:
    from foveal.store import about as module

    about = module.read_about(store.folder / module.ABOUT)
    assert about is not None
    for name in (module.ABOUT, module.ABOUT_COPY):
        (store.folder / name).write_bytes(module.about_bytes(about | {"format": 2}))
    with pytest.raises(FormatError, match=r"format 2.*export"):
        Store(store.folder)


def test_folders_and_files_are_private(store: Store, runner: Runner) -> None:
    save(store, "a", runner.read(random_tokens(300)), runner)
    contexts.presence(store, "a")
    for path in [store.folder, *store.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_an_encrypted_store_shows_nothing_and_is_the_same(tmp_path: Path, runner: Runner) -> None:
    pytest.importorskip("cryptography")
    key = key_from("ab" * 32)
    tokens = random_tokens(1500)
    with Store(tmp_path / "s", key=key) as store:
        saving.save(store, "secret", runner.read(tokens), runner.fingerprint, facts={"source": "/home/me"})
        contexts.fork(store, "secret", "twin", at=700)
        assert is_right(store, "secret", tokens) and is_right(store, "twin", tokens[:700])
        assert verify(store).sound
    everything = b"".join(path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file())
    for told in (b"secret", b"/home/me", tokens[:4].astype(np.int32).tobytes()):
        assert told not in everything
    assert bytes(runner.read(tokens).pages[0].data[:64]) not in everything
    with pytest.raises(FormatError, match="encrypted"):
        Store(tmp_path / "s")
    with pytest.raises(FormatError, match="not the one"):
        Store(tmp_path / "s", key=bytes(32))
    with Store(tmp_path / "s", key=key) as store:
        assert is_right(store, "secret", tokens)
        pack = next((tmp_path / "s" / "packs").iterdir())
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.write_bytes(data)
        assert not verify(store).sound
        assert is_right(store, "secret", tokens) and is_right(store, "twin", tokens[:700])
    os.unlink(tmp_path / "s" / "index.sqlite")
    with Store(tmp_path / "s", key=key) as store:
        assert is_right(store, "secret", tokens)


def test_keys_are_read_carefully(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("ab" * 32 + "\n")
    os.chmod(tmp_path / "key", 0o644)
    with pytest.raises(StoreError, match="chmod"):
        key_file(tmp_path / "key")
    os.chmod(tmp_path / "key", 0o600)
    assert key_file(tmp_path / "key") == bytes.fromhex("ab" * 32)
    for text in ("", "ab", "zz" * 32):
        with pytest.raises(StoreError):
            key_from(text)


def test_tenants_neither_see_nor_hit_each_other(tmp_path: Path, runner: Runner) -> None:
    tokens = random_tokens(1500)
    one, two = (Store(tmp_path / "s", tenant=name) for name in ("one", "two"))
    save(one, "a", runner.read(tokens), runner)
    with pytest.raises(MemoryNotFound):
        two.context("a")
    assert two.contexts() == [] and find_prefix(two, tokens, runner.fingerprint) is None
    before = two.packs.written
    save(two, "a", Runner().read(tokens), runner)
    assert two.packs.written - before > 5 * runner.pool.layout.page_bytes, "nothing is shared: nothing can be probed"
    contexts.delete(two, "a")
    assert is_right(one, "a", tokens) and verify(one).sound
    one.close()
    two.close()


# ---------------------------------------------------------------------- several at once


def test_a_second_writer_gets_a_clear_error(store: Store, runner: Runner) -> None:
    save(store, "a", runner.read(random_tokens(300)), runner)
    store.wait = 0.05
    with exclusive(store.folder / LOCK, 1.0):
        with pytest.raises(StoreBusy, match=str(os.getpid())):
            contexts.delete(store, "a")
        assert is_right(store, "a", random_tokens(300)), "reading takes no lock"
    contexts.delete(store, "a")


def test_an_open_store_sees_what_others_do(store: Store, runner: Runner) -> None:
    with Store(store.folder) as other:
        save(store, "a", runner.read(random_tokens(600)), runner)
        assert is_right(other, "a", random_tokens(600))
        contexts.fork(other, "a", "b")
        contexts.delete(store, "a")
        gc.collect(other, threshold=0)
        assert is_right(store, "b", random_tokens(600))
        store.repair()  # gives the index another file
        assert is_right(other, "b", random_tokens(600))
        contexts.delete(other, "b")
        assert store.contexts() == []


def test_a_failing_save_leaves_the_store_as_it_was(store: Store, runner: Runner) -> None:
    tokens = random_tokens(1500)
    save(store, "a", runner.read(tokens[:700]), runner)
    before = {path: path.stat().st_size for path in (store.folder / "packs").iterdir()}
    write = store.disk.write
    calls = [0]

    def full(descriptor: int, path: Path, pieces: list[bytes], offset: int) -> int:
        calls[0] += 1
        if calls[0] > 3:
            raise OSError(28, "No space left on device")
        return write(descriptor, path, pieces, offset)

    store.disk.write = full  # type: ignore[method-assign, assignment]
    with pytest.raises(StoreError, match="No space"):
        save(store, "a", runner.read(tokens), runner)
    store.disk.write = write  # type: ignore[method-assign]
    assert {path: path.stat().st_size for path in (store.folder / "packs").iterdir()} == before
    assert is_right(store, "a", tokens[:700]) and verify(store).sound
    save(store, "a", runner.read(tokens), runner)
    assert is_right(store, "a", tokens)


def test_a_store_that_cannot_be_written_is_still_read(store: Store, runner: Runner, tmp_path: Path) -> None:
    tokens = random_tokens(600)
    save(store, "a", runner.read(tokens), runner)
    store.close()
    os.unlink(store.folder / "index.sqlite")

    class ReadOnly(type(store.disk)):  # type: ignore[misc]
        def step(self, operation: str, path: Path, size: int = 0) -> int:
            raise OSError(30, "Read-only file system")

    with Store(store.folder, disk=ReadOnly()) as other:
        assert is_right(other, "a", tokens)
        with pytest.raises(StoreError, match=r"(?i)read-only"):
            contexts.delete(other, "a")
    assert not (store.folder / "index.sqlite").exists()


# ---------------------------------------------------------------------- moving


def test_export_and_import(store: Store, runner: Runner, tmp_path: Path) -> None:
    tokens = random_tokens(2100)
    save(store, "a", runner.read(tokens, tail_every=1024), runner)
    file = io.BytesIO()
    assert transfer.export(store, "a", file) == len(file.getvalue())
    with Store(tmp_path / "other", tenant="t") as other:
        transfer.import_file(other, io.BytesIO(file.getvalue()))
        assert is_right(other, "a", tokens) and verify(other).sound
        with pytest.raises(StoreError, match="already"):
            transfer.import_file(other, io.BytesIO(file.getvalue()))
        transfer.import_file(other, io.BytesIO(file.getvalue()), "again")
        assert len(other.look(lambda index: index.objects.all(Kind.PAGE))) == 8


def test_a_damaged_file_is_refused_whole(store: Store, runner: Runner, tmp_path: Path) -> None:
    save(store, "a", runner.read(random_tokens(600)), runner)
    file = io.BytesIO()
    transfer.export(store, "a", file)
    data = file.getvalue()
    damaged = [b"", data[:-1], data + b"\0", data[:1000], data[: len(data) // 2] + data[len(data) // 2 + 1 :]]
    for place in [*range(0, 60), *range(60, len(data), len(data) // 60)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    with Store(tmp_path / "other") as other:
        for content in damaged:
            with pytest.raises(StoreError):
                transfer.import_file(other, io.BytesIO(content))
            assert other.contexts() == [] and usage.disk_bytes(other) == 0
        transfer.import_file(other, io.BytesIO(data))
        assert verify(other).sound


def test_a_record_is_found_only_where_it_is_whole() -> None:
    made = b"".join(bytes(piece) for piece in records.make(Kind.MAP, b"k" * 32, b"payload", 7, None))
    header = records.Header.parse(made[:128])
    assert header is not None and (header.kind, header.size, header.serial, header.span) == (Kind.MAP, 7, 7, 192)
    assert len(made) == 192 and made[128:135] == b"payload"
    for bit in range(128 * 8):
        flipped = bytearray(made)
        flipped[bit // 8] ^= 1 << bit % 8
        assert records.Header.parse(flipped[:128]) is None

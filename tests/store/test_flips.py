"""A flipped bit anywhere: never a wrong token, never a crash; what was hit is computed again, to the same answer."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from store_damage import flip
from store_support import CHUNK, Runner, made_up_source_map, random_tokens, same

from foveal.store import contexts, gc, loading, saving
from foveal.store.about import ABOUT, ABOUT_COPY
from foveal.store.errors import CorruptMemory
from foveal.store.index_file import INDEX
from foveal.store.objects import Context
from foveal.store.pack_file import PACK_HEADER_BYTES
from foveal.store.records import HEADER_BYTES, Extent, Header, Kind
from foveal.store.store import Store
from foveal.store.verify import verify

TOKENS = random_tokens(1400)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "store"
    runner = Runner()
    with Store(folder, durability="off") as store:
        saving.save(
            store, "a", runner.read(TOKENS, tail_every=1024), runner.fingerprint, source_map=made_up_source_map(1400)
        )
        fork = contexts.fork(store, "a", "b", at=1100)
        assert loading.load(store, fork, runner.fingerprint, runner, chunk=CHUNK).replayed == 76
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Iterator[Path]:
    yield shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture(scope="module")
def right() -> dict[str, object]:
    return {"a": Runner().read(TOKENS), "b": Runner().read(TOKENS[:1100])}


def check(folder: Path, right: dict[str, object], *, lines: bool = True) -> int:
    """Both contexts load and are right; returns how many tokens were run again."""
    engine = Runner()
    with Store(folder, durability="off") as store:
        for name in "ab":
            context = store.context(name)
            loaded = loading.load(store, context, engine.fingerprint, engine, chunk=CHUNK)
            assert same(loaded.sequence, right[name])  # type: ignore[arg-type]
            if lines:
                found = contexts.read_map(store, context)
                assert found.locate(777) == made_up_source_map(1400).locate(777) and found.tokens == context.length
            loaded.sequence.free()
    return engine.run


def records(folder: Path) -> list[tuple[Extent, Header]]:
    with Store(folder, durability="off") as store:
        return [found for pack in sorted(store.packs.files()) for found in store.packs.scan(pack)]


@pytest.mark.parametrize("kind", list(Kind)[:5])
def test_every_kind_of_record(copy: Path, saved: Path, right: dict[str, object], kind: Kind) -> None:
    """In its header, at both ends of its payload and inside. One flip never costs more than computing again."""
    dice = random.Random(int(kind))
    hit = [(place, header) for place, header in records(saved) if header.kind is kind]
    assert hit
    pack = copy / "packs" / "0000000001.pack"
    for place, header in hit if len(hit) <= 4 else dice.sample(hit, 4):
        inside = [HEADER_BYTES, HEADER_BYTES + header.size - 1, HEADER_BYTES + dice.randrange(header.size)]
        for byte in (dice.randrange(8), 8, 16, 30, dice.randrange(HEADER_BYTES), *inside):
            shutil.copyfile(saved / "packs" / pack.name, pack)
            flip(pack, place.offset + byte, dice.randrange(8))
            run = check(copy, right)
            if kind in (Kind.NODE, Kind.MAP, Kind.CONTEXT):
                assert not run, "there is a copy"
            shutil.rmtree(copy)
            shutil.copytree(saved, copy)


def test_anywhere_in_any_file(saved: Path, tmp_path: Path, right: dict[str, object]) -> None:
    dice = random.Random(3)
    for path in sorted(saved.rglob("*")):
        if not path.is_file() or not path.stat().st_size:
            continue
        for _ in range(30 if path.name == INDEX else 6):
            copy = shutil.copytree(saved, tmp_path / "copy")
            flip(copy / path.relative_to(saved), dice.randrange(path.stat().st_size), dice.randrange(8))
            check(copy, right)
            shutil.rmtree(copy)


@pytest.mark.parametrize("kind", [Kind.PAGE, Kind.TAIL])
def test_verify_finds_it_using_it_mends_it(copy: Path, saved: Path, right: dict[str, object], kind: Kind) -> None:
    place = [place for place, header in records(saved) if header.kind is kind][1]  # not the tail before the end
    flip(copy / "packs" / "0000000001.pack", place.offset + HEADER_BYTES + 99, 3)
    with Store(copy) as store:
        report = verify(store)
        assert [problem.what for problem in report.problems] == [kind.name.lower()]
        assert "a" in report.problems[0].contexts and not report.problems[0].lost
        assert not verify(store, ["a"]).sound
    assert check(copy, right) > 0
    with Store(copy) as store:
        assert verify(store).sound
        gc.collect(store, threshold=0)
    assert check(copy, right) == 0


@pytest.mark.parametrize("kind", list(Kind)[:5])
def test_repair(copy: Path, saved: Path, right: dict[str, object], kind: Kind) -> None:
    for place, header in records(saved):
        if header.kind is kind:
            flip(copy / "packs" / "0000000001.pack", place.offset + 20, 1)
            break
    with Store(copy) as store:
        assert not verify(store, repair=True).sound
        assert verify(store).sound
    check(copy, right)


def test_tokens_lost_in_both_copies_are_an_error_and_nothing_else(copy: Path, saved: Path) -> None:
    nodes = [place for place, header in records(saved) if header.kind is Kind.NODE][:2]
    for place in nodes:
        flip(copy / "packs" / "0000000001.pack", place.offset + HEADER_BYTES + 200, 1)
    engine = Runner()
    with Store(copy) as store:
        assert any(problem.lost for problem in verify(store).problems)
        with pytest.raises(CorruptMemory, match="tokens"):
            loading.load(store, store.context("a"), engine.fingerprint, engine, chunk=CHUNK)
        assert engine.pool.live == 0
        saving.save(store, "a", engine.read(TOKENS), engine.fingerprint)
        loaded = loading.load(store, store.context("a"), engine.fingerprint, engine, chunk=CHUNK)
        assert np.array_equal(loaded.sequence.tokens.astype(np.int64), TOKENS)


def test_an_index_that_lost_its_log_is_not_believed(tmp_path: Path) -> None:
    """A process dies before SQLite has taken its log in, and then the log is lost or damaged."""
    dice, runner = random.Random(8), Runner()
    with Store(tmp_path / "store") as store:
        saving.save(store, "a", runner.read(TOKENS[:600]), runner.fingerprint)
        saving.save(store, "a", runner.read(TOKENS), runner.fingerprint)
        saving.save(store, "gone", runner.read(TOKENS[:30]), runner.fingerprint)
        contexts.fork(store, "a", "b", at=1100)
        contexts.delete(store, "gone")
        gc.collect(store, threshold=0)
        contexts.fork(store, "b", "c")
        shutil.copytree(tmp_path / "store", tmp_path / "left")
    size = (tmp_path / "left" / f"{INDEX}-wal").stat().st_size
    assert size > 10_000
    for turn in range(24):
        copy = shutil.copytree(tmp_path / "left", tmp_path / "copy")
        log = copy / f"{INDEX}-wal"
        if turn == 0:
            os.unlink(log)
        elif turn < 4:
            os.truncate(log, dice.randrange(size))
        else:
            flip(log, dice.randrange(size), dice.randrange(8))
        engine = Runner()
        with Store(copy) as store:
            found = {context.name: context.length for context in store.contexts() if isinstance(context, Context)}
            assert found == {"a": 1400, "b": 1100, "c": 1100}
            for name, length in found.items():
                loaded = loading.load(store, store.context(name), engine.fingerprint, engine, chunk=CHUNK)
                assert np.array_equal(loaded.sequence.tokens.astype(np.int64), TOKENS[:length])
            assert all(problem.mended for problem in verify(store).problems) and verify(store).sound
        shutil.rmtree(copy)


def test_files_cut_short_or_gone(copy: Path, saved: Path, right: dict[str, object]) -> None:
    pack = copy / "packs" / "0000000001.pack"
    for name in (ABOUT, ABOUT_COPY, INDEX):
        for size in (None, 0, 10):
            if size is None:
                os.unlink(copy / name)
            else:
                os.truncate(copy / name, size)
            assert check(copy, right) == 0
    with Store(copy) as store:
        context = store.look(lambda index: index.contexts.all())[0]
    os.truncate(pack, context.offset)  # the second context's record, and what it was given, are behind
    check(copy, right, lines=False)
    os.truncate(pack, PACK_HEADER_BYTES)
    with Store(copy) as store, pytest.raises(CorruptMemory):
        loading.load(store, store.context("a"), Runner().fingerprint, Runner(), chunk=CHUNK)

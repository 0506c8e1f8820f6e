"""What is stored, computed again: what is wrong with a right checksum is found, and an import becomes one's own."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_support import CONFIG
from store_support import CHUNK, Runner, random_tokens, same
from transfer_support import exported_memory, with_page, with_tail

from foveal.store import contexts, eviction, loading, recompute, saving
from foveal.store.errors import FingerprintMismatch, MemoryNotFound, StoreError
from foveal.store.prefix import find_prefix
from foveal.store.recomputation import Recomputed
from foveal.store.recompute_context import NOTE_EVERY
from foveal.store.records import Kind
from foveal.store.store import Store
from foveal.store.transfer import export, import_file
from foveal.store.verify import verify

LENGTH = 1500


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with Store(tmp_path_factory.mktemp("from") / "store", durability="off") as store:
        return exported_memory(store, Runner(), LENGTH)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", durability="off") as opened:
        yield opened


def take(store: Store, data: bytes, name: str = "a", **options: Any) -> None:
    import_file(store, io.BytesIO(data), name, **options)


def run(store: Store, *names: str, runner: Runner | None = None, **options: Any) -> Recomputed:
    runner = runner or Runner()
    found = recompute.recompute(store, names or ("a",), runner.fingerprint, runner, chunk=CHUNK, **options)
    assert runner.pool.live == 0, "nothing is held afterwards"
    return found


def is_right(store: Store, name: str, tokens: np.ndarray) -> bool:
    runner = Runner()
    loaded = loading.load(store, store.context(name), runner.fingerprint, runner, chunk=CHUNK)
    return same(loaded.sequence, Runner().read(tokens))


def forged(data: bytes, page: int = 2) -> bytes:
    return with_page(data, page, lambda bytes: bytes.__setitem__(7, bytes[7] ^ 1))


def test_an_import_that_is_right_becomes_ones_own(store: Store, data: bytes) -> None:
    runner, tokens = Runner(), random_tokens(LENGTH)
    take(store, data)
    found = run(store)
    assert found.complete and not found.problems and found.adopted == ["a"] and not found.repaired
    assert (found.tokens, found.pages, found.tails) == (LENGTH, 5, 3)
    context = store.context("a")
    assert context.origin == "" and [position for position, _ in context.tails] == [512, 1024, LENGTH]
    assert is_right(store, "a", tokens) and verify(store).sound
    hit = find_prefix(store, tokens, runner.fingerprint)
    assert hit is not None and hit.length == LENGTH
    assert len(store.look(lambda index: index.objects.all(Kind.PAGE))) == 5, "the strangers' are gone"
    assert contexts.read_map(store, context).tokens == LENGTH
    again = run(store)
    assert not again.adopted and not again.problems and again.tokens == LENGTH


@pytest.mark.parametrize("page", range(5))
def test_a_forged_page_is_found_and_stays_a_strangers(store: Store, data: bytes, page: int) -> None:
    take(store, forged(data, page))
    origin = store.context("a").origin
    found = run(store)
    assert [str(problem.what) for problem in found.problems] == ["page"] and not found.adopted
    assert f"page {page} (tokens {256 * page:,} to {256 * page + 255:,})" in str(found.problems[0])
    assert store.context("a").origin == origin and verify(store).sound
    assert find_prefix(store, random_tokens(LENGTH), Runner().fingerprint) is None


def test_repair_puts_what_was_computed_in_its_place(store: Store, data: bytes) -> None:
    take(store, forged(data))
    contexts.fork(store, "a", "b", at=1200)
    found = run(store, "a", "b", repair=True)
    assert found.repaired == ["a", "b"] and len(found.problems) == 2
    for name, length in (("a", LENGTH), ("b", 1200)):
        assert store.context(name).origin == "" and is_right(store, name, random_tokens(LENGTH)[:length])
    assert verify(store).sound and not run(store, "a", "b").problems


@pytest.mark.parametrize("place", [0, 3, 200])
def test_a_forged_tail_is_found(store: Store, data: bytes, place: int) -> None:
    def change(tail: Any) -> Any:
        tensors = bytearray(tail.tensors)
        tensors[-1 - place] ^= 1
        return type(tail)(tail.name, tail.node, tail.position, tail.rest, tail.open_page, bytes(tensors))

    take(store, with_tail(data, change))
    found = run(store)
    assert [problem.what for problem in found.problems] == ["tail"] and store.context("a").origin
    run(store, repair=True)
    assert store.context("a").origin == "" and is_right(store, "a", random_tokens(LENGTH))


def test_a_forged_open_page_is_found(store: Store, data: bytes) -> None:
    def change(tail: Any) -> Any:
        page = bytearray(tail.open_page)
        page[3] ^= 1
        return type(tail)(tail.name, tail.node, tail.position, tail.rest, page, tail.tensors)

    take(store, with_tail(data, change))
    assert [problem.what for problem in run(store).problems] == ["tail"] and store.context("a").origin


def test_ones_own_pages_that_are_wrong_with_right_checksums(store: Store) -> None:
    """As a faulty machine computed them."""
    runner, tokens = Runner(), random_tokens(LENGTH)
    sequence = runner.read(tokens)
    sequence.pages[1].data[9] ^= 4
    sequence.pages[3].data[0] ^= 1
    saving.save(store, "a", sequence, runner.fingerprint)
    sequence.free()
    contexts.fork(store, "a", "b")
    assert verify(store).sound
    found = run(store)
    assert [problem.where.split(" (")[0] for problem in found.problems] == ["page 1", "page 3"]
    found = run(store, repair=True)
    assert found.repaired == ["a"] and is_right(store, "a", tokens) and verify(store).sound
    assert is_right(store, "b", tokens), "what else has the wrong pages computes them again"


def test_a_page_whose_record_was_replaced(store: Store) -> None:
    """Its tokens say another checksum: what is put in its place has the same name."""
    runner, tokens = Runner(), random_tokens(LENGTH)
    saving.save(store, "a", runner.read(tokens), runner.fingerprint)

    def work(tx: Any) -> None:
        page = next(entry for entry in tx.index.objects.all(Kind.PAGE) if entry.position == 512)
        data = bytearray(tx.store.objects.read(page))
        data[0] ^= 1
        tx.rewrite(page, bytes(data), copies=1)

    store.transact(work)
    assert [problem.what for problem in run(store).problems] == ["page"]
    assert run(store, repair=True).repaired == ["a"]
    assert not run(store).problems and is_right(store, "a", tokens) and verify(store).sound


@pytest.mark.parametrize("seed", range(3))
def test_a_sample_finds_what_it_looks_at(store: Store, data: bytes, seed: int) -> None:
    take(store, forged(data))
    take(store, data, "b")
    contexts.fork(store, "b", "c", at=700)
    found = run(store, "a", "b", "c", sample=4, rng=random.Random(seed))
    assert found.pages == 4 and not found.adopted
    whole = run(store, "a", "b", "c", sample=100, rng=random.Random(seed))
    assert whole.pages == 10, "each page once, whoever has it"
    # A page that is right for its tokens does not follow from a forged one that it looks at.
    told = [problem.where.split(" (")[0] for problem in whole.problems]
    assert "page 2" in told and all(problem.contexts == ("a",) for problem in whole.problems)
    assert {"page 0", "page 1"}.isdisjoint(told)


def test_a_sample_runs_a_window_and_a_page(store: Store) -> None:
    runner = Runner()
    saving.save(store, "a", runner.read(random_tokens(8000)), runner.fingerprint)
    other = Runner()
    found = run(store, sample=3, rng=random.Random(1), runner=other)
    assert not found.problems and found.pages == 3
    assert other.run == found.tokens <= 3 * (256 + recompute.replay_window(runner.pool.layout)) < 4000


def test_a_sample_with_repair_repairs_all_of_what_it_found(store: Store, data: bytes) -> None:
    take(store, forged(data))
    take(store, data, "b")
    found = run(store, "a", "b", sample=100, repair=True)
    assert found.repaired == ["a"] and store.context("a").origin == "" and store.context("b").origin
    assert is_right(store, "a", random_tokens(LENGTH))


def test_stopped_and_gone_on_with(store: Store) -> None:
    runner, tokens = Runner(), random_tokens(6000)
    saving.save(store, "own", runner.read(tokens, tail_every=1024), runner.fingerprint)
    file = io.BytesIO()
    export(store, "own", file)
    take(store, file.getvalue())
    left = [5]

    def stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    told: list[tuple[str, int, int]] = []
    first = run(store, should_stop=stop, progress=lambda *said: told.append(said))
    assert not first.complete and first.tokens == 5 * CHUNK and not first.adopted and store.context("a").origin
    assert told[-1] == ("a", 5 * CHUNK, 6000)
    other = Runner()
    rest = run(store, runner=other)
    assert rest.complete and rest.adopted == ["a"] and rest.tokens == 6000 - 5 * CHUNK
    assert other.run < 6000 - 5 * CHUNK + 2 * recompute.replay_window(runner.pool.layout)
    assert store.context("a").origin == "" and is_right(store, "a", tokens) and verify(store).sound
    assert [position for position, _ in store.context("a").tails] == [*range(1024, 6000, 1024), 6000]
    assert not list((store.folder / "live").glob("*.proved"))


def test_what_was_proved_is_not_believed_of_other_pages(store: Store, data: bytes) -> None:
    left = [2]

    def stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    take(store, data)
    run(store, should_stop=stop)
    contexts.delete(store, "a")
    take(store, forged(data, 0))
    assert [problem.what for problem in run(store).problems] == ["page"] and NOTE_EVERY % 256 == 0


def test_what_is_missing_is_computed(store: Store, data: bytes) -> None:
    take(store, data)
    eviction.evict(store, 0)
    found = run(store)
    assert not found.problems and found.adopted == ["a"] and is_right(store, "a", random_tokens(LENGTH))
    eviction.evict(store, 0)
    assert run(store, sample=5).pages == 0, "nothing to compare with"
    assert not run(store).problems


def test_forks_are_run_once(store: Store) -> None:
    runner, tokens = Runner(), random_tokens(5000)
    saving.save(store, "a", runner.read(tokens), runner.fingerprint)
    for at in (4900, 4000):
        contexts.fork(store, "a", f"f{at}", at=at)
    other = Runner()
    found = run(store, "a", "f4900", "f4000", runner=other)
    assert not found.problems and other.run < 5000 + 2 * (256 + recompute.replay_window(runner.pool.layout)) + 256


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Runner(weights="other"), FingerprintMismatch),
        (lambda: _cutting(), StoreError),
        (lambda: Runner(), MemoryNotFound),
    ],
)
def test_what_cannot_be_compared_is_refused(
    store: Store, data: bytes, make: Callable[[], Runner], error: type[StoreError]
) -> None:
    take(store, data)
    runner = make()
    with pytest.raises(error):
        run(store, "nope" if error is MemoryNotFound else "a", runner=runner)


def _cutting() -> Runner:
    runner = Runner()
    runner.grain = 512
    return runner


def test_tokens_that_the_model_has_not_are_told(store: Store, data: bytes) -> None:
    take(store, data, "b")
    runner = Runner()
    saving.save(store, "short", runner.read(random_tokens(300)), runner.fingerprint)
    context = store.context("short")
    wrong = context.replace(rest=(CONFIG.vocab_size, *context.rest[1:]), tails=())
    store.transact(lambda tx: tx.put_context(wrong, tx.uses(wrong)))
    found = run(store, "short", "b")
    assert [problem.what for problem in found.problems] == ["tokens"] and found.adopted == ["b"]


def test_encrypted(tmp_path: Path, data: bytes) -> None:
    pytest.importorskip("cryptography")
    with Store(tmp_path / "secret", durability="off", key=bytes(32)) as store:
        take(store, forged(data))
        take(store, data, "b")
        found = run(store, "a", "b")
        assert len(found.problems) == 1 and found.adopted == ["b"]
        assert is_right(store, "b", random_tokens(LENGTH)) and verify(store).sound

"""Prompts start from what a store has of them, and what comes out is what comes out without a store, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import write_model
from helpers.torchless import NEEDS_TORCH
from memory_support import TINY, make_reference_engine, same

from foveal.batch import ParameterError
from foveal.cache import CacheFormat
from foveal.cache import Sequence as CachedSequence
from foveal.engine import Engine
from foveal.memory import Memory, SharedContext, Store, StoredPrefixes, open_store
from foveal.memory.attempt import prompts
from foveal.memory.options import TailEvery
from foveal.memory.progress import Progress
from foveal.store import contexts, eviction, saving
from foveal.store.records import Kind
from foveal.store.verify import verify

TEXT = "".join(f"value_{n} = {n * n % 97}\n" for n in range(330))
"""About 2,900 tokens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", 1, TINY)


class Counting:
    """A network that counts the tokens it runs."""

    def __init__(self, network: Any) -> None:
        self.network, self.config, self.ran = network, network.config, 0

    def __call__(self, tokens: np.ndarray, *rest: Any) -> np.ndarray:
        self.ran += len(tokens)
        return self.network(tokens, *rest)

    def logits(self, streams: np.ndarray) -> np.ndarray:
        return self.network.logits(streams)


def opened(folder: Path, **options: Any) -> Engine:
    """A native engine that counts."""
    engine = Engine.open(folder, threads=1, **options)
    engine.batch.passes.network = Counting(engine.network)
    return engine


def ran(engine: Engine) -> int:
    """Tokens run since the last time this was asked."""
    network: Any = engine.batch.network
    count, network.ran = network.ran, 0
    return count


@pytest.fixture(scope="module")
def shared_engine(folder: Path) -> Engine:
    return opened(folder)


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    ran(shared_engine)
    before = shared_engine.pool.live
    yield shared_engine
    shared_engine.prefixes = None
    assert shared_engine.pool.live == before, "a test (or the code it tests) kept pages"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", durability="off") as made:
        yield made


@pytest.fixture(scope="module")
def ids(shared_engine: Engine) -> list[int]:
    return shared_engine.tokenizer.encode(TEXT)[:2600]


def save(engine: Engine, store: Store, name: str, ids: Sequence[int], *, tails: bool = True, every: int = 0) -> None:
    with engine.new_sequence(tail_every=every or None) as sequence:
        engine.prefill(sequence, ids)
        saving.save(store, name, sequence, engine.fingerprint, tails=tails)
    ran(engine)


def read(engine: Engine, ids: Sequence[int]) -> CachedSequence:
    sequence = engine.new_sequence()
    engine.prefill(sequence, ids)
    return sequence


def check(engine: Engine, store: Store, prompt: Sequence[int], expected: int, *, replayed: int | None = None) -> None:
    """`prompt` starts from `expected` stored tokens, `replayed` of which are run again (None: no more than a window a
    layer), and goes on as without a store."""
    engine.prefixes = None
    alone = engine.generate(prompt, max_tokens=3, ignore_eos=True)
    ran(engine)
    engine.prefixes = StoredPrefixes(store)
    start = engine.start(prompt)
    again = ran(engine)
    with start.sequence as sequence, read(engine, prompt[: start.tokens]) as fresh:
        assert start.tokens == expected == sequence.length
        assert start.replayed == again and (again <= 128 * 5 if replayed is None else again == replayed)
        assert same(sequence, fresh)
    ran(engine)
    found = engine.generate(prompt, max_tokens=3, ignore_eos=True)
    assert ran(engine) == len(prompt) - start.tokens + again + 2, "the last token chosen is never run"
    assert found.reused_tokens == max(0, expected - again) and alone.reused_tokens == 0
    assert (found.tokens, found.logprobs) == (alone.tokens, alone.logprobs)
    engine.prefixes = None


# ---------------------------------------------------------------------- where a prefix may end


@pytest.mark.parametrize("stored", [255, 256, 257, 511, 512, 513, 700, 1023, 1024, 1025])
def test_a_prefix_ends_at_pages_and_exact_ends(engine: Engine, store: Store, ids: list[int], stored: int) -> None:
    """The prompt goes on behind what was saved; it is what was saved, and a token more or less; it leaves it early."""
    save(engine, store, "a", ids[:stored])
    check(engine, store, ids[:1100], stored, replayed=0)
    check(engine, store, ids[: stored + 1], stored, replayed=0)
    check(engine, store, ids[:stored], (stored - 1) // 256 * 256)
    check(engine, store, ids[: stored - 1], (stored - 2) // 256 * 256)
    other = [*ids[: stored - 1], (ids[stored - 1] + 1) % 1000, *ids[stored:1100]]
    check(engine, store, other, (stored - 1) // 256 * 256)


def test_the_same_prefix_goes_on_in_many_ways(engine: Engine, store: Store, ids: list[int]) -> None:
    """The longest one counts, whatever it was saved as; one prompt may meet several."""
    save(engine, store, "a", ids[:900])
    save(engine, store, "b", [*ids[:600], *ids[:800]])
    save(engine, store, "c", ids[:300])
    check(engine, store, ids[:1500], 900, replayed=0)
    check(engine, store, [*ids[:600], *ids[:300], *ids[7:80]], 768)
    check(engine, store, [*ids[:600], *ids[:800], 5], 1400, replayed=0)
    check(engine, store, [*ids[:290], 7, 8, 9], 256)
    check(engine, store, [7, *ids[:900]], 0)
    check(engine, store, ids[:1], 0)


@pytest.mark.parametrize("every", [0, 512])
@pytest.mark.parametrize("tails", [True, False])
def test_the_window_never_vetoes_a_hit(engine: Engine, store: Store, ids: list[int], every: int, tails: bool) -> None:
    """With tails at the end only, periodic, or none at all: the pages count, and the window is run again."""
    save(engine, store, "a", ids[:2500], tails=tails, every=every)
    check(engine, store, ids[:2550], 2500 if tails else 2304, replayed=0 if tails else 128 * 5 - 1 - 127)
    check(engine, store, ids[:1600], 1536, replayed=0 if tails and every else None)
    check(engine, store, ids[:1800], 1792, replayed=256 if tails and every else None)


# ---------------------------------------------------------------------- what is not a hit


def test_what_others_made_is_not_found(engine: Engine, tmp_path: Path, folder: Path, ids: list[int]) -> None:
    """Other weights, another number format, another tenant."""
    with Store(tmp_path / "store", durability="off", tenant="a") as store:
        save(engine, store, "a", ids[:600])
        check(engine, store, ids[:700], 600, replayed=0)
        write_model(tmp_path / "other", 2, TINY)
        for other in (opened(tmp_path / "other"), opened(folder, kv=CacheFormat("bf16", "bf16"))):
            check(other, store, ids[:700], 0)
    for tenant in ("b", ""):
        with Store(tmp_path / "store", durability="off", tenant=tenant) as store:
            check(engine, store, ids[:700], 0)


@pytest.mark.parametrize("page", [0, 1, 3, 5])
def test_a_damaged_page_is_computed_again(
    engine: Engine, folder: Path, tmp_path: Path, ids: list[int], page: int
) -> None:
    """The prompt starts where it did, the answer is the same, and the store is whole again."""
    with Store(tmp_path / "store", durability="off") as store:
        save(engine, store, "a", ids[:1600])
        pages = store.look(lambda index: sorted(index.objects.all(Kind.PAGE), key=lambda entry: entry.position))
    with open(tmp_path / "store" / "packs" / "0000000001.pack", "r+b") as file:
        file.seek(pages[page].offset + 300)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 4]))
    reader = opened(folder)
    with Store(tmp_path / "store", durability="off") as store:
        assert not verify(store).sound
        alone = reader.generate(ids[:1700], max_tokens=3, ignore_eos=True)
        reader.prefixes = StoredPrefixes(store)
        ran(reader)
        found = reader.generate(ids[:1700], max_tokens=3, ignore_eos=True)
        assert (found.tokens, found.logprobs) == (alone.tokens, alone.logprobs)
        assert ran(reader) < 1700 and found.reused_tokens > 0
        assert verify(store).sound
        check(reader, store, ids[:1700], 1600, replayed=0)


def test_a_damaged_tail_is_run_again(engine: Engine, folder: Path, tmp_path: Path, ids: list[int]) -> None:
    with Store(tmp_path / "store", durability="off") as store:
        save(engine, store, "a", ids[:1600])
        tail = store.look(lambda index: index.objects.all(Kind.TAIL))[-1]
    with open(tmp_path / "store" / "packs" / "0000000001.pack", "r+b") as file:
        file.seek(tail.offset + 5000)
        file.write(b"damaged")
    with Store(tmp_path / "store", durability="off") as store:
        check(opened(folder), store, ids[:1700], 1600)


def test_evicted_pages_end_a_prefix(engine: Engine, store: Store, folder: Path, ids: list[int]) -> None:
    """What has to be run again anyway is left to the prompt, which shows how far it is and can be interrupted."""
    save(engine, store, "a", ids[:1600])
    eviction.evict(store, 0)
    check(opened(folder), store, ids[:1700], 0)


def test_a_store_that_cannot_be_used_is_a_miss(engine: Engine, store: Store, ids: list[int]) -> None:
    save(engine, store, "a", ids[:600])
    prefixes = StoredPrefixes(store)
    shutil.rmtree(store.folder)
    store.close()
    engine.prefixes = prefixes
    assert engine.generate(ids[:700], max_tokens=1).reused_tokens == 0


def test_bad_prompts_are_refused_as_ever(engine: Engine, store: Store, ids: list[int]) -> None:
    save(engine, store, "a", ids[:600])
    engine.prefixes = StoredPrefixes(store)
    for bad in ([], [*ids[:600], 10**9], [-1]):
        with pytest.raises(ParameterError):
            engine.generate(bad)


def test_a_base_goes_on_from_what_is_stored_of_it(engine: Engine, store: Store, ids: list[int]) -> None:
    """With and without pages that are known to be stored; nothing shorter than the base counts."""
    save(engine, store, "a", ids[:1400])
    for base_length in (100, 256, 600, 1024, 1399):
        with read(engine, ids[:base_length]) as base:
            alone = engine.generate(ids[base_length:1500], base=base, max_tokens=3, ignore_eos=True)
            engine.prefixes = StoredPrefixes(store)
            for known in (False, True):
                if known:
                    saving.save(store, "base", base, engine.fingerprint)
                found = engine.generate(ids[base_length:1500], base=base, max_tokens=3, ignore_eos=True)
                assert found.reused_tokens == 1400 - base_length
                assert (found.tokens, found.logprobs) == (alone.tokens, alone.logprobs)
            assert base.length == base_length
            engine.prefixes = None
    with read(engine, ids[:1400]) as base:
        engine.prefixes = StoredPrefixes(store)
        assert engine.generate(ids[1400:1500], base=base, max_tokens=1).reused_tokens == 0


# ---------------------------------------------------------------------- memories


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("policy", ["auto", "full", "none", 700])
def test_reading_starts_from_what_was_read(engine: Engine, tmp_path: Path, store: Store, policy: TailEvery) -> None:
    """Another source that begins alike, under another name; the same source once more."""
    source = write(tmp_path / "one.py", TEXT)
    with Memory.read(engine, source, name="one", root=store, tail_every=policy) as one:
        one.save(root=store)
        whole = one.length
        assert one.reused == 0 and ran(engine) == whole
    write(source, TEXT[:3000] + "changed = True\n" * 60)
    with Memory.read(engine, source, name="two", root=store) as two, Memory.read(engine, source) as fresh:
        pairs = zip(two.sequence.tokens.tolist(), engine.tokenizer.encode("# file: one.py\n" + TEXT), strict=False)
        common = next(place for place, (new, old) in enumerate(pairs) if new != old)
        assert same(two.sequence, fresh.sequence) and two.places.to_bytes() == fresh.places.to_bytes()
        assert two.reused > common - 256 - 128 * 5 and fresh.reused == 0
        assert ran(engine) == two.length - two.reused + fresh.length
    write(source, TEXT)
    told: list[Progress] = []
    with Memory.read(engine, source, name="three", root=store, progress=told.append) as three:
        replayed = 0 if policy != "none" else ran(engine)
        again = [p for p in told if p.again]
        assert [p.tokens_done for p in again] == [128 * (n + 1) for n in range(len(again))]
        assert all(p.tokens_total == 128 * len(again) <= replayed for p in again) and bool(again) == (policy == "none")
        assert three.length == whole and three.reused == whole - replayed and replayed <= 128 * 5 + 255


def test_the_default_store_is_looked_at_too(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEAL_STORE", str(tmp_path / "store"))
    source = write(tmp_path / "one.py", TEXT)
    with Memory.read(engine, source, name="one") as one:
        assert not (tmp_path / "store").exists(), "reading alone makes no store"
        one.save()
    with Memory.read(engine, source, name="two") as two:
        assert two.reused == two.length
    (tmp_path / "store" / "store.json").write_text("{}")
    (tmp_path / "store" / "store.copy.json").write_text("{}")
    with Memory.read(engine, source, name="two") as two:
        assert two.reused == 0, "a store that cannot be opened is none"


def test_resume_and_sync_take_what_another_memory_has_read(engine: Engine, tmp_path: Path, store: Store) -> None:
    source = write(tmp_path / "one.py", TEXT)
    for name in ("one", "two"):
        with Memory.read(engine, source, name=name, root=store) as memory:
            memory.save(root=store)
    write(source, TEXT + "more = 1\n" * 100)
    with Memory.load(engine, "one", root=store) as one:
        one.resume()
        one.save(root=store)
        assert one.reused == 0
        ran(engine)
        with Memory.load(engine, "two", root=store) as two:
            two.sync("rebuild")
            assert same(two.sequence, one.sequence) and two.complete
            assert two.reused > 0 and ran(engine) < 128 * 5 + 256


def test_going_back_costs_what_the_plan_says(
    engine: Engine, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a change all tokens are run, and a window before it; interrupted in that, nothing has changed."""
    source = write(tmp_path / "one.py", TEXT)
    with Memory.read(engine, source, name="one", root=store) as memory:
        memory.save(root=store)
        before, written = memory.sequence.tokens, store.packs.written
        write(source, TEXT[:3200] + "changed = True\n" * 30)
        plan = memory.plan_sync()
        cost = plan.costs["rebuild"]
        assert cost.tokens - cost.kept < cost.read < cost.tokens - cost.kept + 128 * 6
        with monkeypatch.context() as patch:

            def interrupt(*ignored: object, **options: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(engine, "prefill", interrupt)
            with pytest.raises(KeyboardInterrupt):
                memory.sync("rebuild", plan=plan)
        assert np.array_equal(memory.sequence.tokens, before) and memory.complete
        ran(engine)
        told: list[Progress] = []
        memory.sync("rebuild", plan=plan, progress=told.append)
        assert ran(engine) == cost.read
        again = [p for p in told if p.again]
        assert again and told[: len(again)] == again, "first the window, and then what is new"
        assert again[-1].tokens_done == again[-1].tokens_total == cost.read - (cost.tokens - cost.kept)
        assert all(p.tokens_total == cost.tokens for p in told[len(again) :])
        memory.save(root=store)
        assert store.packs.written - written == pytest.approx(cost.store_bytes, rel=0.1)
        with Memory.read(engine, source) as fresh:
            assert same(memory.sequence, fresh.sequence)


def test_a_fork_in_the_middle_reads_on(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("a.py", "b.py", "c.py"):
        write(tmp_path / "source" / name, TEXT[: 1000 + ord(name[0])])
    with Memory.read(engine, tmp_path / "source", name="base") as memory, memory.fork(900) as fork:
        assert fork.length == fork.places.tokens == 900 and not fork.complete
        assert fork.unread == ("c.py",) and fork.forked_from == ("base", 900)
        assert fork.resume().kept == 900
        assert fork.complete and same(fork.sequence, memory.sequence)
        assert fork.places.to_bytes() == memory.places.to_bytes()


def test_a_recalls_prompt_starts_from_what_was_saved_of_it(engine: Engine, tmp_path: Path, store: Store) -> None:
    """A fork that took the same words was saved: the recall runs only what is behind it."""
    cue = "".join(f"value_{n} = {n}\n" for n in range(40)) + "value_41 ="
    with Memory.read(engine, write(tmp_path / "one.py", TEXT), name="one", root=store) as memory:
        alone = memory.recall(cue, max_tokens=4, ignore_eos=True)
        assert alone.reused_tokens == 0 and alone.prompt_tokens > 256
        memory.save(root=store)
        with memory.fork() as fork:
            engine.prefill(fork.sequence, prompts(engine, memory.sequence, cue, True)[0].tokens[:300])
            saving.save(store, "fork", fork.sequence, engine.fingerprint)
        ran(engine)
        found = memory.recall(cue, max_tokens=4, ignore_eos=True)
        assert found.reused_tokens == 300 and ran(engine) == found.prompt_tokens - 300 + len(found.tokens) - 1
        assert (found.text, found.sampled, found.citations) == (alone.text, alone.sampled, alone.citations)


def test_shared_contexts_start_from_what_is_stored(engine: Engine, store: Store) -> None:
    with SharedContext.create(engine, "one", TEXT[:3000], author="ann", root=store) as one:
        first = one.append(TEXT[3000:], one.head(), author="bob")
        ran(engine)
        with SharedContext.create(engine, "two", TEXT[:3000], author="ann", root=store) as two:
            second = two.append(TEXT[3000:], two.head(), author="bob")
            assert ran(engine) <= 255 + 128 * 5 + 255 and two.reused > 1000
            assert first == second, "the same pages: the same head"
            with one.fork() as a, two.fork() as b:
                assert same(a.sequence, b.sequence)


@NEEDS_TORCH
def test_the_reference_starts_only_where_it_would_have_cut(tmp_path: Path) -> None:
    """Its last bits depend on cuts: a prompt starts at one, and everything comes out as without a store."""
    engine = make_reference_engine()
    ids = engine.tokenizer.encode(TEXT)[:700]
    with Store(tmp_path / "store", durability="off") as store:
        with engine.new_sequence(tail_every=64) as sequence:
            engine.prefill(sequence, ids[:600])
            saving.save(store, "a", sequence, engine.fingerprint)
        alone = engine.generate(ids, max_tokens=3, ignore_eos=True)
        engine.prefixes = StoredPrefixes(store)
        found = engine.generate(ids, max_tokens=3, ignore_eos=True)
        assert found.reused_tokens == 576 and (found.tokens, found.logprobs) == (alone.tokens, alone.logprobs)
        contexts.delete(store, "a")
        assert engine.generate(ids, max_tokens=3, ignore_eos=True).reused_tokens == 0
    assert open_store(tmp_path / "store").contexts() == []

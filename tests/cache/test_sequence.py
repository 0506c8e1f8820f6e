"""Steps, forks, truncation, failure and reading, each on its own. Random interleavings: test_machine.py."""

from __future__ import annotations

import numpy as np
import pytest
from cache_support import (
    COMPRESSORS,
    CONFIG,
    CUTS,
    EXACT,
    FORMATS,
    Broken,
    assert_bytes,
    assert_same,
    plain,
    pool,
    random_tokens,
    split,
    step,
)

from foveal.cache import CacheError, CacheFormat, CacheFull, CacheLayout, PagePool, Sequence, SequenceFreed
from foveal.cache.contract import LayerUpdate, OpenRows, Part

pytestmark = pytest.mark.slow


def filled(count: int, format: CacheFormat = EXACT, *, chunk: int = 100, **options: int) -> Sequence:
    sequence = Sequence(pool(format), **options)
    for tokens in split(random_tokens(count), chunk):
        step(sequence, tokens)
    return sequence


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("chunk", [1, 3, 64, 257, 600])
def test_any_cut_gives_what_the_definition_gives(format: CacheFormat, chunk: int) -> None:
    sequence = filled(520, format, chunk=chunk)
    assert_same(sequence, plain(random_tokens(520)))
    assert_bytes(sequence)


@pytest.mark.parametrize("length", CUTS)
def test_two_cuts_at_every_critical_length(length: int) -> None:
    tokens = random_tokens(length + 5)
    sequence = Sequence(pool())
    step(sequence, tokens[:length])
    assert_same(sequence, plain(tokens[:length]))
    assert_bytes(sequence)
    step(sequence, tokens[length:])
    assert_same(sequence, plain(tokens))


def test_equal_tokens_give_equal_pages_whatever_the_cuts() -> None:
    pages = [filled(600, chunk=chunk).export() for chunk in (1, 7, 256, 600)]
    for other in pages[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(pages[0].pages, other.pages, strict=True))
        assert pages[0].open_page is not None and other.open_page is not None
        assert np.array_equal(pages[0].open_page, other.open_page)
        assert all(np.array_equal(tensor, other.tail[name]) for name, tensor in pages[0].tail.items())


def test_views_and_no_views_read_the_same() -> None:
    with_views, without = filled(300, chunk=9), filled(300, chunk=9, views=False)
    for layer, part in COMPRESSORS:
        assert np.array_equal(with_views.entries(layer, part), without.entries(layer, part))
    assert without.nbytes().views == 0 < with_views.nbytes().views
    with_views.drop_views()
    assert with_views.nbytes().views == 0
    assert_same(with_views, plain(random_tokens(300)))


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_gather_reads_the_chosen_entries(format: CacheFormat) -> None:
    sequence = filled(900, format)
    for layer, part in COMPRESSORS:
        everything = sequence.entries(layer, part)
        chosen = np.random.default_rng(layer).integers(0, len(everything), (3, 5))
        assert np.array_equal(sequence.gather(layer, part, chosen), everything[chosen])
        assert sequence.gather(layer, part, chosen[:0]).shape == (0, 5, everything.shape[1])
        with pytest.raises(CacheError, match="exist"):
            sequence.gather(layer, part, np.array([len(everything)]))
        with pytest.raises(CacheError, match="exist"):
            sequence.gather(layer, part, np.array([-1]))


def test_a_range_of_tokens_is_that_of_all_tokens() -> None:
    for length in CUTS:
        sequence = filled(length)
        for first in {0, length // 2, max(length - 3, 0), min(256, length)}:
            for after in {first, min(first + 1, length), length}:
                assert np.array_equal(sequence.token_range(first, after), sequence.tokens[first:after])


def test_table_says_where_entries_lie() -> None:
    sequence = filled(700)
    for layer, part in COMPRESSORS:
        table, region = sequence.table(layer, part), sequence.layout.region(layer, part)
        assert table.addresses().tolist() == [page.address for page in sequence.pages]
        for number in {0, table.count // 2, table.count - 1}:
            data = table.pages[number // region.count].data
            start = region.offset + number % region.count * region.entry_bytes
            entry = data[start : start + region.entry_bytes].view(np.float32)
            assert np.array_equal(entry, sequence.entries(layer, part)[number])


def test_compute_dtype_is_the_callers() -> None:
    sequence = Sequence(pool(CacheFormat("fp8", "fp4")), dtype=np.float32)
    step(sequence, random_tokens(200))
    assert sequence.window(1).dtype == sequence.entries(1, Part.INDEX).dtype == np.float32
    assert_same(sequence, plain(random_tokens(200)))


# ---------------------------------------------------------------------- fork


@pytest.mark.parametrize("length", [0, 1, 255, 256, 300, 513])
def test_fork_shares_full_pages_and_nothing_else(length: int) -> None:
    parent = filled(length)
    child = parent.fork()
    full = length // 256
    assert parent.pages[:full] == child.pages[:full]
    assert not set(parent.pages[full:]) & set(child.pages[full:])
    assert parent.pool.live == full + 2 * (length % 256 > 0)
    mine, theirs = random_tokens(140, seed=1), random_tokens(140, seed=2)
    step(parent, mine)
    step(child, theirs)
    assert_same(parent, plain(np.concatenate([random_tokens(length), mine])))
    assert_same(child, plain(np.concatenate([random_tokens(length), theirs])))
    parent.pool.check_integrity([parent.pages, child.pages])
    parent.free()
    assert_same(child, plain(np.concatenate([random_tokens(length), theirs])))
    child.free()
    assert child.pool.live == 0


# ---------------------------------------------------------------------- truncate


@pytest.mark.parametrize("kept", [0, 3, 128, 255, 256, 300])
@pytest.mark.parametrize("length", [300, 383, 512, 514])
def test_truncate_and_replay_is_the_state_it_was(kept: int, length: int) -> None:
    tokens = random_tokens(600)
    sequence = Sequence(pool())
    if kept:
        step(sequence, tokens[:kept])
        sequence.keep_tail()
    step(sequence, tokens[kept:])
    replay = sequence.truncate(length)
    assert sequence.length == kept
    assert np.array_equal(replay.astype(np.int64), tokens[kept:length])
    assert_same(sequence, plain(tokens[:kept]))
    assert_bytes(sequence)
    if len(replay):
        step(sequence, replay)
    assert_same(sequence, plain(tokens[:length]))
    sequence.pool.check_integrity([sequence.pages])


def test_truncate_leaves_a_fork_alone() -> None:
    tokens = random_tokens(600)
    sequence = Sequence(pool(), tail_every=64)
    for chunk in split(tokens, 50):
        step(sequence, chunk)
    child = sequence.fork()
    replay = sequence.truncate(290)
    assert len(replay) == 90, "tails stand where steps of 50 passed a multiple of 64: 100, 150, 200, 300, ..."
    step(sequence, np.concatenate([replay.astype(np.int64), random_tokens(300, seed=5)]))
    assert_same(child, plain(tokens))
    assert_same(sequence, plain(np.concatenate([tokens[:290], random_tokens(300, seed=5)])))
    child.pool.check_integrity([sequence.pages, child.pages])


def test_truncate_to_where_it_is_changes_nothing() -> None:
    sequence = filled(300)
    pages = sequence.pages
    assert len(sequence.truncate(300)) == 0
    assert sequence.pages == pages
    with pytest.raises(CacheError, match="cannot truncate"):
        sequence.truncate(301)
    with pytest.raises(CacheError, match="cannot truncate"):
        sequence.truncate(-1)


def test_truncate_without_room_to_reopen_changes_nothing() -> None:
    sequence = Sequence(pool(limit=2))
    step(sequence, random_tokens(200))
    sequence.keep_tail()
    step(sequence, random_tokens(312, seed=1))
    with pytest.raises(CacheFull):
        sequence.truncate(250)
    assert_same(sequence, plain(np.concatenate([random_tokens(200), random_tokens(312, seed=1)])))


def test_kept_tails_after_the_cut_are_forgotten() -> None:
    sequence = filled(600, chunk=100, tail_every=100)
    assert [tail.position for tail in sequence.kept_tails] == [0, 100, 200, 300, 400, 500, 600]
    sequence.truncate(350)
    assert [tail.position for tail in sequence.kept_tails] == [0, 100, 200, 300]
    assert sequence.nbytes().kept_tails > 0
    sequence.drop_tails()
    assert [tail.position for tail in sequence.kept_tails] == [0]
    with pytest.raises(CacheError, match="ahead"):
        sequence.add_tail(filled(400).keep_tail())


# ---------------------------------------------------------------------- failure


@pytest.mark.parametrize("fail_after", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("count", [1, 90, 600])
def test_a_failed_step_leaves_no_trace(fail_after: int, count: int) -> None:
    tokens = random_tokens(250)
    sequence = filled(250)
    with pytest.raises(Broken):
        step(sequence, random_tokens(count, seed=3), fail_after=fail_after)
    child = sequence.fork()
    with pytest.raises(Broken):
        step(sequence, random_tokens(count, seed=3), fail_after=fail_after)
    step(sequence, random_tokens(2, seed=4))
    assert_same(sequence, plain(np.concatenate([tokens, random_tokens(2, seed=4)])))
    assert_bytes(sequence)
    assert_same(child, plain(tokens))
    with pytest.raises(Broken):
        step(child, random_tokens(count, seed=3), fail_after=fail_after)
    child.rollback()
    assert_same(child, plain(tokens))
    assert_bytes(child)
    child.pool.check_integrity([sequence.pages, child.pages])


def test_a_full_pool_says_so_before_the_work_and_changes_nothing() -> None:
    small = pool(limit=2)
    sequence, other = Sequence(small), Sequence(small)
    step(sequence, random_tokens(200))
    step(other, random_tokens(10))
    assert sequence.pages_needed(56) == 0 and sequence.pages_needed(57) == 1 and small.free == 0
    with pytest.raises(CacheFull, match="free sequences"):
        step(sequence, random_tokens(100, seed=1))
    with pytest.raises(CacheFull):
        sequence.fork()
    assert_same(sequence, plain(random_tokens(200)))
    other.free()
    step(sequence, random_tokens(100, seed=1))
    assert_same(sequence, plain(np.concatenate([random_tokens(200), random_tokens(100, seed=1)])))


def test_updates_that_do_not_fit_are_refused() -> None:
    sequence = filled(10)
    width = CONFIG.head_dim
    with pytest.raises(CacheError, match=r"window rows .* \[2, 32\], not \[2, 31\]"):
        sequence.append(0, LayerUpdate(np.zeros((2, width - 1), np.float32)))
    sequence.append(0, LayerUpdate(np.zeros((2, width), np.float32)))
    with pytest.raises(CacheError, match="compressors"):
        sequence.append(1, LayerUpdate(np.zeros((2, width), np.float32)))
    rows = {
        part: OpenRows(np.zeros((4, 64), np.float32), np.zeros((4, 64), np.float32)) for part in (Part.MAIN, Part.INDEX)
    }
    with pytest.raises(CacheError, match="entries of 2 tokens after 10"):
        sequence.append(
            1,
            LayerUpdate(np.zeros((2, width), np.float32), rows, dict.fromkeys(rows, np.zeros((2, width), np.float32))),
        )
    with pytest.raises(CacheError, match=r"missing: \[1, 2, 3\]"):
        sequence.advance(np.array([1, 2]))
    assert_same(filled(10), plain(random_tokens(10)))
    sequence.rollback()
    assert_same(sequence, plain(random_tokens(10)))


@pytest.mark.parametrize("wrong", [np.array(ids) for ids in ([1, 2], [1, 2, 512], [1, -2, 5], [0.5, 1.0, 2.0])])
def test_tokens_that_do_not_fit_are_refused_and_the_step_can_still_end(wrong: np.ndarray) -> None:
    class Once:
        """Hands `wrong` to advance first."""

        def __init__(self, sequence: Sequence) -> None:
            self.sequence = sequence

        def __getattr__(self, name: str) -> object:
            return getattr(self.sequence, name)

        def advance(self, tokens: np.ndarray) -> None:
            with pytest.raises(CacheError, match="token ids"):
                self.sequence.advance(wrong)
            self.sequence.advance(tokens)

    sequence = Sequence(pool())
    step(Once(sequence), random_tokens(3))  # type: ignore[arg-type]
    assert_same(sequence, plain(random_tokens(3)))


def test_a_freed_sequence_refuses_everything() -> None:
    sequence = filled(300)
    shared = sequence.pool
    image = sequence.export()
    before = [page.copy() for page in image.pages]
    sequence.free()
    sequence.free()
    assert shared.live == 0 and "freed" in repr(sequence)
    another = Sequence(shared)
    step(another, random_tokens(600, seed=9))
    assert all(np.array_equal(a, b) for a, b in zip(before, image.pages, strict=True)), "an image outlives its sequence"
    uses = {
        "window": (0,),
        "open_rows": (1, Part.MAIN),
        "entries": (1, Part.MAIN),
        "append": (0, LayerUpdate(np.zeros((1, 32), np.float32))),
        "advance": (np.array([1]),),
        "fork": (),
        "truncate": (0,),
        "export": (),
        "keep_tail": (),
        "rollback": (),
        "nbytes": (),
    }
    for name, arguments in uses.items():
        with pytest.raises(SequenceFreed):
            getattr(sequence, name)(*arguments)
    with pytest.raises(SequenceFreed):
        _ = sequence.length


def test_with_frees() -> None:
    shared = pool()
    with Sequence(shared) as sequence:
        step(sequence, random_tokens(10))
        assert shared.live == 1
    assert shared.live == 0


def test_a_forgotten_sequence_does_not_leak() -> None:
    shared = pool()
    step(Sequence(shared), random_tokens(600))
    assert shared.live == 0


# ---------------------------------------------------------------------- MTP blocks


def test_an_mtp_window_with_a_hole_is_emptied() -> None:
    sequence = Sequence(pool())
    step(sequence, random_tokens(50))
    assert len(sequence.window(4)) == 50
    step(sequence, random_tokens(3), mtp=False)
    assert len(sequence.window(4)) == 0
    assert len(Sequence.restore(pool(), sequence.export()).window(4)) == 0


def test_an_mtp_block_may_run_several_times_in_a_step_but_not_first() -> None:
    sequence = Sequence(pool())
    with pytest.raises(CacheError, match="before the main layers"):
        sequence.append(4, LayerUpdate(np.zeros((1, 32), np.float32)))
    step(sequence, random_tokens(5))
    with pytest.raises(Broken):
        step(sequence, random_tokens(1), mtp=False, fail_after=4)
    for value in (1.0, 2.0):
        sequence.append(4, LayerUpdate(np.full((1, 32), value, np.float32)))
    assert sequence.window(4)[-2:, 0].tolist() == [1.0, 2.0]
    sequence.advance(np.array([1]))
    assert len(sequence.window(4)) == 7


def test_a_model_without_compressed_layers_works_too() -> None:
    config = CONFIG.replace(compress_ratios=(0, 0, 0, 0, 0))
    sequence = Sequence(PagePool(CacheLayout(config, EXACT)))
    for chunk in split(random_tokens(300), 77):
        for layer in range(4):
            sequence.append(layer, LayerUpdate(np.ones((len(chunk), 32), np.float32)))
        sequence.advance(chunk)
    assert sequence.length == 300 and sequence.layout.page_bytes == 0
    sequence.pool.check_integrity([sequence.pages])
    restored = Sequence.restore(PagePool(CacheLayout(config, EXACT)), sequence.export())
    assert np.array_equal(restored.tokens, sequence.tokens)

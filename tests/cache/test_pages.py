"""Lists of pages in blocks, and the counting of references over them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cache_support import assert_same, plain, pool, random_tokens, split, step
from hypothesis import given
from hypothesis import strategies as st

from foveal.cache import CacheError, Page, PageList, PagePool, Sequence, page_list
from foveal.cache.memory import HostBytes

BLOCK = 4


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_list, "BLOCK_PAGES", BLOCK)
        yield


def pages(count: int) -> list[Page]:
    return [Page(HostBytes(np.zeros(1, dtype=np.uint8))) for _ in range(count)]


def counts(*lists: PageList) -> list[int]:
    return [page.references for page in dict.fromkeys(page for one in lists for page in one)]


# ---------------------------------------------------------------------- the list


@given(st.integers(0, 20), st.integers(0, 20), st.slices(20), st.data())
def test_a_list_is_what_a_plain_list_is(count: int, more: int, part: slice, data: st.DataObject) -> None:
    plain_list = pages(count)
    found = PageList().plus(plain_list).packed()
    assert len(found.newest) <= BLOCK and len(found.blocks) == max(0, count - 1) // BLOCK
    other = pages(more)
    plain_list, found = [*plain_list, *other], found.plus(other)
    for one in (found, found.packed()):
        assert list(one) == plain_list and len(one) == count + more and one == found
        assert one[part] == tuple(plain_list[part])
        for place in range(-len(plain_list), len(plain_list)):
            assert one[place] is plain_list[place]
        for place in (len(plain_list), -len(plain_list) - 1):
            with pytest.raises(IndexError):
                one[place]
        cut = data.draw(st.integers(0, len(plain_list)))
        assert list(one.first(cut)) == plain_list[:cut]
        assert all(a is b for a, b in zip(one.first(cut).blocks, one.blocks, strict=False)), "blocks are shared"
        if plain_list:
            number, new = data.draw(st.integers(0, len(plain_list) - 1)), pages(1)[0]
            assert list(one.replaced(number, new)) == [*plain_list[:number], new, *plain_list[number + 1 :]]
        assert list(one) == plain_list, "and it has not changed"


def test_lists_are_equal_when_their_pages_are() -> None:
    some = pages(9)
    packed = PageList().plus(some).packed()
    assert packed == PageList().plus(some) != PageList().plus(pages(9))
    assert packed != tuple(some)


def test_a_slice_looks_at_its_own_pages_only() -> None:
    class Untouchable:
        pages = property(lambda self: pytest.fail("walked over a page that was not asked for"))

    some = PageList().plus(pages(20)).packed()
    first, *others = some.blocks
    guarded = PageList((Untouchable(), *others), some.newest)  # type: ignore[arg-type]
    assert guarded[BLOCK:] == some[BLOCK:] and guarded[7] is some[7] and len(guarded.first(13)) == 13
    assert guarded.replaced(5, some[0])[5] is some[0]
    assert first.pages == some[:BLOCK]


# ---------------------------------------------------------------------- counting


def held_by(pool: PagePool, some: PageList) -> PageList:
    pool.share(some.held)
    return some


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_a_block_counts_once_whoever_goes_first(order: tuple[int, int, int]) -> None:
    shared = pool()
    fresh = shared.acquire(10)
    whole = held_by(shared, PageList().plus(fresh).packed())
    shared.release(fresh)
    assert counts(whole) == [1] * 10
    same, cut = held_by(shared, whole.first(10)), held_by(shared, whole.first(6))
    assert [block.references for block in whole.blocks] == [3, 2]
    assert counts(whole) == [1, 1, 1, 1, 2, 2, 1, 1, 2, 2], "a block holds its pages, and a part of one is held singly"
    lists = [whole, same, cut]
    shared.check_integrity(lists)
    for number in order:
        shared.release(lists[number].held)
        lists[number] = PageList()
        shared.check_integrity(lists)
    assert shared.live == 0
    assert counts(whole) == [0] * 10


def test_what_is_miscounted_is_told() -> None:
    shared = pool()
    fresh = shared.acquire(6)
    whole = held_by(shared, PageList().plus(fresh).packed())
    with pytest.raises(CacheError, match="a page has 2 references but 1 holders"):
        shared.check_integrity([whole])
    shared.release(fresh)
    shared.share(whole.blocks)
    with pytest.raises(CacheError, match="a block has 2 references but 1 holders"):
        shared.check_integrity([whole])
    with pytest.raises(CacheError, match="a page has 1 references but 0 holders"):
        shared.check_integrity([])
    shared.release(whole.blocks)
    shared.release(whole.held)
    with pytest.raises(CacheError, match="more often"):
        shared.release(whole.blocks)
    with pytest.raises(CacheError, match="more often"):
        shared.release(whole.newest)
    with pytest.raises(CacheError, match="nobody holds"):
        shared.share(whole.newest)
    with pytest.raises(CacheError, match="nobody holds"):
        shared.share(whole.blocks)
    with pytest.raises(CacheError, match="a block has 0 references but 1 holders"):
        shared.check_integrity([whole])


def test_counting_is_safe_across_threads() -> None:
    shared = pool()
    fresh = shared.acquire(9)
    whole = held_by(shared, PageList().plus(fresh).packed())
    shared.release(fresh)

    def fork_and_free(_: int) -> None:
        for length in range(1, 10):
            for _ in range(200):
                fork = held_by(shared, whole.first(length))
                shared.release(fork.held)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(fork_and_free, range(4)))  # raises what a thread raised
    assert counts(whole) == [1] * 9 and [block.references for block in whole.blocks] == [1, 1]
    shared.check_integrity([whole])


# ---------------------------------------------------------------------- sequences over blocks

EDGE = BLOCK * 256
LENGTHS = (EDGE - 1, EDGE, EDGE + 1, EDGE + 256, EDGE + 257, 2 * EDGE, 2 * EDGE + 256, 2 * EDGE + 300)


@pytest.mark.parametrize("length", LENGTHS)
def test_forks_of_forks_and_cuts_at_the_edges_of_blocks(length: int) -> None:
    tokens, shared = random_tokens(length), pool()
    base = Sequence(shared, tail_every=64)
    for chunk in split(tokens, 64):
        step(base, chunk)
    family = [base]
    for at in (length, EDGE + 1, EDGE, EDGE - 1, 700, 512, 1):
        child = family[-1].fork()
        family.append(child)
        if at <= child.length:
            replay = child.truncate(at)
            if len(replay):
                step(child, replay.astype(np.int64))
            assert_same(child, plain(tokens[:at]))
        shared.check_integrity([sequence.pages for sequence in family])
    assert_same(base, plain(tokens))
    full = length // 256
    assert family[1].pages.blocks == base.pages.blocks and family[1].pages[:full] == base.pages[:full]
    grown = family[3]
    more = random_tokens(2 * EDGE, seed=9)
    past = grown.tokens.astype(np.int64)
    for chunk in split(more, 700):
        step(grown, chunk)
    assert_same(grown, plain(np.concatenate([past, more])))
    assert len(grown.pages.newest) <= BLOCK
    for sequence in (family[2], base, family[4], *family[5:], family[1], grown):
        sequence.free()
        family.remove(sequence)
        shared.check_integrity([other.pages for other in family])
    assert shared.live == 0


def test_a_page_put_into_a_shared_block_leaves_the_others_theirs() -> None:
    tokens = random_tokens(3 * EDGE)
    base = Sequence(pool(), tail_every=64)
    step(base, tokens)
    fork = base.fork()
    before = base.pages
    for number in (0, BLOCK - 1, BLOCK, 3 * BLOCK - 1):
        data = fork.pages[number].data.copy()
        fork.put_page(number, data)
        assert fork.pages[number].data is data and fork.pages[number] is not before[number]
        fork.pool.check_integrity([base.pages, fork.pages])
    fork.put_page(1, before[1].data)
    assert fork.pages[1] is before[1]
    assert base.pages == before and before[2].references == 2, "held by the block of each"
    assert fork.pool.live == 3 * BLOCK + 4
    base.free()
    fork.pool.check_integrity([fork.pages])
    assert_same(fork, plain(tokens))
    fork.free()
    assert fork.pool.live == 0


def test_a_sequence_dropped_without_free_costs_nothing() -> None:
    sequence = Sequence(pool())
    step(sequence, random_tokens(2 * EDGE + 300))
    fork, shared = sequence.fork(), sequence.pool
    del sequence
    assert shared.live == len(fork.pages), "only the open page was its own"
    del fork
    assert shared.live == 0

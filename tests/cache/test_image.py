"""Export and restore are exact at every length that matters, and refuse what does not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cache_support import CONFIG, CUTS, EXACT, FORMATS, assert_same, plain, pool, random_tokens, split, step

from foveal.cache import (
    CacheError,
    CacheFormat,
    CacheFull,
    CacheLayout,
    ImageError,
    PagePool,
    Sequence,
    SequenceImage,
    Tail,
)
from foveal.cache.memory import address_of

LENGTHS = sorted({0, *CUTS, *range(300, 304), 639})


def grown(length: int, format: CacheFormat = EXACT) -> Sequence:
    sequence = Sequence(pool(format))
    for tokens in split(random_tokens(length), 200) if length else ():
        step(sequence, tokens)
    return sequence


def cloned(image: SequenceImage) -> SequenceImage:
    """As if read from a file: nothing is the same memory."""
    return SequenceImage(
        image.length,
        image.tokens.copy(),
        [page.copy() for page in image.pages],
        None if image.open_page is None else image.open_page.copy(),
        {name: tensor.copy() for name, tensor in image.tail.items()},
    )


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_restore_is_exact_and_goes_on_the_same(format: CacheFormat, length: int) -> None:
    sequence = grown(length, format)
    image = cloned(sequence.export())
    restored = Sequence.restore(pool(format), image)
    assert_same(restored, plain(random_tokens(length)))
    again = restored.export()
    assert all(np.array_equal(a, b) for a, b in zip(image.pages, again.pages, strict=True))
    assert image.open_page is None or np.array_equal(image.open_page, again.open_page)
    assert image.tail.keys() == again.tail.keys()
    assert all(np.array_equal(tensor, again.tail[name]) for name, tensor in image.tail.items())
    more = random_tokens(6, seed=1)
    step(sequence, more)
    step(restored, more)
    assert_same(restored, plain(np.concatenate([random_tokens(length), more])))
    assert len(restored.truncate(length)) == 0 and restored.length == length, "one can go back to where it was restored"


@pytest.mark.parametrize("residue", range(128))
def test_restore_at_every_residue_of_128(residue: int) -> None:
    image = cloned(grown(256 + residue).export())
    assert_same(Sequence.restore(pool(), image), plain(random_tokens(256 + residue)))


def test_full_pages_are_neither_copied_nor_doubled() -> None:
    sequence = grown(600)
    image = sequence.export()
    assert [address_of(page) for page in image.pages] == [page.address for page in sequence.pages[:2]]
    first = Sequence.restore(sequence.pool, image)
    second = Sequence.restore(sequence.pool, image)
    assert first.pages[:2] == second.pages[:2] == sequence.pages[:2]
    assert sequence.pool.live == 2 + 3
    sequence.pool.check_integrity([sequence.pages, first.pages, second.pages])
    elsewhere = [Sequence.restore(pool_, image) for pool_ in [pool()] * 2]
    assert elsewhere[0].pages[:2] == elsewhere[1].pages[:2]
    assert elsewhere[0].pool.live == 2 + 2


def test_an_export_does_not_see_later_steps() -> None:
    sequence = grown(300)
    image = sequence.export()
    before = cloned(image)
    step(sequence, random_tokens(400, seed=3))
    sequence.truncate(10)
    for mine, theirs in zip([*image.pages, image.open_page], [*before.pages, before.open_page], strict=True):
        assert mine is not None and theirs is not None and np.array_equal(mine, theirs)
    assert all(np.array_equal(image.tail[name], before.tail[name]) for name in before.tail)


def test_a_restored_open_page_belongs_to_the_sequence() -> None:
    image = grown(300).export()
    assert image.open_page is not None
    restored = Sequence.restore(pool(), image)
    image.open_page.fill(7)
    image.tail["window.0"].fill(7)
    assert_same(restored, plain(random_tokens(300)))


def test_bytes_behind_the_open_entries_are_not_trusted() -> None:
    image = cloned(grown(300).export())
    assert image.open_page is not None
    clean = image.open_page.copy()
    image.open_page[np.flatnonzero(image.open_page == 0)[-1]] = 9
    again = Sequence.restore(pool(), image).export()
    assert again.open_page is not None and np.array_equal(again.open_page, clean)


def _spoilt(image: SequenceImage) -> dict[str, SequenceImage]:
    tail = image.tail
    return {
        "299 token ids are due": replace(image, length=299),
        "full pages are due": replace(image, pages=[]),
        "open page is due": replace(image, open_page=None),
        "page 0 is": replace(image, pages=[image.pages[0][:-1]]),
        "open page is float32": replace(image, open_page=np.zeros(len(image.pages[0]), np.float32)),
        "window.2 is missing": replace(image, tail={k: v for k, v in tail.items() if k != "window.2"}),
        "what.3 is unknown": replace(image, tail=tail | {"what.3": tail["window.0"]}),
        "window.1 is float16": replace(image, tail=tail | {"window.1": tail["window.1"].astype(np.float16)}),
        r"open.2.main.kv is float32 \[43, 32\]": replace(
            image, tail=tail | {"open.2.main.kv": tail["open.2.main.kv"][1:]}
        ),
        "window.0 is": replace(image, tail=tail | {"window.0": tail["window.0"][1:]}),
        "token ids must be": replace(image, tokens=image.tokens + 500),
    }


def test_what_does_not_fit_is_refused_and_holds_nothing() -> None:
    fresh = pool()
    for message, image in _spoilt(grown(300).export()).items():
        with pytest.raises(CacheError, match=message):
            Sequence.restore(fresh, image)
        assert fresh.live == 0, message


def test_another_format_or_model_is_refused() -> None:
    image = grown(600).export()
    with pytest.raises(ImageError, match="does not fit this model and cache format"):
        Sequence.restore(pool(FORMATS[1]), image)
    other = CONFIG.replace(compress_ratios=(0, 4, 128, 128, 0))
    with pytest.raises(ImageError):
        Sequence.restore(PagePool(CacheLayout(other, EXACT)), image)


def test_a_pool_too_small_holds_nothing_afterwards() -> None:
    small = pool(limit=2)
    with pytest.raises(CacheFull):
        Sequence.restore(small, grown(600).export())
    assert small.live == 0


def test_the_same_page_with_other_tokens_is_refused() -> None:
    sequence = grown(300)
    image = sequence.export()
    with pytest.raises(CacheError, match="other token ids"):
        Sequence.restore(sequence.pool, replace(image, tokens=image.tokens[::-1]))
    sequence.pool.check_integrity([sequence.pages])


def test_a_tail_saved_apart_can_be_registered() -> None:
    tokens = random_tokens(600)
    sequence = Sequence(pool())
    step(sequence, tokens[:333])
    early = sequence.keep_tail()
    step(sequence, tokens[333:])
    restored = Sequence.restore(pool(), cloned(sequence.export()))
    restored.add_tail(Tail.from_tensors(restored.layout, 333, early.copy().tensors()))
    replay = restored.truncate(340)
    assert restored.length == 333 and np.array_equal(replay.astype(np.int64), tokens[333:340])
    step(restored, replay)
    assert_same(restored, plain(tokens[:340]))

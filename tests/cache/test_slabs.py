"""Slots of slabs: neighbours for neighbouring pages, given back when nobody holds them, filled with what pages hold."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.configs import tiny_config
from store_support import random_tokens

from foveal.backends.cpu.live import cache_shape
from foveal.backends.cpu.network import NativeNetwork
from foveal.backends.cpu.slabs import SLAB_BYTES, Slabs, slots_of
from foveal.cache import CacheFormat, CacheLayout, PagePool, Part, Segment, Sequence
from foveal.checkpoint import random_weights
from foveal.config import PAGE_TOKENS, ModelConfig, Numerics


def config() -> ModelConfig:
    return tiny_config(compress_ratios=(0, 4, 128, 4, 128), num_hidden_layers=5, num_nextn_predict_layers=0)


@pytest.fixture
def slabs() -> Slabs:
    return Slabs(cache_shape(CacheLayout(config(), CacheFormat()), True))


def test_slots_come_in_order_and_a_full_slab_is_followed_by_another(slabs: Slabs) -> None:
    count = slabs.shape.slots
    slots = [slabs.take() for _ in range(count + 2)]
    assert [slot.number for slot in slots] == [*range(count), 0, 1]
    assert len({slot.address for slot in slots}) == 2


def test_slots_at_the_end_that_nobody_holds_are_taken_again(slabs: Slabs) -> None:
    kept = [slabs.take() for _ in range(3)]
    for _ in range(5):
        assert slabs.take().number == 3  # nobody holds it
    del kept[1]
    assert slabs.take().number == 3  # one in the middle waits until those behind it are given back
    del kept[1]
    assert slabs.take().number == 1


def test_a_slab_is_about_as_large_as_it_should_be() -> None:
    for size in (1, 100, 6528, 5 << 20, 9 << 20):
        slots = slots_of(size)
        assert slots & (slots - 1) == 0
        assert slots == 1 or slots * max(size, 64) <= SLAB_BYTES < 2 * slots * max(size, 64)


@pytest.mark.parametrize("length", [PAGE_TOKENS * 2 + 131, PAGE_TOKENS * 3, 255])
def test_pages_of_one_sequence_lie_side_by_side_and_hold_what_their_entries_are(length: int) -> None:
    network = NativeNetwork(config(), dict(random_weights(config(), seed=1)), numerics=Numerics.none(), threads=1)
    with Sequence(PagePool(CacheLayout(config(), CacheFormat()))) as sequence:
        network(random_tokens(length, seed=2) % config().vocab_size, [Segment(sequence, length)])
        slots = [page.slot for page in sequence.pages]
        assert [slot.number for slot in slots if slot is not None] == list(range(len(sequence.pages)))
        shape = cache_shape(sequence.layout, network.numerics.index)
        first = slots[0]
        assert first is not None
        memory = first.slab.memory
        # HCA entries stand behind the keys of all layers, layer by layer, entry by entry.
        entries = [sequence.table(layer, Part.MAIN).rows(0, length // 128) for layer in (2, 4)]
        key_bytes = shape.slot_bytes - 2 * 2 * entries[0].shape[1]
        at = shape.slots * key_bytes
        for rows in entries:
            assert np.array_equal(memory[at : at + rows.size], rows.flatten())
            at += shape.slots * 2 * rows.shape[1]


def test_a_fork_shares_the_slots_of_full_pages() -> None:
    network = NativeNetwork(config(), dict(random_weights(config(), seed=1)), numerics=Numerics.none(), threads=1)
    with Sequence(PagePool(CacheLayout(config(), CacheFormat()))) as base:
        network(random_tokens(PAGE_TOKENS + 9, seed=2) % config().vocab_size, [Segment(base, PAGE_TOKENS + 9)])
        with base.fork() as fork:
            network(random_tokens(1, seed=3) % config().vocab_size, [Segment(fork, 1)])
            assert fork.pages[0].slot is base.pages[0].slot
            assert fork.pages[1].slot is not base.pages[1].slot

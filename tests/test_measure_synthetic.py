"""Made-up pasts: they are whole sequences, plausible to every kernel, and the network goes on from them."""

from __future__ import annotations

import pytest
import torch
from cache_support import COMPRESSORS, CONFIG, FORMATS, pool

from foveal.cache import CacheFormat, Sequence
from foveal.measure import make_image
from foveal.model import Segment, Transformer
from foveal.model.state import Part
from foveal.ops import reference

LONG = 20_000
"""Tokens enough to show the whole bank of made-up entries more than once."""


def filled(length: int, format: CacheFormat = FORMATS[0], seed: int = 0) -> Sequence:
    made = pool(format)
    return Sequence.restore(made, make_image(made.layout, length, seed=seed), dtype=torch.float32)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("length", [1, 255, 256, 1001, LONG])
def test_a_filled_sequence_is_whole(length: int, format: CacheFormat) -> None:
    sequence = filled(length, format)
    assert sequence.length == length and len(sequence.tokens) == length
    for layer, part in COMPRESSORS:
        assert len(sequence.entries(layer, part)) == length // CONFIG.compress_ratios[layer]
    sequence.pool.check_integrity([sequence.pages])


def test_entries_are_distinct_and_of_unit_size_and_on_the_grids() -> None:
    sequence = filled(LONG)
    for layer, part in COMPRESSORS:
        entries = sequence.entries(layer, part)
        assert len(torch.unique(entries, dim=0)) == len(entries)
        assert entries.square().mean(-1).sqrt().median() == pytest.approx(1, abs=0.1)
        if part is Part.MAIN:
            assert torch.equal(reference.quantize_kv(entries, CONFIG.qk_rope_head_dim), entries)
    packed = filled(LONG, CacheFormat("fp8", "fp4"))
    for layer, part in COMPRESSORS:  # packing loses nothing
        assert torch.equal(packed.entries(layer, part), sequence.entries(layer, part))


def test_pages_are_memory_of_their_own() -> None:
    sequence = filled(LONG, CacheFormat("bf16", "bf16"))
    assert len({page.data.data_ptr() for page in sequence.pages}) == len(sequence.pages) == -(-LONG // 256)
    assert len({bytes(page.data.numpy()) for page in sequence.pages}) == len(sequence.pages)


def test_the_seed_decides() -> None:
    first, same, other = (filled(700, seed=seed).export() for seed in (1, 1, 2))
    assert torch.equal(first.pages[0], same.pages[0]) and torch.equal(first.tokens, same.tokens)
    assert not torch.equal(first.pages[0], other.pages[0])


def test_the_network_goes_on_from_it() -> None:
    torch.manual_seed(0)
    network = Transformer(CONFIG)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    sequence = filled(1001)
    with torch.no_grad():
        streams = network(torch.arange(7), [Segment(sequence, 7)])
        assert sequence.length == 1008
        assert bool(network.logits(streams[-1:]).isfinite().all())

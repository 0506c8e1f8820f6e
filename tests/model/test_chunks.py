"""Whole, in chunks and token by token are one function: streams, windows, open rows and entries."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from helpers.networks import forward, random_config, random_network, random_tokens, tiny_config
from helpers.row_by_row import ROW_BY_ROW
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveal.cache.contract import Part, entry_width, open_row_count, parts_of, row_width
from foveal.config import ModelConfig, Numerics
from foveal.model import PlainState, Segment, Transformer
from foveal.model.state import OpenRows

pytestmark = pytest.mark.slow

CONFIG = tiny_config()
QUANTISED = tiny_config(
    hidden_size=32,
    moe_intermediate_size=32,
    num_hidden_layers=3,
    compress_ratios=(4, 128, 4),
    linear_dtype="fp8",
    expert_dtype="fp4",
)
BORDERS = [*range(1, 10), 127, 128, 129, 130, 255, 256, 257, 383, 384, 385, 511, 512, 513]
LENGTH = 519


def assert_same_state(one: PlainState, other: PlainState, *, atol: float) -> None:
    """All that two sequences remember."""

    def close(a: Tensor, b: Tensor, what: str) -> None:
        torch.testing.assert_close(a, b, rtol=0, atol=atol, msg=lambda text: f"{what}: {text}")

    assert torch.equal(one.tokens, other.tokens) and one.length == other.length
    for layer in range(len(one.config.compress_ratios)):
        close(one.window(layer), other.window(layer), f"window of layer {layer}")
        for part in parts_of(one.config, layer):
            close(one.entries(layer, part), other.entries(layer, part), f"{part} entries of layer {layer}")
            for a, b in zip(_pair(one.open_rows(layer, part)), _pair(other.open_rows(layer, part)), strict=True):
                close(a, b, f"open {part} rows of layer {layer}")


def _pair(rows: OpenRows) -> tuple[Tensor, Tensor]:
    return rows.kv, rows.gate


def run(model: Transformer, tokens: Tensor, cuts: Sequence[int] = ()) -> tuple[Tensor, PlainState]:
    state = PlainState(model.config)
    return forward(model, tokens, state, cuts), state


@pytest.fixture(scope="module")
def whole() -> tuple[Transformer, Tensor, Tensor, PlainState]:
    model = random_network(CONFIG, 1)
    tokens = random_tokens(CONFIG, LENGTH, 1)
    return model, tokens, *run(model, tokens)


def compare(whole: tuple[Transformer, Tensor, Tensor, PlainState], cuts: Sequence[int], count: int = LENGTH) -> None:
    model, tokens, streams, state = whole
    cut_streams, cut_state = run(model, tokens[:count], cuts)
    # Streams grow to about 15 here, where 1e-5 is ten units in the last place.
    torch.testing.assert_close(cut_streams, streams[:count], rtol=1e-6, atol=2e-5)
    if count == LENGTH:
        assert_same_state(cut_state, state, atol=1e-5)


@pytest.mark.parametrize("cut", BORDERS)
def test_two_pieces(whole: tuple[Transformer, Tensor, Tensor, PlainState], cut: int) -> None:
    compare(whole, [cut])


@pytest.mark.parametrize("size", [3, 5, 64, 127, 129])
def test_pieces_of_one_size(whole: tuple[Transformer, Tensor, Tensor, PlainState], size: int) -> None:
    compare(whole, range(size, LENGTH, size))


def test_token_by_token(whole: tuple[Transformer, Tensor, Tensor, PlainState]) -> None:
    """The first 140 tokens one at a time, then the rest."""
    compare(whole, range(1, 140))


def test_all_borders_at_once(whole: tuple[Transformer, Tensor, Tensor, PlainState]) -> None:
    compare(whole, BORDERS)


@given(cuts=st.lists(st.integers(1, 270), max_size=12), count=st.integers(1, 271))
@settings(max_examples=15)
def test_any_cuts(whole: tuple[Transformer, Tensor, Tensor, PlainState], cuts: list[int], count: int) -> None:
    """Later tokens change nothing either: a prefix of the text gives a prefix of the streams."""
    compare(whole, cuts, count)


@pytest.mark.parametrize("seed", range(100, 108))
def test_any_shape(seed: int) -> None:
    model, tokens = random_network(random_config(seed), seed), random_tokens(random_config(seed), 140, seed)
    compare_streams, compare_state = run(model, tokens)
    streams, state = run(model, tokens, [*range(1, 10), 77, 127, 128, 131])
    torch.testing.assert_close(streams, compare_streams, rtol=1e-5, atol=3e-5)
    assert_same_state(state, compare_state, atol=3e-5)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 31, 32, 127, 128, 129, 260])
def test_shapes_of_the_state(count: int) -> None:
    """Everything derives from the length: rows of the window, open rows, entries."""
    model = random_network(CONFIG, 1)
    state = PlainState(CONFIG)
    if count:
        forward(model, random_tokens(CONFIG, count, 1), state)
    for layer, ratio in enumerate(CONFIG.compress_ratios):
        assert state.window(layer).shape == (min(count, CONFIG.sliding_window - 1), CONFIG.head_dim)
        for part in parts_of(CONFIG, layer):
            assert state.entries(layer, part).shape == (CONFIG.entries_after(count, layer), entry_width(CONFIG, part))
            rows = (open_row_count(ratio, count), row_width(CONFIG, layer, part))
            assert state.open_rows(layer, part).kv.shape == state.open_rows(layer, part).gate.shape == rows


def test_parts_of_each_kind() -> None:
    assert [parts_of(CONFIG, layer) for layer in range(3)] == [(), (Part.MAIN, Part.INDEX), (Part.MAIN,)]
    assert [open_row_count(4, t) for t in range(10)] == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5]
    assert [open_row_count(128, t) for t in (0, 1, 127, 128, 129, 255, 256)] == [0, 1, 127, 0, 1, 127, 0]


# ---------------------------------------------------------------------- with simulated quantisation


@pytest.fixture(scope="module")
def exact() -> tuple[Transformer, Tensor, Tensor, PlainState]:
    model = random_network(QUANTISED, 5, Numerics(), ROW_BY_ROW)
    tokens = random_tokens(QUANTISED, 131, 5)
    return model, tokens, *run(model, tokens)


@pytest.mark.parametrize("cuts", [[1, 2, 3, 5, 8, 127], [128], range(1, 131)], ids=["few", "two", "single tokens"])
def test_quantised_cuts_are_equal_to_the_bit(
    exact: tuple[Transformer, Tensor, Tensor, PlainState], cuts: Sequence[int]
) -> None:
    """With FP8 and FP4 simulated nothing that the network keeps or computes depends on the cuts. Shown with operations
    that take one token at a time, because a last-bit difference of a matrix product can flip a rounding."""
    model, tokens, streams, state = exact
    cut_streams, cut_state = run(model, tokens, cuts)
    assert torch.equal(cut_streams, streams)
    assert_same_state(cut_state, state, atol=0)


@pytest.mark.parametrize("cuts", [[130], range(1, 150)], ids=["two", "single tokens"])
def test_quantised_cuts_with_ordinary_products(cuts: Sequence[int]) -> None:
    """With ordinary products some roundings flip, by one FP8 or FP4 step (1/16 to 1/4 of a value), and later layers see
    that. The first layer's stored vectors stay all but equal, and the streams within 5 % in the mean."""
    model, tokens = random_network(QUANTISED, 5, Numerics()), random_tokens(QUANTISED, 150, 5)
    streams, state = run(model, tokens)
    cut_streams, cut_state = run(model, tokens, cuts)
    assert ((cut_streams - streams).norm() / streams.norm()).item() < 0.05
    assert (cut_state.window(0) == state.window(0)).float().mean() > 0.99
    assert (cut_state.entries(0, Part.MAIN) == state.entries(0, Part.MAIN)).float().mean() > 0.99


def test_row_by_row_is_the_reference() -> None:
    """The helper's backend computes the same function."""
    tokens = random_tokens(CONFIG, 135, 2)
    ours, _ = run(random_network(CONFIG, 2), tokens)
    rows, _ = run(random_network(CONFIG, 2, ops=ROW_BY_ROW), tokens)
    torch.testing.assert_close(ours, rows, rtol=1e-6, atol=2e-5)


# ---------------------------------------------------------------------- several sequences in one batch


def batched(model: Transformer, texts: list[Tensor], sizes: list[int]) -> tuple[list[Tensor], list[PlainState]]:
    """Each text is fed in pieces of its own size; all that still have tokens share a step."""
    states = [PlainState(model.config) for _ in texts]
    streams: list[list[Tensor]] = [[] for _ in texts]
    pieces = [text.split(size) for text, size in zip(texts, sizes, strict=True)]
    for step in range(max(map(len, pieces))):
        running = [i for i, piece in enumerate(pieces) if step < len(piece)]
        segments = [Segment(states[i], len(pieces[i][step])) for i in running]
        with torch.inference_mode():
            together = model(torch.cat([pieces[i][step] for i in running]), segments)
        for i, part in zip(running, together.split([segment.count for segment in segments]), strict=True):
            streams[i].append(part)
    return list(map(torch.cat, streams)), states


@pytest.mark.parametrize("sizes", [[300, 300, 300, 300], [1, 64, 7, 129], [128, 1, 5, 4]], ids=str)
def test_several_sequences_are_each_as_alone(sizes: list[int]) -> None:
    model = random_network(CONFIG, 9)
    texts = [random_tokens(CONFIG, count, count) for count in (40, 265, 1, 131)]
    streams, states = batched(model, texts, sizes)
    for text, stream, state in zip(texts, streams, states, strict=True):
        alone, alone_state = run(model, text)
        torch.testing.assert_close(stream, alone, rtol=1e-6, atol=2e-5)
        assert_same_state(state, alone_state, atol=1e-5)


def test_several_quantised_sequences_are_equal_to_the_bit() -> None:
    model = random_network(QUANTISED, 9, Numerics(), ROW_BY_ROW)
    texts = [random_tokens(QUANTISED, count, count) for count in (20, 61, 1)]
    streams, states = batched(model, texts, [7, 30, 1])
    for text, stream, state in zip(texts, streams, states, strict=True):
        alone, alone_state = run(model, text)
        assert torch.equal(stream, alone)
        assert_same_state(state, alone_state, atol=0)


# ---------------------------------------------------------------------- what a step refuses


def test_wrong_batches_are_refused_and_leave_the_state_alone() -> None:
    model, state = random_network(CONFIG, 1), PlainState(CONFIG)
    good = random_tokens(CONFIG, 3, 1)
    for tokens, segments, word in (
        (good, [Segment(state, 2)], "add up"),
        (good, [Segment(state, 3), Segment(PlainState(CONFIG), 0)], "add up"),
        (good, [Segment(state, 1), Segment(state, 2)], "same sequence"),
        (torch.tensor([0, 1, CONFIG.vocab_size]), [Segment(state, 3)], f"0 to {CONFIG.vocab_size - 1}"),
        (torch.tensor([0, -1, 2]), [Segment(state, 3)], "0 to"),
    ):
        with pytest.raises(ValueError, match=word):
            model(tokens, segments)
    assert_same_state(state, PlainState(CONFIG), atol=0)


def test_state_follows_the_config_not_the_module() -> None:
    """Window rows are kept up to one less than the sliding window, whatever it is."""
    config: ModelConfig = tiny_config(sliding_window=1)
    _, state = run(random_network(config, 1), random_tokens(config, 9, 1), [4])
    assert all(len(state.window(layer)) == 0 for layer in range(4))

"""A tiny model shape and a deterministic stand-in for the network, shared by the cache's tests.

The stand-in speaks only `SequenceState`, checks what it is given on the way, and computes in integers over 256, so that
sums are exact in fp32 in any order. Its entries depend on the open rows the state hands back.
"""

from __future__ import annotations

import numpy as np

from foveal.cache import CacheFormat, CacheLayout, PagePool, Sequence
from foveal.cache.contract import LayerUpdate, OpenRows, Part, SequenceState, entry_width, parts_of, row_width
from foveal.config import CSA_RATIO, ModelConfig

CONFIG = ModelConfig(
    vocab_size=512,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=2,
    head_dim=32,
    qk_rope_head_dim=8,
    q_lora_rank=16,
    o_groups=1,
    o_lora_rank=16,
    compress_ratios=(0, 4, 128, 4, 0),
    index_n_heads=2,
    index_head_dim=32,
    index_topk=8,
    n_routed_experts=2,
    num_experts_per_tok=1,
    moe_intermediate_size=32,
    num_hash_layers=1,
    routed_scaling_factor=1.0,
)
EXACT = CacheFormat("fp32", "fp32")
FORMATS = (EXACT, CacheFormat("bf16", "bf16"), CacheFormat("fp8", "fp4"), CacheFormat("fp8", "fp8"))
COMPRESSORS = [(layer, part) for layer in range(4) for part in parts_of(CONFIG, layer)]
CUTS = (*range(1, 10), *range(127, 131), *range(255, 258), *range(383, 386), *range(511, 514))
"""Lengths at which the residues mod 4, 128 and 256 change."""


class Broken(Exception):
    """The stand-in network failed on purpose."""


def pool(format: CacheFormat = EXACT, **options: int) -> PagePool:
    return PagePool(CacheLayout(CONFIG, format), **options)


def random_tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, count)


def split(tokens: np.ndarray, size: int) -> list[np.ndarray]:
    """`tokens` in pieces of `size`."""
    return [tokens[start : start + size] for start in range(0, len(tokens), size)]


class PlainState:
    """The definition, as `foveal.model.PlainState` is for tensors: every entry and every window row in plain arrays."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.tokens = np.empty(0, dtype=np.int64)
        count = len(config.compress_ratios)
        self._window = [np.empty((0, config.head_dim), np.float32) for _ in range(count)]
        self._rows: dict[tuple[int, Part], OpenRows] = {}
        self._entries: dict[tuple[int, Part], np.ndarray] = {}
        for layer in range(count):
            for part in parts_of(config, layer):
                none = np.empty((0, row_width(config, layer, part)), np.float32)
                self._rows[layer, part] = OpenRows(none, none)
                self._entries[layer, part] = np.empty((0, entry_width(config, part)), np.float32)

    @property
    def length(self) -> int:
        return len(self.tokens)

    def window(self, layer: int) -> np.ndarray:
        return self._window[layer]

    def open_rows(self, layer: int, part: Part) -> OpenRows:
        return self._rows[layer, part]

    def append(self, layer: int, update: LayerUpdate) -> None:
        keep = self.config.sliding_window - 1
        rows = np.concatenate([self._window[layer], update.window])
        self._window[layer] = rows[max(0, len(rows) - keep) :]
        for part, open_rows in update.open_rows.items():
            self._rows[layer, part] = open_rows
            self._entries[layer, part] = np.concatenate([self._entries[layer, part], update.entries[part]])

    def entries(self, layer: int, part: Part) -> np.ndarray:
        return self._entries[layer, part]

    def advance(self, tokens: np.ndarray) -> None:
        self.tokens = np.concatenate([self.tokens, tokens])


def _values(tokens: np.ndarray, start: int, layer: int, width: int, salt: int) -> np.ndarray:
    """fp32 [n, width]: multiples of 1/256 in -1..1, a function of token, position, layer, channel and salt."""
    position = np.arange(start, start + len(tokens))
    mixed = tokens.astype(np.int64)[:, None] * 7919 + position[:, None] * 104729
    mixed = mixed + np.arange(width) * 1299709 + layer * 15485863 + salt * 32452843
    return (mixed % 509 - 254).astype(np.float32) / np.float32(256)


def _compress(rows: np.ndarray, ratio: int, has_past: bool) -> np.ndarray:
    """Sums of complete windows; with ratio 4 also over the window before, in the other half of the channels."""
    count = len(rows) // ratio
    windows = rows[: count * ratio].reshape(count, ratio, rows.shape[1]).sum(1)
    if ratio != CSA_RATIO:
        return windows
    half = windows.shape[1] // 2
    before = np.concatenate([np.zeros((1, half), np.float32), windows[:-1, :half]]) if count else windows[:, :half]
    return (windows[:, half:] + before)[1 if has_past else 0 :]


def _layer(state: SequenceState, layer: int, tokens: np.ndarray) -> None:
    start, ratio = state.length, CONFIG.compress_ratios[layer]
    window = state.window(layer)
    assert window.shape == (min(start, CONFIG.sliding_window - 1), CONFIG.head_dim)
    opened: dict[Part, OpenRows] = {}
    entries: dict[Part, np.ndarray] = {}
    for salt, part in enumerate(parts_of(CONFIG, layer), start=1):
        width = row_width(CONFIG, layer, part)
        past = state.open_rows(layer, part)
        kv = np.concatenate([past.kv, _values(tokens, start, layer, width, salt)])
        gate = np.concatenate([past.gate, _values(tokens, start, layer, width, -salt)])
        has_past = ratio == CSA_RATIO and start >= ratio
        entries[part] = _compress(kv + gate, ratio, has_past)
        overlap = ratio if ratio == CSA_RATIO and start + len(tokens) >= ratio else 0
        stays = (start + len(tokens)) % ratio + overlap
        opened[part] = OpenRows(kv[len(kv) - stays :], gate[len(gate) - stays :])
    state.append(layer, LayerUpdate(_values(tokens, start, layer, CONFIG.head_dim, 0), opened, entries))
    for part in opened:
        shape = (CONFIG.entries_after(start + len(tokens), layer), entry_width(CONFIG, part))
        assert state.entries(layer, part).shape == shape


def step(state: SequenceState, tokens: np.ndarray, *, mtp: bool = True, fail_after: int | None = None) -> None:
    """Run `tokens` through the stand-in: all layers, and the MTP block unless told not to; fail after some."""
    for layer in range(CONFIG.num_hidden_layers + mtp):
        if fail_after == layer:
            raise Broken
        _layer(state, layer, tokens)
    if fail_after is not None:
        raise Broken
    state.advance(tokens)


def plain(tokens: np.ndarray) -> PlainState:
    """The definition: all tokens in one step."""
    state = PlainState(CONFIG)
    if len(tokens):
        step(state, tokens)
    return state


def assert_same(sequence: Sequence, expected: PlainState) -> None:
    """`sequence` holds what the definition holds, as its format stores it."""
    layout = sequence.layout
    assert sequence.length == expected.length
    assert np.array_equal(sequence.tokens.astype(np.int64), expected.tokens)
    for layer in range(len(CONFIG.compress_ratios)):
        stored = expected.window(layer).astype(layout.format.window_dtype)
        assert np.array_equal(sequence.window(layer), stored.astype(sequence.dtype))
    for layer, part in COMPRESSORS:
        rows, right = sequence.open_rows(layer, part), expected.open_rows(layer, part)
        assert np.array_equal(rows.kv, right.kv) and np.array_equal(rows.gate, right.gate)
        codec = layout.region(layer, part).codec
        stored = codec.decode(codec.encode(expected.entries(layer, part)), sequence.dtype)
        assert np.array_equal(sequence.entries(layer, part), stored)


def assert_bytes(sequence: Sequence) -> None:
    """Byte accounting is what the layout says, and nothing is behind the entries in the open page."""
    held, needed = sequence.nbytes(), sequence.layout.bytes_at(sequence.length, mtp=True)
    for kind in ("window", "csa_entries", "index_keys", "hca_entries", "open_windows", "tokens"):
        assert getattr(held, kind) == getattr(needed, kind), kind
    assert held.entries + held.reserved == len(sequence.pages) * sequence.layout.page_bytes
    if sequence.length % 256:
        data = sequence.pages[-1].data.copy()
        sequence.pages[-1].clear_after(sequence.layout, sequence.length % 256)
        assert np.array_equal(data, sequence.pages[-1].data)

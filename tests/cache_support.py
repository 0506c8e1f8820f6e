"""A tiny model shape and a deterministic stand-in for the network, shared by the cache's tests.

The stand-in speaks only `SequenceState`, checks what it is given on the way, and computes in integers over 256, so that
sums are exact in fp32 in any order. Its entries depend on the open rows the state hands back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.cache import CacheFormat, CacheLayout, PagePool, Sequence
from foveal.config import CSA_RATIO, ModelConfig
from foveal.model.state import LayerUpdate, OpenRows, Part, PlainState, SequenceState, entry_width, parts_of, row_width

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


def random_tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def _values(tokens: Tensor, start: int, layer: int, width: int, salt: int) -> Tensor:
    """fp32 [n, width]: multiples of 1/256 in -1..1, a function of token, position, layer, channel and salt."""
    position = torch.arange(start, start + len(tokens))
    mixed = tokens.to(torch.int64)[:, None] * 7919 + position[:, None] * 104729
    mixed = mixed + torch.arange(width) * 1299709 + layer * 15485863 + salt * 32452843
    return (mixed % 509 - 254).float() / 256


def _compress(rows: Tensor, ratio: int, has_past: bool) -> Tensor:
    """Sums of complete windows; with ratio 4 also over the window before, in the other half of the channels."""
    count = len(rows) // ratio
    windows = rows[: count * ratio].view(count, ratio, rows.shape[1]).sum(1)
    if ratio != CSA_RATIO:
        return windows
    half = windows.shape[1] // 2
    before = torch.cat([torch.zeros(1, half), windows[:-1, :half]]) if count else windows[:, :half]
    return (windows[:, half:] + before)[1 if has_past else 0 :]


def _layer(state: SequenceState, layer: int, tokens: Tensor) -> None:
    start, ratio = state.length, CONFIG.compress_ratios[layer]
    window = state.window(layer)
    assert window.shape == (min(start, CONFIG.sliding_window - 1), CONFIG.head_dim)
    opened: dict[Part, OpenRows] = {}
    entries: dict[Part, Tensor] = {}
    for salt, part in enumerate(parts_of(CONFIG, layer), start=1):
        width = row_width(CONFIG, layer, part)
        past = state.open_rows(layer, part)
        kv = torch.cat([past.kv, _values(tokens, start, layer, width, salt)])
        gate = torch.cat([past.gate, _values(tokens, start, layer, width, -salt)])
        has_past = ratio == CSA_RATIO and start >= ratio
        entries[part] = _compress(kv + gate, ratio, has_past)
        overlap = ratio if ratio == CSA_RATIO and start + len(tokens) >= ratio else 0
        stays = (start + len(tokens)) % ratio + overlap
        opened[part] = OpenRows(kv[len(kv) - stays :], gate[len(gate) - stays :])
    state.append(layer, LayerUpdate(_values(tokens, start, layer, CONFIG.head_dim, 0), opened, entries))
    for part in opened:
        shape = (CONFIG.entries_after(start + len(tokens), layer), entry_width(CONFIG, part))
        assert state.entries(layer, part).shape == shape


def step(state: SequenceState, tokens: Tensor, *, mtp: bool = True, fail_after: int | None = None) -> None:
    """Run `tokens` through the stand-in: all layers, and the MTP block unless told not to; fail after some."""
    for layer in range(CONFIG.num_hidden_layers + mtp):
        if fail_after == layer:
            raise Broken
        _layer(state, layer, tokens)
    if fail_after is not None:
        raise Broken
    state.advance(tokens)


def plain(tokens: Tensor) -> PlainState:
    """The definition: all tokens in one step."""
    state = PlainState(CONFIG)
    if len(tokens):
        step(state, tokens)
    return state


def assert_same(sequence: Sequence, expected: PlainState) -> None:
    """`sequence` holds what the definition holds, as its format stores it."""
    layout = sequence.layout
    assert sequence.length == expected.length
    assert torch.equal(sequence.tokens.to(torch.int64), expected.tokens)
    for layer in range(len(CONFIG.compress_ratios)):
        stored = expected.window(layer).to(layout.format.window_dtype)
        assert torch.equal(sequence.window(layer), stored.to(sequence.dtype))
    for layer, part in COMPRESSORS:
        rows, right = sequence.open_rows(layer, part), expected.open_rows(layer, part)
        assert torch.equal(rows.kv, right.kv) and torch.equal(rows.gate, right.gate)
        codec = layout.region(layer, part).codec
        stored = codec.decode(codec.encode(expected.entries(layer, part)), sequence.dtype)
        assert torch.equal(sequence.entries(layer, part), stored)


def assert_bytes(sequence: Sequence) -> None:
    """Byte accounting is what the layout says, and nothing is behind the entries in the open page."""
    held, needed = sequence.nbytes(), sequence.layout.bytes_at(sequence.length, mtp=True)
    for kind in ("window", "csa_entries", "index_keys", "hca_entries", "open_windows", "tokens"):
        assert getattr(held, kind) == getattr(needed, kind), kind
    assert held.entries + held.reserved == len(sequence.pages) * sequence.layout.page_bytes
    if sequence.length % 256:
        data = sequence.pages[-1].data.clone()
        sequence.pages[-1].clear_after(sequence.layout, sequence.length % 256)
        assert torch.equal(data, sequence.pages[-1].data)

"""`compress` and `attend` of the reference backend against loops over the formulas."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers import naive
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveal.cache.contract import open_row_count
from foveal.ops import AttendInput, CompressInput, Rotation
from foveal.ops.reference import attend, compress

pytestmark = pytest.mark.slow

EPS = 1e-3
WIDTH = 6


def noise(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(pairs: int = 2) -> Rotation:
    return Rotation(torch.tensor([0.9, 0.13, 0.02])[:pairs])


def floats(x: Tensor) -> naive.Array:
    return x.detach().numpy().astype(np.float64)


# ---------------------------------------------------------------------- compress


def compress_span(kv: Tensor, gate: Tensor, ratio: int, start: int, end: int) -> Tensor:
    """New entries of tokens start..end-1 when everything before `start` was seen: what the streaming state feeds."""
    first = start - open_row_count(ratio, start)
    norm = 1 + 0.2 * noise(WIDTH, seed=1)
    return compress(CompressInput(kv[first:end], gate[first:end], first, start // ratio, ratio, norm, EPS, rotation()))


def naive_entries(kv: Tensor, gate: Tensor, ratio: int, end: int) -> naive.Array:
    norm, turn = floats(1 + 0.2 * noise(WIDTH, seed=1)), floats(rotation().frequencies)
    rows = [
        naive.rotate(naive.rms_norm(naive.entry(floats(kv), floats(gate), s, ratio), norm, EPS), s * ratio, turn)
        for s in range(end // ratio)
    ]
    return np.array(rows).reshape(-1, WIDTH)


def rows_of(ratio: int, count: int) -> tuple[Tensor, Tensor]:
    width = 2 * WIDTH if ratio == 4 else WIDTH
    return noise(count, width, seed=2), 2 * noise(count, width, seed=3)


@pytest.mark.parametrize("count", range(18))
def test_csa_entries_of_any_length(count: int) -> None:
    kv, gate = rows_of(4, count)
    ours = compress_span(kv, gate, 4, 0, count)
    assert ours.shape == (count // 4, WIDTH)
    np.testing.assert_allclose(floats(ours), naive_entries(kv, gate, 4, count), atol=1e-5)


@pytest.mark.parametrize("start", range(13))
def test_csa_entries_from_any_open_state(start: int) -> None:
    """What lies open at `start` and any number of new tokens give exactly the entries that are new."""
    kv, gate = rows_of(4, 24)
    expected = naive_entries(kv, gate, 4, 24)
    for end in range(start + 1, 25):
        ours = compress_span(kv, gate, 4, start, end)
        np.testing.assert_allclose(floats(ours), expected[start // 4 : end // 4], atol=1e-5)


@pytest.mark.parametrize("start", [0, 1, 64, 126, 127, 128, 129, 200, 255, 256])
def test_hca_entries_from_any_open_state(start: int) -> None:
    kv, gate = rows_of(128, 386)
    expected = naive_entries(kv, gate, 128, 386)
    for end in (start + 1, start + 2, 127, 128, 129, 255, 256, 257, 383, 384, 386):
        if end > start:
            ours = compress_span(kv, gate, 128, start, end)
            np.testing.assert_allclose(floats(ours), expected[start // 128 : end // 128], atol=1e-5)


def test_every_residue_completes_each_hca_window_once() -> None:
    """One token at a time: the 128th gives the entry, no other gives any."""
    kv, gate = rows_of(128, 260)
    counts = [len(compress_span(kv, gate, 128, t, t + 1)) for t in range(260)]
    assert [t for t, count in enumerate(counts) if count] == [127, 255]


def test_first_csa_entry_ignores_the_missing_window_before() -> None:
    """Its F halves would count if they were read: they are set to values that dominate."""
    kv, gate = rows_of(4, 4)
    kv[:, :WIDTH], gate[:, :WIDTH] = 100.0, 50.0
    ours = compress_span(kv, gate, 4, 0, 4)
    np.testing.assert_allclose(floats(ours), naive_entries(kv, gate, 4, 4), atol=1e-5)


def test_huge_gates_do_not_overflow() -> None:
    kv, gate = rows_of(4, 8)
    assert torch.isfinite(compress_span(kv, gate * 1e4, 4, 0, 8)).all()


@pytest.mark.parametrize("ratio", [4, 128])
def test_gradient_of_compress(ratio: int) -> None:
    """Against finite differences in fp64. (CSA: the F half of the last window has gradient zero; it waits.)"""
    count, width = (9, 4) if ratio == 4 else (129, 2)
    kv, gate = (noise(count, width, seed=s, dtype=torch.float64).requires_grad_() for s in (4, 5))
    norm = noise(width // 2 if ratio == 4 else width, seed=6, dtype=torch.float64).requires_grad_()

    def function(kv: Tensor, gate: Tensor, norm: Tensor) -> Tensor:
        turn = Rotation(torch.tensor([0.3], dtype=torch.float64))
        return compress(CompressInput(kv, gate, 0, 0, ratio, norm, EPS, turn))

    # Rotary tables are fp32 by definition, so differences are exact only to that precision.
    assert torch.autograd.gradcheck(function, (kv, gate, norm), eps=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- attend

HEADS = 3


def attend_input(count: int, past: int, window: int, ratio: int, *, seed: int, topk: int | None = None) -> AttendInput:
    """`count` tokens after `past` others; entries of all complete windows; random picks when `topk` is given."""
    total = past + count
    entries = noise(total // ratio if ratio else 0, WIDTH, seed=seed + 1)
    positions = torch.arange(past, total)
    indices = None
    if topk is not None:
        indices = torch.full((count, min(topk, len(entries))), -1)
        order = torch.Generator().manual_seed(seed)
        for i, position in enumerate(positions.tolist()):
            visible = (position + 1) // ratio
            picked = torch.randperm(visible, generator=order)[: indices.shape[1]].sort().values
            indices[i, : len(picked)] = picked
    return AttendInput(
        query=2 * noise(count, HEADS, WIDTH, seed=seed + 2),
        positions=positions,
        window=noise(min(past, window - 1) + count, WIDTH, seed=seed + 3),
        window_size=window,
        entries=entries,
        indices=indices,
        ratio=ratio,
        sink=noise(HEADS, seed=seed + 4),
        rotation=rotation(),
    )


def check_attend(x: AttendInput) -> None:
    """Outputs of all tokens, and the mass of the last ones, against the loops."""
    count = len(x.query)
    rows = min(count, 5)
    out, mass = attend(x, trace=rows)
    assert mass is not None
    untraced, nothing = attend(x)
    assert nothing is None and torch.equal(out, untraced)
    assert mass.window.shape == (rows, x.window_size)
    first = int(x.positions[0]) + count - len(x.window)
    raw = np.concatenate([np.full((first, WIDTH), np.nan), floats(x.window)])
    for i, position in enumerate(x.positions.tolist()):
        seen = _seen(x, i, position)
        expected, entry_mass, window_mass = naive.attend_token(
            floats(x.query[i]), position, raw, floats(x.entries), seen, floats(x.sink), x.window_size
        )
        turned = [naive.rotate(head, -position, floats(x.rotation.frequencies)) for head in expected]
        np.testing.assert_allclose(floats(out[i]), turned, atol=2e-5)
        if i >= count - rows:
            row = i - count + rows
            np.testing.assert_allclose(floats(mass.window[row]), window_mass, atol=1e-5)
            on = np.zeros(len(x.entries))
            if x.indices is None:
                on[: mass.entries.shape[1]] = floats(mass.entries[row])
            else:
                for slot, entry in enumerate(x.indices[i].tolist()):
                    assert entry >= 0 or mass.entries[row, slot] == 0
                    on[entry] += float(mass.entries[row, slot]) if entry >= 0 else 0.0
            np.testing.assert_allclose(on, entry_mass, atol=1e-5)
            into_sinks = HEADS - floats(mass.window[row]).sum() - floats(mass.entries[row]).sum()
            assert 0 < into_sinks < HEADS


def _seen(x: AttendInput, i: int, position: int) -> list[int]:
    if x.indices is not None:
        return [s for s in x.indices[i].tolist() if s >= 0]
    return list(range((position + 1) // x.ratio)) if x.ratio else []


@pytest.mark.parametrize("window", [1, 2, 3, 16, 40])
@pytest.mark.parametrize("past", [0, 1, 15, 60])
@pytest.mark.parametrize("ratio", [0, 4])
def test_attend_small_windows(window: int, past: int, ratio: int) -> None:
    check_attend(attend_input(21, past, window, ratio, seed=past))


@pytest.mark.parametrize(("count", "past"), [(1, 0), (1, 127), (1, 400), (2, 254), (130, 0), (129, 130), (260, 5)])
@pytest.mark.parametrize(("ratio", "topk"), [(0, None), (4, None), (4, 7), (128, None)])
def test_attend_blocks_of_tokens(count: int, past: int, ratio: int, topk: int | None) -> None:
    """Longer than the block the reference works in, with V4's window of 128."""
    check_attend(attend_input(count, past, 128, ratio, seed=count, topk=topk))


@given(
    count=st.integers(1, 12),
    past=st.integers(0, 30),
    window=st.integers(1, 20),
    ratio=st.sampled_from([0, 4, 128]),
    topk=st.one_of(st.none(), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_attend_anything(count: int, past: int, window: int, ratio: int, topk: int | None, seed: int) -> None:
    check_attend(attend_input(count, past, window, ratio, seed=seed, topk=topk if ratio == 4 else None))


def test_trace_of_many_rows_over_blocks() -> None:
    """Traced rows that lie in several blocks join to one table, short rows padded with nothing."""
    x = attend_input(300, 3, 128, 4, seed=1)
    _, whole = attend(x, trace=300)
    assert whole is not None and whole.entries.shape == (300, 303 // 4)
    for rows in (1, 43, 44, 45, 172, 173):
        _, mass = attend(x, trace=rows)
        assert mass is not None
        assert torch.equal(mass.window, whole.window[-rows:]) and torch.equal(mass.entries, whole.entries[-rows:])
    visible = (x.positions + 1) // 4
    hidden = torch.arange(75) >= visible.unsqueeze(1)
    assert (whole.entries[hidden] == 0).all()


def test_an_overwhelming_sink_takes_everything() -> None:
    x = attend_input(4, 9, 8, 4, seed=0)
    out, mass = attend(dataclasses.replace(x, sink=torch.full((HEADS,), 80.0)), trace=4)
    assert mass is not None and out.abs().max() < 1e-20 and mass.window.sum() < 1e-20
    out, mass = attend(dataclasses.replace(x, sink=torch.full((HEADS,), -80.0)), trace=4)
    assert mass is not None
    torch.testing.assert_close(mass.window.sum(1) + mass.entries.sum(1), torch.full((4,), float(HEADS)))


def test_only_unused_slots() -> None:
    """A token whose picks are all -1 sees its window alone."""
    x = attend_input(3, 20, 4, 4, seed=0, topk=2)
    blind = attend(dataclasses.replace(x, indices=torch.full_like(x.indices, -1) if x.indices is not None else None))[0]
    without = attend(dataclasses.replace(x, entries=x.entries[:0], indices=None, ratio=0))[0]
    torch.testing.assert_close(blind, without)


def test_indices_of_all_visible_entries_equal_none() -> None:
    x = attend_input(9, 30, 8, 4, seed=3)
    columns = torch.arange(len(x.entries)).expand(9, -1)
    every = torch.where(columns < ((x.positions + 1) // 4).unsqueeze(1), columns, -1)
    torch.testing.assert_close(attend(dataclasses.replace(x, indices=every))[0], attend(x)[0])


@pytest.mark.parametrize("topk", [None, 2])
def test_gradient_of_attend(topk: int | None) -> None:
    x = attend_input(5, 8, 4, 4, seed=7, topk=topk)
    names = ("query", "window", "entries", "sink")
    inputs = [getattr(x, name).to(torch.float64).requires_grad_() for name in names]
    turn = Rotation(x.rotation.frequencies.to(torch.float64))

    def function(*values: Tensor) -> Tensor:
        return attend(dataclasses.replace(x, rotation=turn, **dict(zip(names, values, strict=True))))[0]

    assert torch.autograd.gradcheck(function, inputs, eps=1e-5, atol=1e-5)


def test_mass_carries_no_gradient() -> None:
    x = attend_input(3, 8, 4, 4, seed=7)
    x.query.requires_grad_()
    _, mass = attend(x, trace=3)
    assert mass is not None and not mass.entries.requires_grad and not mass.window.requires_grad

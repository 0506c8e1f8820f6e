"""Native attention against the reference on every instruction set: values, and sums that never depend on company."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.attend_jobs import Case, Job, make
from helpers.formats import decode_kv_fp8
from helpers.scratch import assert_scratch_settles
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal import _native
from foveal.backends.reference.native_ops import attention as cpu_attend
from foveal.ops import AttendInput, Rotation
from foveal.ops.reference import attend as reference

ISAS = _native.available_isas()
EXACT = {"f32": 2e-5, "bf16": 5e-5, "fp8": 5e-5}
"""Largest error against fp32 for numbers of about 1, `exact`: fp32 sums, or BF16 numbers in two terms."""
ROUNDED = 2.0**-8
"""For queries that are BF16 numbers, relative to the largest value: each weight is rounded to BF16 (2^-9, and rotation
may add two errors)."""


def check(job: Job, runtime: _native.Runtime, exact: bool, trace: int = 0) -> None:
    codecs = {job.case.window_codec, job.case.entry_codec if job.case.ratio else job.case.window_codec}
    error = max(EXACT[codec] for codec in codecs)
    rounded = 0.0
    if not exact and codecs != {"f32"}:
        job = dataclasses.replace(job, x=dataclasses.replace(job.x, query=job.x.query.bfloat16().float()))
        rounded = ROUNDED * max(float(part.abs().max()) for part in (job.x.window, job.x.entries) if len(part))
    ours = job.run(runtime, trace=trace)
    expected, mass = reference(job.x, trace=trace)
    torch.testing.assert_close(ours[0], expected, atol=error + rounded, rtol=0)
    if mass is None:
        return
    entries = torch.zeros_like(ours[1])
    entries[:, : mass.entries.shape[1]] = mass.entries
    error *= job.case.heads
    torch.testing.assert_close(ours[1], entries, atol=error, rtol=0)
    torch.testing.assert_close(ours[2], mass.window, atol=error, rtol=0)
    assert (ours[1].sum(1) + ours[2].sum(1) < job.case.heads).all(), "the sink has a share of every head"


SHAPES = {
    "window alone": Case(5, 3, 40, 8, 0, 0, 30),
    "one number": Case(1, 1, 2, 1, 0, 0, 0),
    "odd width": Case(3, 2, 37, 5, 2, 0, 21),
    "chosen, one token": Case(1, 8, 64, 128, 4, 128, 1000, rotary=16),
    "chosen, several tokens": Case(11, 4, 96, 20, 4, 33, 300, rotary=16),
    "fewer entries than asked for": Case(9, 5, 64, 16, 4, 40, 7),
    "dense": Case(7, 8, 64, 128, 128, 0, 2500, rotary=16, per_page=2),
    "many segments": Case(2, 3, 48, 7, 1, 0, 1100, per_page=3),
    "wide": Case(2, 16, 512, 128, 4, 200, 900, rotary=64),
    "more heads than a task takes": Case(2, 70, 256, 16, 4, 30, 200, rotary=64),
    "window of many tiles": Case(4, 2, 32, 300, 4, 10, 1000),
    "from nothing": Case(150, 2, 32, 20, 4, 6, 0),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference(shape: str, exact: bool, isa: str) -> None:
    for threads in (1, 2):
        runtime = _native.Runtime(threads=threads, isa=isa, exact=exact)
        check(make(SHAPES[shape], seed=threads), runtime, exact, trace=SHAPES[shape].n // 2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("entries", ["f32", "bf16", "fp8"])
@pytest.mark.parametrize("window", ["f32", "bf16"])
def test_every_pair_of_codecs(window: str, entries: str, exact: bool, isa: str) -> None:
    runtime = _native.Runtime(threads=2, isa=isa, exact=exact)
    for case in (
        Case(6, 4, 200, 24, 4, 20, 90, rotary=32, per_page=3),
        Case(6, 4, 200, 24, 4, 0, 90, rotary=32, per_page=3),
        Case(2, 3, 65, 24, 4, 9, 90, rotary=16),
    ):
        check(make(dataclasses.replace(case, window_codec=window, entry_codec=entries), 3), runtime, exact, trace=1)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    ratio = draw(st.sampled_from([0, 1, 2, 4, 128]))
    width = draw(st.integers(1, 140))
    return Case(
        n=draw(st.integers(1, 20)),
        heads=draw(st.integers(1, 20)),
        width=width,
        window=draw(st.integers(1, 90)),
        ratio=ratio,
        k=draw(st.sampled_from([0, 1, 5, 64, 70])) if ratio else 0,
        position=draw(st.integers(0, 200)),
        rotary=2 * draw(st.integers(0, width // 2)) or 2 * (width > 1),
        window_codec=draw(st.sampled_from(["f32", "bf16"])),
        entry_codec=draw(st.sampled_from(["f32", "bf16", "fp8"])),
        per_page=draw(st.integers(1, 9)),
        offset=draw(st.sampled_from([0, 8, 24])),
    )


@given(
    cases().filter(lambda case: case.rotary > 0 and (case.count > 0 or not case.k)),
    st.sampled_from(ISAS),
    st.integers(1, 3),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_sizes(case: Case, isa: str, threads: int, exact: bool) -> None:
    check(make(case, 4), _native.Runtime(threads=threads, isa=isa, exact=exact), exact, trace=min(2, case.n))


@pytest.mark.parametrize("isa", ISAS)
def test_queries_are_rounded_once(isa: str) -> None:
    """Not `exact`: a query and its nearest BF16 numbers are the same thing."""
    runtime = _native.Runtime(threads=1, isa=isa)
    job = make(SHAPES["wide"], 12)
    rounded = dataclasses.replace(job, x=dataclasses.replace(job.x, query=job.x.query.bfloat16().float()))
    assert torch.equal(job.run(runtime)[0], rounded.run(runtime)[0])


PARTS = {
    "window": Case(110, 8, 64, 100, 0, 0, 333),
    "dense": Case(110, 8, 64, 33, 8, 0, 2900, per_page=16),
    "chosen": Case(40, 8, 64, 33, 4, 300, 1500, per_page=16, entry_codec="fp8"),
    "few heads": Case(40, 3, 130, 33, 4, 70, 500, entry_codec="f32"),
    "few heads, wide": Case(12, 9, 512, 90, 4, 60, 700, rotary=64),
    "few heads, wide, dense": Case(12, 11, 384, 90, 2, 0, 900, rotary=64, entry_codec="fp8"),
    "many heads": Case(9, 66, 256, 33, 4, 70, 500, rotary=64, per_page=5),
    "from nothing": Case(140, 5, 33, 40, 2, 0, 0, window_codec="f32"),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("shape", PARTS)
def test_a_token_is_the_same_alone_and_among_others(shape: str, exact: bool, isa: str) -> None:
    job = make(PARTS[shape], 5)
    n = job.case.n
    whole = job.run(_native.Runtime(threads=1, isa=isa, exact=exact))[0]
    for threads in (1, 2, 3):
        runtime = _native.Runtime(threads=threads, isa=isa, exact=exact)
        assert torch.equal(job.run(runtime)[0], whole)
        for size in (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 64, 100):
            for first in {0, n // 3, n - size} if size < 9 else {n - size}:
                if 0 <= first <= n - size:
                    assert torch.equal(job.run(runtime, first, first + size)[0], whole[first : first + size]), (
                        size,
                        first,
                    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_sequences_together_are_as_alone(threads: int, isa: str) -> None:
    """Jobs of one call have nothing to do with each other, whatever their sizes."""
    runtime = _native.Runtime(threads=threads, isa=isa)
    jobs = [make(case, 6) for case in SHAPES.values()]
    outs = [torch.empty_like(job.x.query) for job in jobs]
    _native.attend(runtime, [job.native(0, None, out)[0] for job, out in zip(jobs, outs, strict=True)])
    for job, out in zip(jobs, outs, strict=True):
        assert torch.equal(out, job.run(runtime)[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", ["f32", "bf16"])
def test_a_trace_changes_nothing(codec: str, isa: str) -> None:
    runtime = _native.Runtime(threads=2, isa=isa)
    job = make(dataclasses.replace(PARTS["chosen"], window_codec=codec), 7)
    assert torch.equal(job.run(runtime, trace=5)[0], job.run(runtime)[0])


@pytest.mark.parametrize("isa", ISAS)
def test_weights_may_be_extreme(isa: str) -> None:
    """Huge logits, sinks that take all or nothing: finite, and right."""
    job = make(Case(4, 6, 64, 16, 4, 0, 300), 8)
    runtime = _native.Runtime(threads=1, isa=isa, exact=True)
    for sink, scale in ((-float("inf"), 1.0), (-1e4, 1.0), (200.0, 1.0), (0.0, 200.0)):
        x = dataclasses.replace(job.x, query=job.x.query * scale, sink=torch.full((6,), sink))
        changed = dataclasses.replace(job, x=x)
        ours, expected = changed.run(runtime)[0], reference(x)[0]
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, expected, atol=2e-2 if scale > 1 else 5e-5, rtol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_every_fp8_code_and_scale(isa: str) -> None:
    """A token that sees one entry with a weight of nearly 1 returns it: all codes, scales near and at the limits."""
    width, runtime = 256, _native.Runtime(threads=1, isa=isa)
    codes = torch.arange(256, dtype=torch.uint8)
    for scale in (0, 1, 20, 27, 100, 127, 134, 200, 227, 240, 255):
        packed = torch.cat([codes, torch.full((4,), scale, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)])
        value = decode_kv_fp8(packed[None, : width + 8], width, 0)[0]
        job = Job(
            Case(1, 1, width, 1, 1, 1, 0, rotary=0, entry_codec="fp8", per_page=1, offset=0),
            AttendInput(
                torch.zeros(1, 1, width),
                torch.zeros(1, dtype=torch.int64),
                torch.zeros(1, width),
                1,
                value[None],
                torch.zeros(1, 1, dtype=torch.int64),
                1,
                torch.full((1,), -1e30),
                Rotation(torch.zeros(0)),
            ),
            torch.zeros(1, width),
            [packed],
        )
        out = dataclasses.replace(job, case=dataclasses.replace(job.case, window_codec="f32")).run(runtime)[0][0, 0]
        if value.isnan().any():  # 0 * NaN: the logit is NaN, and all is
            assert out.isnan().all()
            packed[[127, 255]] = 0
            value[[127, 255]] = 0.0
            if scale == 255:
                continue
            out = dataclasses.replace(job, case=dataclasses.replace(job.case, window_codec="f32")).run(runtime)[0][0, 0]
        normal = (value.abs() >= 2.0**-125) | (value == 0)
        torch.testing.assert_close(out[normal], value[normal] / 2, atol=0, rtol=0)


def test_nothing_is_allocated_in_the_steady_state() -> None:
    runtime = _native.Runtime(threads=2)
    jobs = [make(case, 9) for case in SHAPES.values()]
    assert_scratch_settles(runtime, lambda: [job.run(runtime) for job in jobs])


@pytest.mark.parametrize("trace", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operation_on_tensors(dtype: torch.dtype, trace: int) -> None:
    for shape in ("window alone", "dense", "chosen, several tokens"):
        x = make(SHAPES[shape], 10).x
        stored = dataclasses.replace(x, window=x.window.to(dtype), entries=x.entries.to(dtype))
        ours, mass = cpu_attend.attend(stored, trace=trace)
        expected, expected_mass = reference(x, trace=trace)
        torch.testing.assert_close(ours, expected, atol=5e-5, rtol=0)
        assert (mass is None) == (expected_mass is None)
        if mass is not None and expected_mass is not None:
            width = expected_mass.entries.shape[1]
            torch.testing.assert_close(mass.entries[:, :width], expected_mass.entries, atol=2e-4, rtol=0)
            torch.testing.assert_close(mass.window, expected_mass.window, atol=2e-4, rtol=0)


def test_no_tokens() -> None:
    x = make(SHAPES["dense"], 11).x
    empty = dataclasses.replace(x, query=x.query[:0], positions=x.positions[:0], window=x.window[:-7])
    assert cpu_attend.attend(empty)[0].shape == (0, 8, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sink": torch.zeros(3)}, "sink"),
        ({"out": torch.zeros(1, 2, 8)}, "out"),
        ({"frequencies": torch.zeros(5)}, "rotate"),
        ({"fresh": torch.zeros(2, 8)}, "fresh rows"),
        ({"position": 40, "length": 40}, "looks back"),
        ({"window_size": 0}, "window"),
        ({"window_codec": "fp8"}, "raw rows"),
        ({"entry_codec": "int4"}, "codec"),
        ({"ratio": 1}, "sees 1 entries"),
        ({"ratio": 1, "count": 1}, "pages"),
        ({"indices": torch.zeros(1, 1, dtype=torch.int32)}, "indices"),
        ({"entry_mass": torch.zeros(1, 0)}, "trace"),
    ],
)
def test_wrong_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "query": torch.zeros(1, 1, 8),
        "position": 0,
        "out": torch.zeros(1, 1, 8),
        "sink": torch.zeros(1),
        "frequencies": torch.zeros(2),
        "fresh": torch.zeros(1, 8),
        "length": 0,
        "window_codec": "f32",
        "window_size": 4,
        "entry_codec": "f32",
    }
    _native.AttendJob(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        _native.AttendJob(**{**good, **changes})  # type: ignore[arg-type]

"""Sequences that begin with the same pages are attended together: each gets the bits that it gets alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.attend_jobs import Case, Job, make
from helpers.scratch import assert_scratch_settles
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal import _native

ISAS = _native.available_isas()
STRETCH = 256
"""Entries of a segment (`kStretch` in native/kernels): shared stretches are whole ones."""


def agents(cases: list[Case], seed: int, trunks: list[tuple[int, int, int]]) -> list[Job]:
    """Jobs of one layer. Each trunk (first, last, pages) gives jobs [first, last) the same first pages."""
    jobs = [make(case, seed + number) for number, case in enumerate(cases)]
    layer = jobs[0].x
    jobs = [
        dataclasses.replace(
            job, x=dataclasses.replace(job.x, sink=layer.sink[: job.case.heads], rotation=layer.rotation)
        )
        for job in jobs
    ]
    for first, last, pages in trunks:
        for job in jobs[first + 1 : last]:
            whole = min(pages, job.case.count // job.case.per_page, jobs[first].case.count // job.case.per_page)
            job.pages[:whole] = jobs[first].pages[:whole]
    return jobs


def choosing_alike(jobs: list[Job], seed: int) -> list[Job]:
    """The same jobs, whose tokens choose mostly what the very first one does, and a little of their own."""
    generator, lists = torch.Generator().manual_seed(seed), []
    first = jobs[0].x.indices
    assert first is not None
    for job in jobs:
        assert job.x.indices is not None
        indices = job.x.indices.clone()
        for row, position in enumerate(job.x.positions.tolist()):
            known = first[0][first[0] < (position + 1) // job.case.ratio]
            kept = known[torch.rand(len(known), generator=generator) < 0.9]
            own = indices[row][indices[row] >= 0][: job.case.k // 20]
            chosen = torch.cat([kept, own]).unique()[: job.case.k]
            indices[row] = torch.cat([chosen, torch.full((job.case.k - len(chosen),), -1)])
        lists.append(dataclasses.replace(job, x=dataclasses.replace(job.x, indices=indices)))
    return lists


def together(jobs: list[Job], runtime: _native.Runtime) -> list[torch.Tensor]:
    outs = [torch.full_like(job.x.query, float("nan")) for job in jobs]
    _native.attend(runtime, [job.native(0, None, out)[0] for job, out in zip(jobs, outs, strict=True)])
    return outs


def check(jobs: list[Job], isa: str, exact: bool, threads: int = 2) -> None:
    runtime = _native.Runtime(threads=threads, isa=isa, exact=exact)
    for number, (job, out) in enumerate(zip(jobs, together(jobs, runtime), strict=True)):
        assert torch.equal(out, job.run(_native.Runtime(threads=1, isa=isa, exact=exact))[0]), number


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("codec", ["f32", "bf16", "fp8"])
def test_agents_on_one_base(codec: str, exact: bool, isa: str) -> None:
    """Eight of them, each some tokens further; the base ends inside a stretch, inside a page and at a page's end."""
    base = Case(1, 5, 130, 20, 2, 0, 1530, rotary=32, entry_codec=codec, per_page=2)
    for pages in (381, 384, 385):
        cases = [dataclasses.replace(base, n=1 + number % 3, position=1530 + 7 * number) for number in range(8)]
        for threads in (1, 2):
            check(agents(cases, 20, [(0, 8, pages)]), isa, exact, threads)


@pytest.mark.parametrize("isa", ISAS)
def test_groups_inside_groups(isa: str) -> None:
    """All share a little, some of them much more, one nothing: a trunk that parts twice."""
    base = Case(1, 8, 64, 16, 1, 0, 1300, rotary=16, per_page=16, entry_codec="fp8")
    jobs = agents([base] * 9, 30, [(0, 8, 20), (1, 4, 40), (4, 8, 66), (5, 7, 81)])
    check(jobs, isa, exact=False)


@pytest.mark.parametrize("isa", ISAS)
def test_more_agents_than_one_task_takes(isa: str) -> None:
    base = Case(1, 20, 40, 16, 1, 0, 600, rotary=16, per_page=16)
    check(agents([base] * 30, 40, [(0, 30, 40)]), isa, exact=False)


def test_what_differs_is_not_shared() -> None:
    """The same pages, but another offset, another number of heads, chosen entries, many tokens, or too few entries."""
    base = Case(2, 5, 64, 16, 1, 0, 700, rotary=16, per_page=16)
    kinds = [base, base, dataclasses.replace(base, heads=4), dataclasses.replace(base, k=30), base]
    kinds += [dataclasses.replace(base, n=40), dataclasses.replace(base, position=200), base]
    check(agents(kinds, 50, [(0, 8, 43)]), ISAS[0], exact=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("width", [130, 37, 64])
def test_agents_that_choose_alike(width: int, exact: bool, isa: str) -> None:
    """Their entries are decoded once, those behind the base for each. A job alone has several tokens as well."""
    base = Case(1, 5, width, 20, 4, 100, 3000, rotary=32, entry_codec="fp8", per_page=16)
    cases = [dataclasses.replace(base, n=1 + number % 3, position=3000 + 90 * number) for number in range(8)]
    for pages in (30, 46, 47):
        jobs = choosing_alike(agents(cases, 70, [(0, 6, pages)]), 71)
        for threads in (1, 2):
            check(jobs, isa, exact, threads)
        check([*jobs[:3], *agents([base] * 3, 80, [])], isa, exact)


def test_a_trace_of_agents_that_choose_alike() -> None:
    base = Case(2, 5, 64, 20, 4, 60, 900, rotary=32, entry_codec="fp8", per_page=16)
    jobs = choosing_alike(agents([base] * 4, 90, [(0, 4, 14)]), 91)
    runtime = _native.Runtime(threads=2)
    outs = [torch.full_like(job.x.query, float("nan")) for job in jobs]
    natives = [job.native(0, None, out, trace=1) for job, out in zip(jobs, outs, strict=True)]
    _native.attend(runtime, [native for native, _ in natives])
    for job, out, (_, masses) in zip(jobs, outs, natives, strict=True):
        alone = [job.run(runtime, number, number + 1, trace=1) for number in range(2)]
        assert torch.equal(out, torch.cat([each[0] for each in alone]))
        assert all(torch.equal(a, b) for a, b in zip(masses, alone[1][1:], strict=True))


@given(data=st.data(), isa=st.sampled_from(ISAS), threads=st.integers(1, 3), exact=st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_company(data: st.DataObject, isa: str, threads: int, exact: bool) -> None:
    width = data.draw(st.integers(2, 90))
    base = Case(
        n=1,
        heads=data.draw(st.integers(1, 20)),
        width=width,
        window=data.draw(st.integers(1, 40)),
        ratio=data.draw(st.sampled_from([1, 2, 4])),
        k=data.draw(st.sampled_from([0, 0, 40])),
        position=0,
        rotary=2 * data.draw(st.integers(1, width // 2)),
        window_codec=data.draw(st.sampled_from(["f32", "bf16"])),
        entry_codec=data.draw(st.sampled_from(["f32", "bf16", "fp8"])),
        per_page=data.draw(st.sampled_from([1, 2, 3, 16, 64])),
    )
    entries = st.integers(STRETCH - 9, 3 * STRETCH + 9)
    cases = [
        dataclasses.replace(base, n=data.draw(st.integers(1, 7)), position=data.draw(entries) * base.ratio)
        for _ in range(data.draw(st.integers(2, 7)))
    ]
    ends = st.integers(0, len(cases))
    pages = st.integers(0, 3 * STRETCH // base.per_page)
    trunks = data.draw(st.lists(st.tuples(ends, ends, pages), max_size=4))
    jobs = agents(cases, data.draw(st.integers(0, 99)), [t for t in trunks if t[0] < t[1]])
    check(choosing_alike(jobs, 100) if base.k else jobs, isa, exact, threads)


def test_nothing_is_allocated_in_the_steady_state() -> None:
    runtime = _native.Runtime(threads=2)
    base = Case(1, 8, 64, 16, 1, 0, 1300, rotary=16, per_page=16)
    jobs = agents([base] * 6, 60, [(0, 6, 40), (2, 5, 80)])
    assert_scratch_settles(runtime, lambda: together(jobs, runtime))


def test_many_agents_take_no_more_memory_than_some() -> None:
    """What is kept of stretches until they are joined has a bound: of all 400 at once it would fill 250 MiB."""
    runtime = _native.Runtime(threads=2, isa=ISAS[0])
    job = make(Case(1, 64, 512, 16, 1, 0, 600, rotary=64, per_page=16), 110)
    outs = [torch.full_like(job.x.query, float("nan")) for _ in range(400)]
    _native.attend(runtime, [job.native(0, None, out)[0] for out in outs])
    assert runtime.scratch_bytes < 160 << 20
    alone = job.run(runtime)[0]
    assert all(torch.equal(out, alone) for out in outs)

"""Room for sequences: who waits, who makes room, who is refused; and that it changes no token."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import write_model
from memory_support import same

from foveal.batch import FinishReason, Generation, ParameterError, Priority
from foveal.batch.room import ParkedSequence, pages_within
from foveal.cache import CacheError, CacheFull
from foveal.engine import Backend, Engine

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {"ignore_eos": True, "temperature": 0.8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", 4)


def opened(folder: Path, pages: int | None, backend: Backend = "native", scratch: Path | None = None) -> Engine:
    """An engine with room for so many pages."""
    engine = Engine.open(folder, threads=1, backend=backend, scratch=scratch)
    engine.pool.limit = pages
    return engine


@pytest.fixture
def parked(monkeypatch: pytest.MonkeyPatch) -> list[ParkedSequence]:
    """Every sequence that made room."""
    seen: list[ParkedSequence] = []
    begin = ParkedSequence.__init__

    def noted(self: ParkedSequence, *arguments: Any) -> None:
        begin(self, *arguments)
        seen.append(self)

    monkeypatch.setattr(ParkedSequence, "__init__", noted)
    return seen


def work(count: int, tokens: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Requests that take a page each in the beginning, and more in the end."""
    dice = random.Random(5)
    for number in range(count):
        prompt = [dice.randrange(4, 4000) for _ in range(dice.randrange(235, 250))]
        yield prompt, SETTINGS | {"max_tokens": tokens, "seed": number}


@pytest.mark.parametrize(("backend", "count", "pages"), [("native", 12, 9), ("reference", 2, 3)])
def test_more_sequences_than_there_is_room_for(
    folder: Path, backend: Backend, count: int, pages: int, parked: list[ParkedSequence]
) -> None:
    """All finish, each with the tokens it has alone, and nothing is left."""
    todo = list(work(count, 290 if backend == "native" else 35))
    with opened(folder, None, backend) as roomy:
        alone = [roomy.generate(prompt, **settings) for prompt, settings in todo]
    with opened(folder, pages, backend) as engine:
        jobs = [engine.submit(prompt, **settings) for prompt, settings in todo]
        assert [job.result(600) for job in jobs] == alone
        assert parked, "nobody had to make room: the test tests nothing"
        assert engine.pool.live == 0
        engine.pool.check_integrity([])


def test_forks_of_a_base_need_room_for_what_is_their_own(folder: Path, parked: list[ParkedSequence]) -> None:
    def run(pages: int | None) -> list[Generation]:
        with opened(folder, pages) as engine, engine.new_sequence() as base:
            engine.prefill(base, [9] * 1500)
            jobs = [
                engine.submit([11 + number], base=base, max_tokens=400, seed=number, **SETTINGS) for number in range(6)
            ]
            results = [job.result(600) for job in jobs]
            assert engine.pool.live == len(base.pages)
            return results

    roomy = run(None)
    assert not parked
    assert run(5 + 1 + 2 * 3) == roomy and parked


def test_a_parked_sequence_comes_back_as_it_was(folder: Path) -> None:
    with opened(folder, None) as engine:
        for length in (1, 127, 256, 300, 777):
            sequence, again = engine.new_sequence(), engine.new_sequence()
            tokens = [5 + place % 90 for place in range(length)]
            engine.prefill(sequence, tokens)
            engine.prefill(again, tokens)
            away = ParkedSequence(sequence, None)
            assert engine.pool.live == len(again.pages), "its pages were given back"
            with away.restore() as back, again:
                assert same(back, again)
                engine.prefill(back, [7] * 300)
                engine.prefill(again, [7] * 300)
                assert same(back, again)
        assert engine.pool.live == 0


def test_a_fork_in_the_middle_finds_room_for_the_page_that_it_cuts(folder: Path) -> None:
    """One page for the fork's open page, and then one for the page that it goes back into."""
    with opened(folder, None) as engine, engine.new_sequence() as spare:
        sequence = engine.new_sequence()
        engine.prefill(sequence, [9] * 100)
        sequence.keep_tail()
        engine.prefill(sequence, [5] * 250)
        engine.prefill(spare, [7] * 300)

        def give_up() -> bool:
            held = spare.length > 0
            spare.truncate(0)
            return held

        engine.batch.admission.spare = give_up
        engine.pool.limit = engine.pool.live + 1
        with engine.fork(sequence, 130) as fork, engine.new_sequence() as again:
            assert spare.length == 0, "there was room without it: the test tests nothing"
            engine.prefill(again, [9] * 100)
            engine.prefill(again, [5] * 30)
            assert same(fork, again)
        sequence.free()


def test_pages_that_others_hold_are_not_written(folder: Path, tmp_path: Path) -> None:
    with opened(folder, None) as engine, engine.new_sequence() as base:
        engine.prefill(base, [9] * 1024)
        fork = engine.fork(base)
        engine.prefill(fork, [8] * 300)
        away = ParkedSequence(fork, tmp_path)
        assert away.pages == 2 and engine.pool.live == 4
        with away.restore() as back:
            assert back.pages[:4] == base.pages[:4] and back.length == 1324
        forgotten = ParkedSequence(engine.fork(base), tmp_path)
        forgotten.drop()
        engine.pool.check_integrity([base.pages])


def test_what_was_damaged_on_the_disk_is_not_taken_back(folder: Path) -> None:
    with opened(folder, None) as engine:
        sequence = engine.new_sequence()
        engine.prefill(sequence, [9] * 300)
        away = ParkedSequence(sequence, None)
        away._file._file.seek(100)
        away._file._file.write(b"damage")
        with pytest.raises(CacheError, match="did not come back"):
            away.restore()
        away.drop()


def test_the_urgent_goes_before_the_background(folder: Path, parked: list[ParkedSequence]) -> None:
    with opened(folder, 8) as engine:
        settings = SETTINGS | {"max_tokens": 700}
        background = [
            engine.submit([7] * 500, priority=Priority.BACKGROUND, seed=number, **settings) for number in range(3)
        ]
        streams = [job.events() for job in background]
        next(streams[0])
        urgent = engine.submit([8] * 1500, seed=9, **(SETTINGS | {"max_tokens": 200}))
        result = urgent.result(600)
        assert parked and len(result.tokens) == 200
        for job, events in zip(background, streams, strict=True):
            list(events)
            assert len(job.result(600).tokens) == 700
        assert engine.pool.live == 0


def test_what_can_never_fit_is_refused_at_once(folder: Path) -> None:
    with opened(folder, 4) as engine:
        with pytest.raises(CacheFull, match=r"takes 5 pages; the cache has 4 in all") as refused:
            engine.generate([7] * 1000, max_tokens=26)
        assert refused.value.code == "full"
        assert len(engine.generate([7] * 1000, max_tokens=25, **SETTINGS).tokens) == 25
        with engine.new_sequence() as held:
            engine.prefill(held, [7] * 600)
            with pytest.raises(CacheFull, match="held by sequences outside of any job"):
                engine.generate([7] * 500, max_tokens=10)
            assert len(engine.generate([7] * 100, max_tokens=10, **SETTINGS).tokens) == 10
        assert engine.pool.live == 0


def test_requests_make_room_for_a_sequence_that_is_restored(folder: Path, parked: list[ParkedSequence]) -> None:
    with opened(folder, 6) as engine:
        with engine.new_sequence() as sequence:
            engine.prefill(sequence, [9] * 1000)
            image = engine.export(sequence)
        job = engine.submit([7] * 700, max_tokens=300, seed=1, **SETTINGS)
        events = job.events()
        next(events)
        again = engine.restore_sequence(image)
        assert parked and again.length == 1000
        engine.free(again)
        list(events)
        assert len(job.result().tokens) == 300 and engine.pool.live == 0


def test_cancelled_and_closed_while_parked(folder: Path, parked: list[ParkedSequence]) -> None:
    engine = opened(folder, 5)
    jobs = [engine.submit([7] * 300, max_tokens=700, seed=number, **SETTINGS) for number in range(4)]
    events = jobs[0].events()
    while not parked:
        next(events)
    jobs[3].cancel()
    jobs[1].cancel()
    assert jobs[3].result(600).finish_reason is FinishReason.CANCELLED
    engine.close()
    assert jobs[2].result(600).finish_reason is FinishReason.CANCELLED
    assert engine.pool.live == 0


def test_a_cache_in_bytes(folder: Path) -> None:
    with Engine.open(folder, threads=1, cache="64M") as engine:
        layout = engine.pool.layout
        assert engine.pool.limit == pages_within(layout, 64 << 20, engine.batch.scheduler.max_running)
        assert engine.pool.limit * layout.page_bytes <= 64 << 20
        assert engine.generate("x", max_tokens=3, ignore_eos=True).tokens
    for wrong in ("8 potatoes", "0", 5):
        with pytest.raises(ParameterError):
            Engine.open(folder, cache=wrong)

"""Jobs of the public engine: what they give, and that no page is ever left behind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import write_model

from foveal.batch import EngineClosed, FinishReason, ParameterError, Priority, SamplingParams, SequenceBusy
from foveal.cache import CacheError, CacheFull, PagePool, SequenceFreed
from foveal.engine import Backend, Engine

pytestmark = pytest.mark.slow

LONG = {"max_tokens": 5000, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", 4)


@pytest.fixture(params=["native", "reference"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    backend: Backend = request.param
    with Engine.open(folder, threads=1, backend=backend) as engine:
        yield engine
        assert engine.pool.live == 0, "a test (or the code it tests) kept pages"
        engine.pool.check_integrity([])


def test_a_job_is_the_stream_and_the_result(engine: Engine) -> None:
    settings = {"max_tokens": 6, "ignore_eos": True, "seed": 5, "temperature": 1.0}
    events = list(engine.submit("def main():\n", **settings))
    assert [event.ran for event in events] == [len(engine.tokenizer.encode("def main():\n")), *[1] * 5]
    job = engine.submit("def main():\n", **settings)
    result = job.result(60)
    assert result == engine.generate("def main():\n", **settings)
    assert result.text == "".join(event.text for event in events)


def test_all_prompts_at_once_give_what_each_gives_alone(engine: Engine) -> None:
    prompts = ["def f(", "import", [7] * 300, "x = 1\n" * 40]
    settings = {"max_tokens": 7, "ignore_eos": True}
    assert engine.generate_all(prompts, **settings) == [engine.generate(prompt, **settings) for prompt in prompts]
    with pytest.raises(ParameterError):
        engine.generate_all(["x", []], **LONG)


def test_a_base_is_taken_as_it_is_when_the_job_is_taken_in(engine: Engine) -> None:
    with engine.new_sequence() as base:
        engine.prefill(base, [7] * 300)
        alone = engine.generate([9], base=base, max_tokens=4, ignore_eos=True)
        job = engine.submit([9], base=base, max_tokens=4, ignore_eos=True)
        engine.prefill(base, [8] * 300)
        assert job.result(60) == alone


def test_a_base_that_was_freed(engine: Engine) -> None:
    base = engine.new_sequence()
    engine.prefill(base, [7] * 300)

    def submit_and_free() -> object:
        job = engine.submit([9], base=base, **LONG)
        base.free()
        return job

    job = engine.call(submit_and_free)
    with pytest.raises(SequenceFreed):
        job.result(60)  # type: ignore[attr-defined]
    with pytest.raises(SequenceFreed):
        engine.submit([9], base=base)


def test_deadlines_and_priorities_are_passed_on(engine: Engine) -> None:
    late = engine.submit("x", deadline=time.monotonic() - 1, priority=Priority.BACKGROUND, tenant="a", **LONG)
    assert late.result(60).finish_reason is FinishReason.DEADLINE


def test_prompts_that_are_refused_take_nothing(engine: Engine) -> None:
    for prompt in ("", []):
        with pytest.raises(ParameterError):
            engine.submit(prompt)
    with pytest.raises(ParameterError, match="top_p"):
        engine.submit("x", top_p=0)
    assert not engine.batch.scheduler.busy


def test_a_sequence_with_a_job_on_it_is_not_changed(engine: Engine) -> None:
    with engine.new_sequence() as sequence:
        engine.prefill(sequence, [7] * 300)
        job = engine.go_on(sequence, [9], SamplingParams(**LONG))
        events = job.events()
        next(events)
        with pytest.raises(SequenceBusy):
            engine.truncate(sequence, 0)
        events.close()
        engine.truncate(sequence, 0)
        assert sequence.length == 0


def test_freeing_waits_for_the_job_that_runs(engine: Engine) -> None:
    sequence = engine.new_sequence()
    job = engine.go_on(sequence, [9], SamplingParams(**LONG))
    events = job.events()
    next(events)
    engine.free(sequence)
    next(events)
    events.close()
    with pytest.raises(SequenceFreed):
        _ = sequence.length


def test_reading_that_fails_leaves_what_was_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "pool", PagePool(engine.pool.layout, limit=3))
    with engine.new_sequence() as sequence:
        with pytest.raises(CacheFull):
            engine.prefill(sequence, [7] * 1200)
        assert sequence.length == (512 if engine.grain == 1 else 768), "the chunks that were completed"
        engine.truncate(sequence, 0)
        assert engine.prefill(sequence, [7] * 100) == 100
    with pytest.raises(CacheError), engine.new_sequence() as sequence:
        engine.fork(sequence, 1)


def test_dropped_streams_give_their_pages_back(engine: Engine) -> None:
    for _ in range(3):
        stream = engine.stream("x", **LONG)
        next(stream)
        del stream
    job = engine.submit([7] * 2000, **LONG)
    del job
    gc.collect()
    engine.call(lambda: None)
    assert engine.pool.live == 0 and not engine.batch.scheduler.busy


def test_close_ends_jobs_and_frees_their_pages(folder: Path) -> None:
    engine = Engine.open(folder, threads=1)
    jobs = [engine.submit([7] * 600, **LONG) for _ in range(5)]
    next(iter_ := iter(jobs[0]))
    engine.close()
    assert {job.result(60).finish_reason for job in jobs[1:]} == {FinishReason.CANCELLED}
    assert [event.finish_reason for event in iter_][-1] is FinishReason.CANCELLED
    assert engine.pool.live == 0
    for again in (lambda: engine.submit("x"), lambda: engine.generate("x"), lambda: engine.call(int)):
        with pytest.raises(EngineClosed):
            again()  # type: ignore[no-untyped-call]
    sequence = engine.new_sequence()
    engine.free(sequence)


def test_an_engine_that_is_dropped_ends_its_thread(folder: Path) -> None:
    engine = Engine.open(folder, threads=1)
    thread = engine.call(threading.current_thread)
    job = engine.submit("x", max_tokens=3, ignore_eos=True)
    del engine
    gc.collect()
    assert len(job.result(60).tokens) == 3, "a job keeps its engine running"
    del job
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()

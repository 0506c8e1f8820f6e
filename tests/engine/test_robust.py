"""What one caller does wrong, or in an odd moment, ends nobody else's work and leaves nobody waiting."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import write_model
from helpers.children import ended, forked

from foveal.aio import AsyncEngine
from foveal.batch import EngineClosed, FinishReason, Job, Kind, ParameterError, Priority, SamplingParams
from foveal.cache import Sequence, SequenceFreed
from foveal.cache.memory import HostMemory
from foveal.engine import Engine
from foveal.formats import Array
from foveal.memory import Memory, open_store
from foveal.memory.options import source_options

pytestmark = pytest.mark.slow

LONG = SamplingParams(max_tokens=5000, ignore_eos=True)
PATIENT = 60.0
"""Seconds until a test gives up; nothing waits for them to pass."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", 4)


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(folder, threads=1) as engine:
        yield engine
        engine.generate("x", max_tokens=1)  # it still runs
        assert engine.pool.live == 0
        engine.pool.check_integrity([])


@pytest.mark.parametrize(
    "options",
    [
        {"deadline": "soon"},
        {"deadline": float("nan")},
        {"deadline": True},
        {"priority": "high"},
        {"priority": 7},
        {"priority": None},
        {"tenant": None},
        {"tenant": ["a"]},
    ],
)
def test_a_bad_option_of_a_request_is_refused_where_it_is_given(engine: Engine, options: dict[str, Any]) -> None:
    with engine.submit("def f(", LONG) as other:
        with pytest.raises(ParameterError, match=next(iter(options))):
            engine.submit("def f(", max_tokens=2, **options)
        other.cancel()
        assert other.result(PATIENT).finish_reason is FinishReason.CANCELLED


def test_a_sequence_is_freed_when_the_last_of_its_jobs_has_ended_in_any_order(engine: Engine) -> None:
    sequence = engine.new_sequence()
    runs = engine.go_on(sequence, [7, 8], LONG)
    events = iter(runs)
    next(events)
    waits, urgent = (
        Job(engine.loop, engine.batch.request([9], state=sequence, kind=Kind.READ, priority=priority))
        for priority in (Priority.BACKGROUND, Priority.INTERACTIVE)
    )
    engine.free(sequence)
    urgent.cancel()
    assert urgent.result(PATIENT).finish_reason is FinishReason.CANCELLED
    assert next(events).finish_reason is None  # it still has its sequence
    runs.cancel()
    assert [event.finish_reason for event in events][-1] is FinishReason.CANCELLED
    assert waits.result(PATIENT).finish_reason is FinishReason.DONE
    with pytest.raises(SequenceFreed):
        engine.call(lambda: sequence.length)


def test_a_sequence_freed_under_its_jobs_fails_those_and_no_others(engine: Engine) -> None:
    sequence = engine.new_sequence()
    other = engine.submit("def f(", LONG)
    first, second = (engine.go_on(sequence, [7, 8], LONG) for _ in range(2))
    engine.call(sequence.free)
    for job in (first, second):
        with pytest.raises(SequenceFreed):
            job.result(PATIENT)
    events = iter(other)
    next(events)
    other.cancel()
    assert [event.finish_reason for event in events][-1] is FinishReason.CANCELLED


def test_free_of_a_coroutine_waits_for_the_job_as_that_of_a_thread_does(engine: Engine) -> None:
    async def free_early() -> FinishReason | None:
        aio = AsyncEngine(engine)
        sequence = engine.new_sequence()
        job = aio.go_on(sequence, [7, 8], LONG)
        events = job.events()
        await anext(events)
        await aio.free(sequence)
        assert (await anext(events)).finish_reason is None
        job.cancel()
        return [event.finish_reason async for event in events][-1]

    assert asyncio.run(free_early()) is FinishReason.CANCELLED


def test_free_of_a_cancelled_coroutine_frees(engine: Engine) -> None:
    async def cancelled() -> None:
        aio = AsyncEngine(engine)
        sequence = engine.new_sequence()
        await aio.read(sequence, [7] * 300)
        held, entered = threading.Event(), threading.Event()
        block = engine.loop.post(lambda: (entered.set(), held.wait(PATIENT)))
        assert await asyncio.to_thread(entered.wait, PATIENT)
        task = asyncio.create_task(aio.free(sequence))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        held.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wrap_future(block)
        await aio.call(lambda: None)
        with pytest.raises(SequenceFreed):
            sequence.length  # noqa: B018

    asyncio.run(cancelled())


def test_fork_of_a_coroutine_has_room_made_as_that_of_a_thread_does(engine: Engine) -> None:
    base = engine.new_sequence()
    engine.prefill(base, [7] * 300)
    with engine.submit([7] * 300, LONG) as job:
        events = iter(job)
        next(events)
        engine.call(lambda: setattr(engine.pool, "limit", engine.pool.live))

        async def forked() -> int:
            aio = AsyncEngine(engine)
            fork = await aio.fork(base)
            length = fork.length
            await aio.free(fork)
            return length

        assert asyncio.run(forked()) == 300
        engine.pool.limit = None
        job.cancel()
        list(events)
    engine.free(base)


def test_a_sequence_of_another_engine_is_refused(engine: Engine, folder: Path) -> None:
    with Engine.open(folder, threads=1) as other:
        theirs = other.new_sequence()
        other.prefill(theirs, [7] * 10)
        for ask in (
            lambda: engine.generate([7], LONG, base=theirs),
            lambda: engine.go_on(theirs, [7], LONG).result(PATIENT),
            lambda: engine.prefill(theirs, [7]),
        ):
            with pytest.raises(ParameterError, match="another engine"):
                ask()
        assert other.generate([7], base=theirs, max_tokens=1).tokens
        other.free(theirs)


def test_what_cannot_be_given_back_is_told_to_whom_it_concerns(engine: Engine) -> None:
    def failing(state: Any) -> None:
        state.free()
        raise RuntimeError("not given back")

    def job(**options: Any) -> Job:
        return Job(engine.loop, engine.batch.request([7], LONG, begin=engine.new_sequence, **options))

    with job(release=failing) as failed, engine.submit("def f(", LONG) as other:
        failed.cancel()
        with pytest.raises(RuntimeError, match="not given back"):
            failed.result(PATIENT)
        other.cancel()
        assert other.result(PATIENT).finish_reason is FinishReason.CANCELLED


def test_a_listener_that_fails_stops_nobody(engine: Engine) -> None:
    def sink(event: Any) -> None:
        raise RuntimeError("does not listen")

    request = engine.batch.request([7], LONG, begin=engine.new_sequence, release=lambda state: state.free())  # type: ignore[attr-defined]
    request.sink = sink
    engine.loop.submit(request)
    assert engine.generate("x", max_tokens=3, ignore_eos=True).tokens
    engine.loop.cancel(request)
    engine.call(lambda: None)


def test_everybody_who_waits_for_a_job_hears_of_its_end(engine: Engine) -> None:
    job, results = engine.submit("def f(", max_tokens=40, ignore_eos=True), []
    waiting = [threading.Thread(target=lambda: results.append(job.result(PATIENT)), daemon=True) for _ in range(3)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join(PATIENT)
    assert len(results) == 3 and {len(result.tokens) for result in results} == {40}


def test_a_memory_that_was_freed_can_still_be_printed(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n" * 20)
    with Memory.read(engine, tmp_path / "a.py", root=tmp_path / "store") as memory:
        assert "tokens>" in repr(memory)
    assert repr(memory).endswith("freed>")


def test_a_memory_is_freed_between_two_steps(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n" * 20)
    memory = Memory.read(engine, tmp_path / "a.py", root=tmp_path / "store")
    entered, held = threading.Event(), threading.Event()
    engine.loop.post(lambda: (entered.set(), held.wait(PATIENT)))
    assert entered.wait(PATIENT)
    freeing = threading.Thread(target=memory.free)
    freeing.start()
    while engine.loop._core.inbox.qsize() < 1 and freeing.is_alive():
        freeing.join(0.001)
    assert not memory.sequence.freed
    held.set()
    freeing.join(PATIENT)
    assert memory.sequence.freed


@pytest.mark.parametrize("mode", ["append", "rebuild"])
def test_what_changes_the_sequence_of_a_memory_happens_between_two_steps(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    source = tmp_path / "a.py"
    source.write_text("".join(f"x{n} = {n * n}\n" for n in range(200)))
    memory = Memory.begin(
        engine, source_options(source, None, (), (), True), name="a", store=open_store(tmp_path / "s")
    )
    elsewhere: list[str] = []
    for name in ("truncate", "free", "keep_tail", "fork"):
        method = getattr(Sequence, name)

        def noted(sequence: Sequence, *arguments: Any, method: Any = method, name: str = name) -> Any:
            if sequence is memory.sequence and not engine.loop.is_here:
                elsewhere.append(name)
            return method(sequence, *arguments)

        monkeypatch.setattr(Sequence, name, noted)
    memory.resume()
    memory.save()
    source.write_text("y = 0\n" + source.read_text()[:900] + "".join(f"z{n}\n" for n in range(200)))
    memory.sync(mode)
    source.write_text(source.read_text()[:1200])
    memory.sync(mode)
    with memory.fork(memory.length // 2) as fork:
        fork.recall("x7", max_tokens=2)
    memory.free()
    assert not elsewhere


BAD_OPTIONS: list[dict[str, Any]] = [
    {"cache": float("nan")},
    {"cache": [1]},
    {"cache": True},
    {"context_length": 1.5},
    {"threads": 0},
    {"threads": -1},
    {"threads": "x"},
    {"memory_limit": float("nan")},
    {"memory_limit": 1e12},
    {"memory_limit": True},
]


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_a_bad_size_is_refused_when_the_model_is_opened(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=next(iter(options))):
        Engine.open(folder, **{"threads": 1, **options})


# ---------------------------------------------------------------------- a collection in an odd moment


class Collecting(HostMemory):
    """Page memory that has the garbage collected where the next page is made."""

    wanted = False

    def zeros(self, size: int) -> Array:
        if self.wanted:
            self.wanted = False
            gc.collect()
        return super().zeros(size)


def drop_in_a_circle(made: Callable[[], Any]) -> None:
    circle: list[Any] = [made()]
    circle.append(circle)


@pytest.mark.parametrize("where", ["command", "brief", "caller"])
def test_a_stream_that_is_collected_while_pages_are_counted_stops_nobody(engine: Engine, where: str) -> None:
    engine.pool.memory = memory = Collecting()
    base = engine.new_sequence()
    engine.prefill(base, [7] * 300)

    def run() -> None:
        for _ in range(2):
            gc.collect()
            stream = engine.stream([7] * 300, LONG)
            next(stream)
            if where == "brief":
                stream.close()
            drop_in_a_circle(lambda stream=stream: stream)
            del stream
            memory.wanted = True
            if where == "command":
                engine.free(engine.call(lambda: engine.batch.admission.making_room(base.fork)))
            elif where == "brief":
                engine.free(engine.fork(base))
            else:
                base.fork().free()

    gc.disable()
    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(PATIENT / 3)
        assert not thread.is_alive(), "they wait for each other"
    finally:
        gc.enable()
    engine.free(base)
    gc.collect()
    engine.call(lambda: None)


# ---------------------------------------------------------------------- processes and signals


def test_a_forked_process_hangs_in_no_lock_of_the_engine(engine: Engine) -> None:
    sequence = engine.new_sequence()
    engine.prefill(sequence, [7] * 300)

    def in_child() -> None:
        engine.free(sequence)
        with pytest.raises(EngineClosed):
            engine.submit("x", max_tokens=1)
        with pytest.raises(EngineClosed):
            engine.fork(sequence)
        engine.close()

    for lock in (engine.loop._core._gate, engine.loop._core._owned, engine.pool._lock):
        held, done = threading.Event(), threading.Event()

        def hold(lock: Any = lock, held: threading.Event = held, done: threading.Event = done) -> None:
            with lock:
                held.set()
                done.wait(PATIENT)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(PATIENT)
        child = forked(in_child)
        done.set()
        holder.join(PATIENT)
        assert ended(child) == 0
    engine.free(sequence)


def test_an_interruption_while_the_thread_starts_leaves_an_engine_that_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        start(thread)

    def failing(thread: threading.Thread) -> None:
        monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    for patched, error in ((interrupted, KeyboardInterrupt), (failing, RuntimeError)):
        with Engine.open(folder, threads=1) as engine:
            monkeypatch.setattr(threading.Thread, "start", patched)
            with pytest.raises(error):
                engine.generate("x", max_tokens=1)
            assert engine.submit("x", max_tokens=1).result(PATIENT).tokens


def test_a_fork_at_the_present_end_is_as_long_as_was_asked(engine: Engine) -> None:
    sequence = engine.new_sequence()
    engine.prefill(sequence, [7] * 10)
    entered, held = threading.Event(), threading.Event()
    forks: list[Any] = []
    engine.loop.post(lambda: (entered.set(), held.wait(PATIENT)))
    entered.wait(PATIENT)

    def read_at_once() -> None:
        engine.batch.add(engine.batch.request([8] * 10, state=sequence, kind=Kind.READ))
        engine.batch.step()

    engine.loop.post(read_at_once)
    asker = threading.Thread(target=lambda: forks.append(engine.fork(sequence, 10)))
    asker.start()
    while engine.loop._core.inbox.qsize() < 2:
        asker.join(0.001)
    held.set()
    asker.join(PATIENT)
    assert forks[0].length == 10 and sequence.length == 20
    engine.free(forks[0])
    engine.free(sequence)

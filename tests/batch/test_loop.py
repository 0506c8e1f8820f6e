"""The thread that owns the engine, with a network that waits until the test lets it go on."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_support import Clock, Letters, MockNetwork, MockState, counting, ids

from foveal.batch import (
    BatchEngine,
    EngineClosed,
    FinishReason,
    Job,
    Kind,
    Loop,
    Request,
    SamplingParams,
    Scheduler,
)
from foveal.batch import job as job_module
from foveal.batch.job import _Events
from foveal.batch.request import Event

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = SamplingParams(max_tokens=100_000, ignore_eos=True)
PATIENT = 60.0
"""Seconds until a test gives up; nothing waits for them to pass."""


class Gated(MockNetwork):
    """Each pass takes one permit; `entered` is released when a pass begins."""

    def __init__(self, **options: Any) -> None:
        super().__init__(counting, **options)
        self.permits, self.entered = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, *arguments: Any) -> Any:
        self.entered.release()
        assert self.permits.acquire(timeout=PATIENT)
        return super().__call__(*arguments)

    def let(self, passes: int) -> None:
        self.permits.release(passes)

    def wait_for_a_pass(self) -> None:
        assert self.entered.acquire(timeout=PATIENT)


class Bench:
    """A loop over a gated network, and states that count how often they were released."""

    def __init__(self, **settings: Any) -> None:
        self.network = Gated()
        self.engine = BatchEngine(self.network, scheduler=Scheduler(**settings), batched=True)
        self.loop = Loop(self.engine)
        self.released: list[object] = []

    def job(self, prompt: list[int], params: SamplingParams = ENDLESS, **options: Any) -> Job:
        options.setdefault("state", MockState())
        return Job(self.loop, self.engine.request(prompt, params, release=self.released.append, **options))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(chunk=8)
    yield made
    made.network.let(1 << 20)
    made.loop.close()


def letters(job: Job, count: int) -> str:
    events = iter(job)
    return "".join(chr(next(events).sampled.token - 4) for _ in range(count))  # type: ignore[union-attr]


# ---------------------------------------------------------------------- jobs


def test_a_job_gives_its_events_and_its_result(bench: Bench) -> None:
    bench.network.let(100)
    job = bench.job(ids("ab"), SamplingParams(max_tokens=4), text=Letters(()))
    events = list(job)
    assert "".join(event.text for event in events) == "cdef" and job.done
    assert [event.ran for event in events] == [2, 1, 1, 1]
    assert all(event.request_id == job.id and event.at > 0 for event in events)
    assert [event.at for event in events] == sorted(event.at for event in events)
    result = bench.job(ids("ab"), SamplingParams(max_tokens=4), text=Letters(())).result(PATIENT)
    assert result.text == "cdef" and list(result.tokens) == ids("cdef")
    assert result.finish_reason is FinishReason.LENGTH and len(bench.released) == 2
    assert job.result().text == "cdef" and list(job) == []


def test_reading_is_a_job_that_tells_how_far_it_is(bench: Bench) -> None:
    bench.network.let(100)
    state = MockState()
    job = bench.job(ids("a" * 20), kind=Kind.READ, state=state)
    events = list(job)
    assert [event.ran for event in events] == [8, 8, 4] and state.length == 20
    assert [event.finish_reason for event in events] == [None, None, FinishReason.DONE]
    assert all(event.sampled is None for event in events)


def test_a_result_that_is_not_there_in_time_leaves_the_job_running(bench: Bench) -> None:
    job = bench.job(ids("ab"), SamplingParams(max_tokens=2))
    with pytest.raises(TimeoutError, match="has not ended"):
        job.result(0.0)
    bench.network.let(10)
    assert list(job.result(PATIENT).tokens) == ids("cd")


# ---------------------------------------------------------------------- cancelling


@pytest.mark.parametrize("stage", ["waiting", "prompt", "decoding", "done"])
def test_cancel_at_every_stage(stage: str) -> None:
    bench = Bench(chunk=8, max_running=1)
    first = bench.job(ids("a")) if stage == "waiting" else None
    params = SamplingParams(max_tokens=2) if stage == "done" else ENDLESS
    job = bench.job(ids("a" * 40 if stage == "prompt" else "ab"), params)
    bench.network.wait_for_a_pass()
    if stage == "done":
        bench.network.let(2)
        assert len(list(job.events())) == 2
    elif stage == "decoding":
        bench.network.let(1)
        bench.network.wait_for_a_pass()
    job.cancel()
    bench.network.let(1 << 20)
    result = job.result(PATIENT)
    assert result.finish_reason is (FinishReason.LENGTH if stage == "done" else FinishReason.CANCELLED)
    assert len(result.tokens) == {"waiting": 0, "prompt": 0, "decoding": 2, "done": 2}[stage]
    assert len(bench.released) == 1, "the state was released before the last event"
    job.cancel()
    if first is not None:
        assert letters(first, 3) == "bcd"
    bench.loop.close()
    assert len(bench.released) == (2 if first is not None else 1)


def test_a_closed_iterator_cancels_and_waits_for_the_end(bench: Bench) -> None:
    bench.network.let(1 << 20)
    job = bench.job(ids("a"))
    events = job.events()
    next(events)
    events.close()
    assert len(bench.released) == 1 and job.done and job.result().finish_reason is FinishReason.CANCELLED
    assert bench.loop.call(lambda: bench.engine.scheduler.busy) is False


@pytest.mark.parametrize("begun", [False, True])
def test_a_job_that_nobody_holds_is_cancelled(bench: Bench, begun: bool) -> None:
    bench.network.let(1 << 20)
    job = bench.job(ids("a"))
    if begun:
        events = iter(job)
        next(events)
        del events
    gone = weakref.ref(job)
    del job
    assert gone() is None, "nothing else holds a job"
    assert bench.loop.call(lambda: bench.engine.scheduler.busy) is False and len(bench.released) == 1


def test_a_with_block_cancels(bench: Bench) -> None:
    bench.network.let(1 << 20)
    with bench.job(ids("a")) as job:
        pass
    assert job.done and len(bench.released) == 1


def test_an_interrupted_caller_cancels_its_job(bench: Bench) -> None:
    bench.network.let(1 << 20)
    job = bench.job(ids("a"))
    events = job.events()
    next(events)
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt())
    assert job.done and len(bench.released) == 1


# ---------------------------------------------------------------------- calls


def test_calls_come_between_steps_in_their_order(bench: Bench) -> None:
    seen: list[object] = []
    job = bench.job(ids("a"))
    bench.network.wait_for_a_pass()
    first = bench.loop.post(lambda: seen.append((1, bench.loop.stepping)))
    second = bench.loop.post(lambda: seen.append((2, bench.loop.is_here)))
    assert not first.done() and not bench.loop.is_here
    bench.network.let(1)
    second.result(PATIENT)
    assert seen == [(1, False), (2, True)]
    failed = bench.loop.post(lambda: 1 // 0)
    bench.network.let(1)
    with pytest.raises(ZeroDivisionError):
        failed.result(PATIENT)
    job.cancel()


def test_what_is_brief_is_done_on_the_callers_thread_while_the_loop_rests(bench: Bench) -> None:
    here = threading.get_ident()
    assert bench.loop.briefly(threading.get_ident) == here  # the thread has not begun yet
    there = bench.loop.call(threading.get_ident)
    assert there != here
    job = bench.job([1, 2, 3])
    bench.network.wait_for_a_pass()
    asked: list[int] = []
    asker = threading.Thread(target=lambda: asked.append(bench.loop.briefly(threading.get_ident)))
    asker.start()
    asker.join(0.05)
    assert not asked  # it waits for the step to end
    bench.network.let(1)
    asker.join(PATIENT)
    assert asked == [there]
    bench.network.let(1 << 20)
    job.cancel()
    job.result()


def test_what_is_brief_comes_after_what_the_same_thread_asked_for_before(bench: Bench) -> None:
    for number in range(2000):
        done: list[int] = []
        bench.loop.post(lambda done=done: done.append(1))  # type: ignore[misc]
        assert bench.loop.briefly(done.copy) == [1], number


def test_what_is_brief_from_many_threads_is_never_done_twice_at_a_time(bench: Bench) -> None:
    inside, wrong, count = threading.Lock(), [], 300

    def alone() -> None:
        if not inside.acquire(blocking=False):
            wrong.append(threading.get_ident())
            return
        inside.release()

    def ask() -> None:
        for number in range(count):
            (bench.loop.briefly if number % 3 else bench.loop.call)(alone)

    bench.network.let(1 << 20)
    job = bench.job([1, 2, 3], SamplingParams(max_tokens=500, ignore_eos=True))
    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(PATIENT)
    job.result()
    assert not wrong


def test_a_finaliser_in_the_middle_of_something_brief_waits_for_its_end(bench: Bench) -> None:
    done: list[str] = []

    def brief() -> None:
        bench.loop.finally_call(lambda: done.append("given back"))
        done.append("done")

    bench.loop.briefly(brief)
    bench.loop.call(lambda: None)
    assert done == ["done", "given back"]


def test_what_is_brief_is_done_whole_when_ctrl_c_comes(bench: Bench) -> None:
    done: list[str] = []

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        bench.loop.briefly(interrupted)
    assert done == ["all of it"]
    assert bench.loop.briefly(lambda: "goes on") == "goes on"


def test_nothing_brief_is_done_after_the_end(bench: Bench) -> None:
    bench.loop.call(lambda: None)
    bench.loop.close()
    with pytest.raises(EngineClosed):
        bench.loop.briefly(lambda: None)


def test_the_loops_own_thread_may_call_and_wait_for_jobs(bench: Bench) -> None:
    bench.network.let(1 << 20)
    other = bench.job(ids("a"))

    def inside() -> list[int]:
        assert bench.loop.call(lambda: 7) == 7
        events = bench.job(ids("b")).events()
        for _ in range(3):
            next(events)
        events.close()
        return list(bench.job(ids("a"), SamplingParams(max_tokens=3)).result().tokens)

    assert bench.loop.call(inside) == ids("bcd")
    assert letters(other, 5) == "bcdef", "the others went on meanwhile"


def test_a_step_cannot_wait_for_another_one(bench: Bench) -> None:
    class Waiting(Letters):
        def push(self, token: int) -> str:
            bench.job(ids("a")).result()
            return ""

    bench.network.let(1 << 20)
    job = bench.job(ids("a"), text=Waiting(()))
    with pytest.raises(RuntimeError, match="a step cannot wait"):
        job.result(PATIENT)


# ---------------------------------------------------------------------- failures


def test_an_error_goes_to_the_job_that_it_concerns(bench: Bench) -> None:
    bench.network.let(1 << 20)
    bad = bench.job(ids("ab"), state=MockState(limit=3))
    good = bench.job(ids("ab"), SamplingParams(max_tokens=4))
    with pytest.raises(RuntimeError, match="out of pages"):
        bad.result(PATIENT)
    assert list(good.result(PATIENT).tokens) == ids("cdef") and len(bench.released) == 2


@pytest.mark.parametrize("where", ["push", "flush"])
def test_errors_in_a_text_stream(bench: Bench, where: str) -> None:
    class Broken(Letters):
        pass

    def fail(*ignored: object) -> str:
        raise LookupError("no such letter")

    setattr(Broken, where, fail)
    bench.network.let(1 << 20)
    job = bench.job(ids("a"), SamplingParams(max_tokens=3), text=Broken(()))
    good = bench.job(ids("ab"), SamplingParams(max_tokens=4))
    with pytest.raises(LookupError, match="no such letter"):
        list(job)
    assert list(good.result(PATIENT).tokens) == ids("cdef") and len(bench.released) == 2


def test_errors_in_the_text_of_a_job_that_is_cancelled(bench: Bench) -> None:
    class Broken(Letters):
        def flush(self) -> str:
            raise LookupError("no such letter")

    job = bench.job(ids("a"), text=Broken(()))
    job.cancel()
    bench.network.let(1 << 20)
    with pytest.raises(LookupError):
        job.result(PATIENT)
    assert len(bench.released) == 1


def test_a_state_that_cannot_be_made(bench: Bench) -> None:
    def begin() -> Any:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        bench.job(ids("a"), state=None, begin=begin).result(PATIENT)
    assert not bench.released


def test_a_loop_that_breaks_fails_everybody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [bench.job(ids("a")) for _ in range(3)]
    bench.network.wait_for_a_pass()
    monkeypatch.setattr(bench.engine.scheduler, "schedule", lambda: 1 // 0)
    call = bench.loop.post(lambda: None)
    late = bench.job(ids("a"))
    bench.network.let(1)
    call.result(PATIENT)
    for job in [*jobs, late]:
        with pytest.raises(ZeroDivisionError):
            job.result(PATIENT)
    bench.loop.close()
    for again in (lambda: bench.job(ids("a")), lambda: bench.loop.call(lambda: None)):
        with pytest.raises(EngineClosed, match="division"):
            again()  # type: ignore[no-untyped-call]
    assert len(bench.released) == 4


# ---------------------------------------------------------------------- closing


def test_close_cancels_what_is_left() -> None:
    bench = Bench(chunk=8, max_running=2)
    jobs = [bench.job(ids("a")) for _ in range(4)]
    bench.network.wait_for_a_pass()
    bench.network.let(1 << 20)
    bench.loop.close()
    assert [job.result(PATIENT).finish_reason for job in jobs] == [FinishReason.CANCELLED] * 4
    assert len(bench.released) == 4
    for again in (lambda: bench.job(ids("a")), lambda: bench.loop.call(lambda: None)):
        with pytest.raises(EngineClosed):
            again()  # type: ignore[no-untyped-call]
    bench.loop.close()
    unused = Bench()
    unused.loop.close()
    with pytest.raises(EngineClosed):
        unused.job(ids("a"))


def test_a_loop_that_nobody_holds_ends() -> None:
    bench = Bench()
    bench.network.let(1 << 20)
    thread = bench.loop.call(threading.current_thread)
    bench.loop = None  # type: ignore[assignment]
    gc.collect()
    thread.join(PATIENT)
    assert not thread.is_alive()


SCRIPT = """
import os, sys
sys.path[:0] = [{tests!r}]
from batch_support import MockNetwork, MockState, counting, ids
from foveal.batch import BatchEngine, EngineClosed, Job, Loop, SamplingParams
engine = BatchEngine(MockNetwork(counting), batched=True)
loop = Loop(engine)
jobs = [Job(loop, engine.request(ids("a"), SamplingParams(max_tokens=10**6, ignore_eos=True), state=MockState()))
        for _ in range(3)]
events = iter(jobs[0])
next(events)
{then}
"""


@pytest.mark.parametrize(
    ("then", "code", "said"),
    [
        ("print('end')", 0, "end"),
        ("raise SystemExit(3)", 3, ""),
        ("raise KeyboardInterrupt", 130, ""),
        (
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    for wait in (lambda: list(events), lambda: jobs[1].result(), lambda: loop.call(int)):\n"
            "        try: wait()\n"
            "        except EngineClosed: print('closed', flush=True)\n"
            "    sys.exit(5)\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
            0,
            "closed\nclosed\nclosed\n5",
        ),
    ],
)
def test_a_process_ends_with_jobs_open(then: str, code: int, said: str) -> None:
    script = SCRIPT.format(tests=str(ROOT / "tests"), then=then)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=PATIENT
    )
    assert done.stdout.strip() == said
    assert done.returncode == code or (code == 130 and done.returncode == -2)


# ---------------------------------------------------------------------- cuts


@pytest.mark.parametrize("budget", [1e-4, 1e-3, 0.01, 0.05, 10.0])
def test_what_a_request_gives_does_not_depend_on_the_budget(budget: float) -> None:
    def run(budget: float) -> list[tuple[int, ...]]:
        clock = Clock()
        network = MockNetwork(clock=clock)
        engine = BatchEngine(network, scheduler=Scheduler(chunk=16, step_budget=budget, clock=clock), batched=True)
        loop = Loop(engine)
        params = SamplingParams(max_tokens=5, temperature=0.7, seed=3, ignore_eos=True)
        prompts = [list(range(4, 4 + n)) for n in (3, 50, 33, 16, 100)]
        requests: list[Request] = [engine.request(prompt, params, state=MockState()) for prompt in prompts]
        results = [job.result(PATIENT).tokens for job in [Job(loop, request) for request in requests]]
        loop.close()
        return results

    assert run(budget) == run(1.0)


class _Interrupted(_Events):
    """Ctrl-C comes right after the last event was taken out of the queue, and before the caller has it."""

    def get(self, block: bool = True, timeout: float | None = None) -> Event:
        event = super().get(block, timeout)
        if event.finish_reason is not None:
            raise KeyboardInterrupt
        return event


def test_an_interruption_that_takes_the_last_event_with_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.network.let(1 << 20)
    monkeypatch.setattr(job_module, "_Events", _Interrupted)
    job = bench.job(ids("a"), SamplingParams(max_tokens=3, ignore_eos=True))
    with pytest.raises(KeyboardInterrupt):
        job.result()
    assert job.done


def test_an_interruption_on_the_way_back_from_submitting(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = bench.loop.submit

    def interrupted(request: Request) -> None:
        submit(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.loop, "submit", interrupted)
    bench.network.let(1 << 20)
    with pytest.raises(KeyboardInterrupt):
        bench.job(ids("a"))
    gc.collect()
    assert not bench.loop.call(lambda: bench.engine.scheduler.busy), "nobody holds the job: it is cancelled"

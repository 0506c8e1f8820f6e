"""The engine for coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_support import write_model

from foveal.aio import AsyncEngine
from foveal.batch import Event, FinishReason, Generation, ParameterError, SamplingParams
from foveal.cache import CacheFull, PagePool
from foveal.engine import Engine
from foveal.memory import StoredPrefixes, open_store

SETTINGS = {"max_tokens": 6, "ignore_eos": True}
LONG = {"max_tokens": 50_000, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", 4)


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(folder, threads=1) as engine:
        yield engine
        engine.call(lambda: None)
        assert engine.pool.live == 0 and not engine.batch.scheduler.busy


def test_streams_and_generations_are_those_of_the_engine(engine: Engine) -> None:
    async def work() -> tuple[list[Event], list[Generation], int]:
        ours = AsyncEngine(engine)
        events = [event async for event in ours.stream("def main():\n", **SETTINGS)]
        threads = threading.active_count()
        both = await asyncio.gather(*(ours.generate(prompt, **SETTINGS) for prompt in ("def f(", "import", "x")))
        assert threading.active_count() == threads, "no thread for a request"
        return events, list(both), await ours.call(lambda: engine.pool.live)

    events, both, live = asyncio.run(work())
    assert "".join(event.text for event in events) == engine.generate("def main():\n", **SETTINGS).text
    assert both == [engine.generate(prompt, **SETTINGS) for prompt in ("def f(", "import", "x")] and live == 0


def test_a_cancelled_task_cancels_its_job(engine: Engine) -> None:
    async def work() -> None:
        ours, first = AsyncEngine(engine), asyncio.Event()

        async def stream() -> None:
            async with contextlib.aclosing(ours.stream("x", **LONG)) as events:
                async for _ in events:
                    first.set()

        tasks = [asyncio.create_task(stream()), asyncio.create_task(ours.generate("y", **LONG))]
        await first.wait()
        for task in tasks:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not await ours.call(lambda: engine.batch.scheduler.busy)
        assert engine.pool.live == 0

    asyncio.run(work())


def test_a_stream_that_is_left_ends_with_the_event_loop(engine: Engine) -> None:
    async def work() -> None:
        async for _ in AsyncEngine(engine).stream("x", **LONG):
            break

    asyncio.run(work())
    assert not engine.call(lambda: engine.batch.scheduler.busy)
    assert engine.pool.live == 0


def test_errors_are_raised(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        ours = AsyncEngine(engine)
        with pytest.raises(ParameterError):
            await ours.generate("")
        with pytest.raises(ZeroDivisionError):
            await ours.call(lambda: 1 // 0)
        monkeypatch.setattr(engine, "pool", PagePool(engine.pool.layout, limit=1))
        with pytest.raises(CacheFull):
            await ours.generate([7] * 600)

    asyncio.run(work())


def test_several_event_loops_share_an_engine(engine: Engine) -> None:
    prompts = [["def f(", "import"], ["x", "y = 1"], ["class A", "if"]]

    async def work(texts: list[str]) -> list[Generation]:
        ours = AsyncEngine(engine)
        return list(await asyncio.gather(*(ours.generate(text, **SETTINGS) for text in texts)))

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda texts: asyncio.run(work(texts)), prompts))
    assert results == [[engine.generate(text, **SETTINGS) for text in texts] for texts in prompts]


def test_closing_ends_what_others_wait_for(folder: Path) -> None:
    async def work() -> Generation:
        async with AsyncEngine(Engine.open(folder, threads=1)) as ours:
            waiting = asyncio.create_task(ours.generate("x", **LONG))
            await asyncio.sleep(0)
        return await waiting

    assert asyncio.run(work()).finish_reason is FinishReason.CANCELLED


def test_stored_beginnings_are_found(engine: Engine, tmp_path: Path) -> None:
    prompt = [7] * 600
    with open_store(tmp_path / "store", create=True) as store:
        from foveal import Memory

        (tmp_path / "a.txt").write_text("value = 1\n" * 200)
        with Memory.read(engine, tmp_path / "a.txt", name="a", root=store) as memory:
            memory.save(root=store)
            prompt = memory.sequence.tokens.tolist()
        engine.prefixes = StoredPrefixes(store)
        result = asyncio.run(AsyncEngine(engine).generate(prompt, **SETTINGS))
        assert result.reused_tokens > 0 and result == engine.generate(prompt, **SETTINGS)
        engine.prefixes = None
        assert result.tokens == engine.generate(prompt, **SETTINGS).tokens


def test_a_sequence_is_read_and_gone_on_with(engine: Engine) -> None:
    tokens = engine.tokenizer.encode("def main():\n    return 3\n" * 9)

    async def work() -> tuple[list[int], list[int]]:
        ours = AsyncEngine(engine)
        start = await ours.start(tokens)
        assert await ours.read(start.sequence, tokens[:-1]) is FinishReason.DONE
        assert await ours.read(start.sequence, []) is FinishReason.DONE
        assert [tail.position for tail in start.sequence.kept_tails][-1] == len(tokens) - 1
        fork = await ours.fork(start.sequence)
        one = await ours.go_on(start.sequence, tokens[-1:], SamplingParams(**SETTINGS)).result()
        job = ours.go_on(fork, tokens[-1:], SamplingParams(**SETTINGS))
        taken = [event async for first in job.events() for event in (first, *job.waiting())]
        assert taken[-1].finish_reason is FinishReason.LENGTH and not job.waiting()
        for sequence in (start.sequence, fork):
            await ours.free(sequence)
        return list(one.tokens), [event.sampled.token for event in taken if event.sampled is not None]

    one, other = asyncio.run(work())
    assert one == other == list(engine.generate(tokens, **SETTINGS).tokens)


def test_a_cancelled_read_leaves_its_sequence_at_rest(engine: Engine) -> None:
    async def work() -> None:
        ours = AsyncEngine(engine)
        sequence = engine.new_sequence()
        task = asyncio.create_task(ours.read(sequence, list(range(10, 3000)) * 8))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not await ours.call(lambda: engine.batch.scheduler.busy)
        await ours.free(sequence)

    asyncio.run(work())

"""Many threads on one engine, one sequence, one memory: each gets what it would get alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import write_model
from memory_support import same, write_project

from foveal import Memory
from foveal.cache import SequenceFreed
from foveal.engine import Engine

pytestmark = pytest.mark.slow

THREADS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", 4)


@pytest.fixture(params=["native", "reference"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine.open(folder, threads=1, backend=request.param) as engine:
        yield engine
        assert engine.pool.live == 0, "a test (or the code it tests) kept pages"
        engine.pool.check_integrity([])


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work` returns for 0 to `count` - 1, each on a thread of its own, all begun together."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def test_sixteen_threads_generate_what_each_would_alone(engine: Engine) -> None:
    with engine.new_sequence() as base:
        engine.prefill(base, [9] * 300)

        def work(number: int) -> object:
            prompt = [5 + number] * (3 + 41 * number)
            return engine.generate(
                prompt,
                base=base if number % 2 else None,
                max_tokens=6,
                temperature=0.9 * (number % 3),
                seed=number,
                ignore_eos=True,
                logprobs=2,
            )

        alone = [work(number) for number in range(THREADS)]
        assert at_once(THREADS, work) == alone


def test_threads_that_fork_and_read_one_sequence(engine: Engine) -> None:
    """Forks have the tokens of a moment; readers of one sequence take turns."""
    with engine.new_sequence() as sequence:

        def work(number: int) -> None:
            engine.prefill(sequence, [10 + number] * 50)
            fork = engine.fork(sequence)
            assert fork.length >= 50
            shorter = engine.fork(fork, fork.length - 25)
            assert shorter.length == fork.length - 25
            engine.free(shorter)
            engine.free(fork)

        at_once(8, work)
        tokens = sequence.tokens.tolist()
        assert len(tokens) == 400
        order = tokens[::50]
        assert sorted(order) == list(range(10, 18)) and tokens == [token for token in order for _ in range(50)]
        if engine.grain == 1:
            with engine.new_sequence() as alone:
                engine.prefill(alone, tokens)
                assert same(alone, sequence)


def test_truncating_and_exporting_from_threads(engine: Engine) -> None:
    with engine.new_sequence(tail_every=512) as sequence:
        engine.prefill(sequence, [7] * 1100)

        def work(number: int) -> int:
            if number % 2:
                engine.truncate(sequence, 512)
            image = engine.export(sequence)
            with engine.restore_sequence(image) as again:
                assert again.length == image.length in (1100, 512)
            return image.length

        assert 512 in at_once(8, work)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("projects") / "p")


def test_a_memory_is_recalled_from_many_threads_while_it_is_synced(folder: Path, tmp_path: Path) -> None:
    """A recall sees the memory before or after, never between; so do its citations."""
    source = write_project(tmp_path / "p")
    with Engine.open(folder, threads=1) as engine, Memory.read(engine, source) as memory:

        def asked(memory: Memory) -> tuple[Any, ...]:
            recall = memory.recall("def f2_1(x", max_tokens=8, ignore_eos=True)
            return recall.tokens, recall.citations

        before = asked(memory)
        (source / "m1.py").write_text("changed = True\n" * 30)

        def work(number: int) -> tuple[Any, ...]:
            if number == 3:
                memory.sync("rebuild")
            if number == 5:
                with memory.fork() as fork:
                    assert fork.length == fork.places.tokens
            return asked(memory)

        results = at_once(8, work)
        after = asked(memory)
        assert before != after
        assert set(results) <= {before, after} and results[3] == after


def test_threads_extend_a_memory_in_turns(folder: Path, project: Path) -> None:
    with Engine.open(folder, threads=1) as engine, Memory.read(engine, project) as memory:
        length = memory.length
        at_once(8, lambda number: memory.extend(np.full(37, 20 + number, dtype=np.int32)))
        added = memory.sequence.tokens[length:].tolist()
        assert sorted(added[::37]) == list(range(20, 28)) and added == [t for t in added[::37] for _ in range(37)]
        with engine.new_sequence() as alone:
            engine.prefill(alone, memory.sequence.tokens)
            assert same(alone, memory.sequence)


def test_freeing_a_memory_while_others_use_it(folder: Path, project: Path) -> None:
    """Whoever began before goes on; whoever comes later is told."""
    with Engine.open(folder, threads=1) as engine:
        memory = Memory.read(engine, project)
        alone = memory.recall("def f", max_tokens=5).tokens

        def work(number: int) -> Any:
            try:
                if number == 4:
                    memory.free()
                return memory.recall("def f", max_tokens=5).tokens
            except SequenceFreed:
                return None

        results = at_once(8, work)
        assert set(results) <= {alone, None} and results[4] is None
        assert engine.pool.live == 0

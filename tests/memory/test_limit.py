"""A limit on memory: the same tokens, and a process that stays below it. Each program is a process of its own, since
the limit is on all that a process holds."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from memory_support import TINY, make_engine

from foveal import Engine, Memory
from foveal.cache import CacheError, CacheFormat, CacheFull, CacheLayout, LimitTooSmall, PagePool, Pager, Sequence
from foveal.cache.memory import address_of
from foveal.cache.pager import STRIDE, resident
from foveal.checkpoint import random_weights, write_checkpoint
from foveal.measure import make_image
from foveal.memory import StoreError, open_store
from foveal.memory.options import SourceOptions
from foveal.memory.progress import ReadTotals
from foveal.sources import Document, SourceMap, tokenize_document

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a memory limit needs Linux")

WIDE = TINY.replace(
    head_dim=512, num_hidden_layers=8, compress_ratios=(0, 4, 128, 4, 4, 4, 4, 4), index_head_dim=128, index_topk=64
)
"""Pages of a megabyte, so that few tokens outgrow a limit."""
EXACT = CacheFormat("fp32", "fp32")
PAGES = 300
SLACK = 1.1
"""How far a process may grow beyond the limit before the pager gets its turn."""
ATTEMPTS = 5
"""On a machine that is busy with other tests the system may keep the pager waiting for longer. A process that stays
below the limit once has a pager that works; one without never does."""
BEGIN = """
import json, sys
import foveal
from foveal.cache import CacheFormat
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))
model, store, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]) or None
engine = foveal.Engine.open(model, threads=1, kv=CacheFormat("fp32", "fp32"), memory_limit=limit, scratch=store)
settings = dict(max_tokens=4, ignore_eos=True)
"""
RECALL = """
with foveal.Memory.load(engine, "base", root=store) as memory:
    fork = memory.fork()
    engine.prefill(fork.sequence, [9, 8, 7] * 200)
    answers = [memory.recall("def f(", **settings).tokens]
    answers.append(engine.generate([5, 6], base=fork.sequence, **settings).tokens)
    fork.free()
print(json.dumps([peak(), answers]))
"""
READ = """
memory = foveal.Memory.read(engine, sys.argv[4], name="read", tail_every="full")
answer = memory.recall("def f3(", **settings).tokens
memory.save(root=store)
names = [memory.sequence.tokens[-700:].tolist(), memory.problem, memory.complete]
memory.free()
again = foveal.Memory.load(engine, "read", root=store).recall("def f3(", **settings).tokens
print(json.dumps([peak(), [answer, again, names]]))
"""


def run(program: str, *args: object) -> tuple[int, object]:
    """Peak of the process's memory, and what it came to."""
    command = [sys.executable, "-c", BEGIN + program, *(str(arg) for arg in args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, result = json.loads(done.stdout.splitlines()[-1])
    return peak, result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, WIDE, random_weights(WIDE, seed=1))
    nano = Path(sys.modules["foveal"].__file__ or "").parent / "weights" / "nano"
    (folder / "tokenizer.json").write_bytes((nano / "tokenizer.json").read_bytes())
    return folder


def made_up(engine: Engine, tokens: int) -> Memory:
    sequence = engine.restore_sequence(make_image(engine.pool.layout, tokens))
    places = SourceMap()
    places.append(tokenize_document(Document("a.txt", "word " * (tokens + 8)), engine.tokenizer))
    places.truncate(tokens)
    return Memory(engine, sequence, places, SourceOptions("-"), ReadTotals(tokens=tokens, complete=True))


def needed(model: Path) -> int:
    """The least limit with which the model opens, with room for a step."""
    program = BEGIN.replace("engine = ", "try:\n    engine = ") + (
        "except foveal.cache.LimitTooSmall as error:\n    print(json.dumps([error.minimum, str(error)]))\n"
    )
    program = program.replace("settings = dict(max_tokens=4, ignore_eos=True)\n", "")
    command = [sys.executable, "-c", program, str(model), str(model), "1"]
    minimum, text = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert f"give at least {-(-minimum >> 20)}M" in text or "give at least" in text
    return int(minimum) + (130 << 20)


def test_recalling_under_a_limit(model: Path, tmp_path: Path) -> None:
    engine = Engine.open(model, threads=1, kv=EXACT)
    with made_up(engine, PAGES * 256 + 77) as memory:
        memory.save("base", root=tmp_path / "store")
    limit = needed(model)
    free_peak, expected = run(RECALL, model, tmp_path / "store", 0)
    assert free_peak > limit * SLACK, "the test must not pass without a limit"
    peaks = []
    for _ in range(ATTEMPTS):
        peak, answers = run(RECALL, model, tmp_path / "store", limit)
        assert answers == expected
        peaks.append(peak)
        if peak <= limit * SLACK:
            return
    pytest.fail(f"{[peak >> 20 for peak in peaks]} MiB under a limit of {limit >> 20}")


def test_reading_more_than_the_limit(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("".join(f"def f{n}(x):\n    return x * {n * n % 7919}\n" for n in range(1600)))
    (tmp_path / "free").mkdir()
    limit = needed(model)
    free_peak, expected = run(READ, model, tmp_path / "free", 0, source)
    assert free_peak > limit * SLACK, "the test must not pass without a limit"
    peaks = []
    for attempt in range(ATTEMPTS):
        folder = tmp_path / f"limited-{attempt}"
        folder.mkdir()
        peak, result = run(READ, model, folder, limit, source)
        assert result == expected
        assert not [path for path in folder.iterdir() if path.name.startswith("tmp")]
        peaks.append(peak)
        if peak <= limit * SLACK:
            return
    pytest.fail(f"{[peak >> 20 for peak in peaks]} MiB under a limit of {limit >> 20}")


def test_damage_and_eviction_under_a_limit(model: Path, tmp_path: Path) -> None:
    """What cannot be mapped because it is damaged or evicted is computed again, as without a limit."""
    engine = Engine.open(model, threads=1, kv=EXACT)
    limit = resident() * 3
    with Memory.read(engine, _text(tmp_path), name="m") as memory:
        memory.save(root=tmp_path / "store")
        expected = memory.recall("word", max_tokens=4, ignore_eos=True)
    limited = Engine.open(model, threads=1, kv=EXACT, memory_limit=limit, scratch=tmp_path)
    pack = next((tmp_path / "store" / "packs").iterdir())
    data = bytearray(pack.read_bytes())
    for place in range(len(data) // 3, len(data), len(data) // 5):
        data[place] ^= 4
    pack.write_bytes(data)
    with Memory.load(limited, "m", root=tmp_path / "store") as loaded:
        assert loaded.recall("word", max_tokens=4, ignore_eos=True) == expected


def _text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("".join(f"word {n} is followed by {n * 37 % 101}\n" for n in range(150)))
    return path


def test_an_encrypted_store_is_refused(model: Path, tmp_path: Path) -> None:
    limited = Engine.open(model, threads=1, memory_limit=resident() * 3, scratch=tmp_path)
    store = open_store(tmp_path / "store", key=bytes(32))
    with Memory.read(limited, _text(tmp_path), name="m") as memory, pytest.raises(StoreError, match="leave the memory"):
        memory.save(root=store)


def test_what_cannot_be(model: Path) -> None:
    with pytest.raises(LimitTooSmall, match="give at least") as caught:
        Engine.open(model, threads=1, memory_limit=1 << 20)
    assert caught.value.minimum > resident()
    with pytest.raises(ValueError, match="native backend"):
        Engine.open(model, backend="reference", memory_limit=1 << 40)


def test_the_pager_gives_zeros_and_room_back(tmp_path: Path) -> None:
    pager = Pager(resident() * 4, tmp_path)
    before = os.statvfs(tmp_path).f_bfree
    held = [pager.zeros(STRIDE // 3) for _ in range(7)]
    assert all(int(data.max()) == 0 and address_of(data) % 64 == 0 for data in held)
    for number, data in enumerate(held):
        data.fill(number + 1)
    pager._let_go(0)
    assert [int(data.min()) for data in held] == [int(data.max()) for data in held] == list(range(1, 8))
    kept = pager.keep(np.arange(5.0))
    assert np.array_equal(kept, np.arange(5.0)) and pager.keep(np.empty((0, 3), np.float32)).shape == (0, 3)
    assert not list(tmp_path.iterdir()) and before >= os.statvfs(tmp_path).f_bfree
    held.clear()


def test_a_full_disk_is_a_full_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = PagePool(CacheLayout(TINY, EXACT), pager=Pager(resident() * 4, tmp_path))

    def full(*ignored: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CacheFull, match="No space left"):
        pool.acquire()
    assert pool.live == 0
    monkeypatch.undo()
    with Sequence(pool) as sequence:
        assert sequence.length == 0
    assert len(pool.acquire(3)) == 3


def test_reading_that_runs_out_of_room_keeps_what_it_has(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = Engine.open(model, threads=1, kv=EXACT, memory_limit=resident() * 3, scratch=tmp_path)
    steps = iter(range(100))
    check = Pager.check

    def fails_later(pager: Pager) -> None:
        if next(steps) == 2:
            raise LimitTooSmall(1 << 20, 2 << 20)
        check(pager)

    monkeypatch.setattr(Pager, "check", fails_later)
    with Memory.read(limited, _text(tmp_path), name="m") as memory:
        assert memory.length == 1024 and not memory.complete and "give at least 2M" in memory.problem
        memory.resume()
        assert memory.complete


def test_only_where_the_system_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CacheError, match="needs Linux"):
        Pager(1 << 40)


def test_make_engine_has_no_pager() -> None:
    assert make_engine().pool.pager is None

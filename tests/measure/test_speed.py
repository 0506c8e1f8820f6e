"""What a measurement counts and leaves behind. No test looks at how long anything took."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from cli_support import write_model

from foveal.cache import CacheFormat
from foveal.engine import Engine
from foveal.measure import MeasureError, OtherWork, Settings, cores, openable, peak_bytes
from foveal.measure.speed import Meter, Profiler, prefill_start


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("measured") / "model", seed=0)


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return Engine.open(model, threads=1)


def settings(model: Path, **changes: object) -> Settings:
    basic = Settings(str(model), 1, depths=(512,), repetitions=2, decode_tokens=4)
    return dataclasses.replace(basic, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("jump", [True, False])
def test_each_depth_gives_a_row(engine: Engine, model: Path, jump: bool) -> None:
    meter = Meter(engine, settings(model, depths=(512, 1024, 1500), jump=jump), lambda text: None)
    rows = list(meter.rows())
    assert [row.depth for row in rows] == [row.length for row in rows] == [512, 1024, 1500]
    assert [row.prefill_tokens for row in rows] == [512, 512, 476]
    for row in rows:
        assert row.cache_bytes == sum(row.cache.values()) > 0 and row.cache["csa_entries"] > 0
        assert row.prefill_tok_s > 0 and row.decode_tok_s > 0 and row.decode_ms_p90 >= row.decode_ms_p50 > 0
        assert row.decode_tokens == 4 and row.peak_bytes > 1 << 20
    times = [row.read_seconds for row in rows]
    assert times == [None] * 3 if jump else times == sorted(times)  # type: ignore[type-var]
    assert [row.cache["csa_entries"] for row in rows] == sorted(row.cache["csa_entries"] for row in rows)
    assert engine.pool.live == 0  # everything was given back


def test_decoding_leaves_the_sequence_as_it_was(engine: Engine, model: Path) -> None:
    meter = Meter(engine, settings(model), lambda text: None)
    with engine.new_sequence() as sequence, engine.new_sequence() as plain:
        meter.read(sequence, 700)
        timed = meter.decode(sequence, 3, 20)
        meter.read(sequence, 324)
        meter.read(plain, 1024)
        assert len(timed.steps) == 3 * 20 and len(timed.seconds) == 3
        assert sequence.length == plain.length == 1024
        # Where decoding came between, cuts differ: the tokens and pages must not.
        assert sequence.tokens.tolist() == plain.tokens.tolist() == meter.text(0, 1024)


def test_a_slow_part_is_not_repeated(engine: Engine, model: Path) -> None:
    meter = Meter(engine, settings(model, seconds=1e-9, repetitions=9, decode_tokens=30), lambda text: None)
    with engine.new_sequence() as sequence:
        assert len(meter.repeat_read(sequence, 512).seconds) == 1
        timed = meter.decode(sequence, 9, 30)
        assert len(timed.seconds) == 1 and 8 <= len(timed.steps) < 30
        assert sequence.length == 512


def test_decoding_stays_inside_the_context(model: Path, engine: Engine) -> None:
    meter = Meter(engine, settings(model, depths=(1536,), jump=True), lambda text: None)
    meter._limit = 1536
    (row,) = meter.rows()
    assert row.length == 1024 and row.depth == 1536


def test_a_depth_beyond_the_context_is_refused(engine: Engine, model: Path) -> None:
    with pytest.raises(MeasureError, match="beyond the model's context of 1,048,576"):
        Meter(engine, settings(model, depths=(1 << 21,)), lambda text: None)


@pytest.mark.parametrize(
    ("depth", "tokens", "start"),
    [(512, 512, 0), (513, 512, 512), (4096, 512, 3584), (4096, 1024, 3072), (100, 512, 0), (1024, 1, 512)],
)
def test_what_is_read_before_a_depth(depth: int, tokens: int, start: int) -> None:
    assert prefill_start(depth, tokens) == start


class Split:
    """A network that keeps a profile."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {"old": 9.0}

    def reset_profile(self) -> None:
        self.spent = {}

    def profile(self) -> dict[str, float]:
        return self.spent

    def index_counters(self) -> tuple[int, int]:
        return 100, 25


def test_time_is_split_as_the_network_says() -> None:
    network = Split()
    profiler = Profiler(network)
    profiler.start()
    network.spent = {"attend": 0.2, "experts": 0.5, "nothing": 0.0}
    assert profiler.split(1.0, 100) == pytest.approx({"experts": 5.0, "(other)": 3.0, "attend": 2.0})
    assert list(profiler.split(1.0, 100) or ()) == ["experts", "(other)", "attend"]
    assert profiler.index_scored() == 0.25
    assert Profiler(object()).split(1.0, 100) is None and Profiler(object()).index_scored() is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depths": ()}, "depths"),
        ({"depths": (512, 512)}, "ascending"),
        ({"depths": (0,)}, "depths"),
        ({"threads": 0}, "threads"),
        ({"decode_tokens": 0}, "decode_tokens"),
        ({"kv": "int3"}, "int3"),
    ],
)
def test_settings_are_checked(model: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(MeasureError, match=said):
        settings(model, **changes)


@pytest.mark.parametrize(
    ("kv", "index", "format"),
    [
        (None, None, None),
        ("bf16", None, CacheFormat("bf16", "bf16")),
        ("fp8", None, CacheFormat("fp8", "fp4")),
        (None, "fp4", CacheFormat("fp8", "fp4")),
        (None, "bf16", CacheFormat("bf16", "bf16")),
        ("bf16", "fp4", CacheFormat("bf16", "fp4")),
    ],
)
def test_formats_match_each_other(model: Path, kv: str | None, index: str | None, format: CacheFormat | None) -> None:
    chosen = settings(model, kv=kv, index=index)
    assert chosen.format() == format
    assert Settings.from_dict(chosen.to_dict()) == chosen


def test_a_model_without_a_tokenizer_can_be_opened(tmp_path: Path) -> None:
    bare = write_model(tmp_path / "bare", seed=1)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    with openable(bare) as folder:
        assert folder != bare
        assert Engine.open(folder, threads=1).config.vocab_size == 4096
    assert not folder.exists() and (bare / "config.json").exists()


def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu in os.sched_getaffinity(0):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-999\n")
    assert cores(tmp_path) == 1
    assert cores(tmp_path / "nothing") == len(os.sched_getaffinity(0)) >= cores()


def test_the_mark_and_the_others_are_told() -> None:
    before = peak_bytes()
    block = bytearray(64 << 20)
    assert peak_bytes() >= before + (32 << 20) or peak_bytes() > len(block)
    busy = OtherWork().cores()
    assert busy is None or busy >= 0

"""The measuring itself, in the process that holds the model: how fast it reads and writes at a depth.

Decoding goes through the engine's own loop, sampling included, greedy, on the sequence itself; afterwards the sequence
is taken back to where it was, so that a reading in progress goes on as if nothing had happened. A network may offer
``reset_profile()`` and ``profile() -> dict[str, float]`` (seconds by operation since the reset); where it does, the
time of a step is split.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import numpy as np

from foveal.batch import PREFILL_CHUNK, SamplingParams
from foveal.cache import CacheBytes, Sequence
from foveal.engine import Engine
from foveal.measure.machine import OtherWork, peak_bytes
from foveal.measure.settings import MeasureError, Settings
from foveal.measure.synthetic import make_image

Say = Callable[[str], None]

WARM_UP = 4
"""Decoding steps at the start of a repetition that do not count: one ends every CSA window."""
_FEWEST = 8
"""Decoding steps that are counted even when they take longer than the time allows."""


class Profiled(Protocol):
    """A network that says where its time went. It may also offer ``index_counters() -> (visible, scored)``."""

    def reset_profile(self) -> None:
        """Forget the times so far."""
        ...

    def profile(self) -> Mapping[str, float]:
        """Seconds by operation since `reset_profile`."""
        ...


@dataclass(frozen=True)
class DepthSpeed:
    """What was measured at one depth. Rates are tokens a second, sizes bytes, `..._ms` milliseconds.

    `length` is the sequence's length when decoding began. `prefill_tok_s` is over `prefill_tokens` tokens: those read
    since the frontier before, or, after a jump, a run of them that ends at `depth` (the median of its repetitions).
    `read_seconds` is how long reading everything took (None after a jump). `decode_tok_s` is the median of the
    repetitions. `ops` and `prefill_ops` split the mean time of a token into operations, in milliseconds, "(other)"
    being what the network does not name; None when the network keeps no profile. `index_scored` is the share of
    visible index keys that decoding scored, 1 without pruning, None when there was none or nobody counted.
    `cache_bytes` is `cache`, bytes by kind, summed. `peak_bytes` is the process's memory mark so far. `other_cores` is
    what other processes kept busy.
    """

    depth: int
    length: int
    prefill_tok_s: float
    prefill_tokens: int
    read_seconds: float | None
    decode_tok_s: float
    decode_tokens: int
    decode_ms_p50: float
    decode_ms_p90: float
    ops: dict[str, float] | None
    prefill_ops: dict[str, float] | None
    index_scored: float | None
    cache_bytes: int
    cache: dict[str, int]
    peak_bytes: int
    other_cores: float | None


@dataclass
class Timed:
    """Repetitions of one part: `seconds` of each, of `tokens` tokens; and the split of all of them."""

    tokens: int
    seconds: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    ops: dict[str, float] | None = None
    index_scored: float | None = None

    @property
    def rate(self) -> float:
        """Tokens a second, the median of the repetitions."""
        return self.tokens / statistics.median(self.seconds)


class Profiler:
    """Splits time by operation, if `network` can."""

    def __init__(self, network: object) -> None:
        able = callable(getattr(network, "profile", None)) and callable(getattr(network, "reset_profile", None))
        self._network = cast(Profiled, network) if able else None

    def start(self) -> None:
        """Forget what was before."""
        if self._network is not None:
            self._network.reset_profile()

    def split(self, seconds: float, tokens: int) -> dict[str, float] | None:
        """Milliseconds a token by operation since `start`, longest first, when `tokens` took `seconds`."""
        if self._network is None:
            return None
        named = dict(self._network.profile())
        named["(other)"] = max(0.0, seconds - sum(named.values()))
        ordered = sorted(named.items(), key=lambda item: -item[1])
        return {name: 1e3 * spent / tokens for name, spent in ordered if spent > 0}

    def index_scored(self) -> float | None:
        """Share of the visible index keys that were scored since `start`."""
        counters = getattr(self._network, "index_counters", None)
        visible, scored = counters() if callable(counters) else (0, 0)
        return scored / visible if visible else None


class Meter:
    """Measures one engine under `settings`; `say` is told what is going on."""

    def __init__(self, engine: Engine, settings: Settings, say: Say) -> None:
        self.engine, self.settings, self.say = engine, settings, say
        self.profiler = Profiler(engine.network)
        generator = np.random.default_rng(settings.seed)
        vocabulary = engine.config.vocab_size
        self._text = generator.integers(0, vocabulary, 1 << 16).tolist()
        self._limit = engine.batch.context_length
        if settings.depths[-1] > self._limit:
            raise MeasureError(f"depth {settings.depths[-1]:,} is beyond the model's context of {self._limit:,} tokens")

    def warm_up(self) -> None:
        """Touch the weights and let every buffer find its size, on a sequence that is thrown away."""
        self.say("warming up")
        with self.engine.new_sequence() as sequence:
            self.read(sequence, min(PREFILL_CHUNK, self.settings.depths[-1]))
            self.decode(sequence, 1, WARM_UP)

    def rows(self) -> Iterator[DepthSpeed]:
        """A row for each depth: after a jump each, or along one reading."""
        self.warm_up()
        if self.settings.jump:
            for depth in self.settings.depths:
                yield self.jumped(depth)
        else:
            yield from self.running()

    # ------------------------------------------------------------------ the two ways to a depth

    def jumped(self, depth: int) -> DepthSpeed:
        """Make up everything before about `depth`, then time the reading of the rest, several times."""
        others = OtherWork()
        start = prefill_start(depth, self.settings.prefill_tokens)
        with self.filled(start) as sequence:
            self.say(f"reading at {depth:,}")
            timed = self.repeat_read(sequence, depth - start)
            if self._fits(depth):
                return self._row(sequence, sequence.nbytes(), depth, timed, None, others)
            held = sequence.nbytes()
        with self.filled(self._last_resort(depth)) as sequence:
            return self._row(sequence, held, depth, timed, None, others)

    def filled(self, length: int) -> Sequence:
        """A sequence of `length` tokens that nobody read."""
        self.say(f"making up {length:,} tokens")
        return self.engine.restore_sequence(make_image(self.engine.pool.layout, length, seed=self.settings.seed))

    def running(self) -> Iterator[DepthSpeed]:
        """Read from nothing to the last depth, and measure at each frontier on the way."""
        total = 0.0
        with self.engine.new_sequence() as sequence:
            for depth in self.settings.depths:
                row = self._frontier(sequence, depth, total)
                total = row.read_seconds or 0.0
                yield row

    def _frontier(self, sequence: Sequence, depth: int, total: float) -> DepthSpeed:
        """Read on to `depth`, after `total` seconds of reading, and measure there."""
        others, timed = OtherWork(), Timed(depth - sequence.length)
        place = max(sequence.length, self._last_resort(depth))
        self.profiler.start()
        spent = self.read(sequence, place - sequence.length)
        sequence.keep_tail()
        spent += self.read(sequence, depth - place)
        timed.seconds.append(spent)
        timed.ops = self.profiler.split(spent, timed.tokens)
        held = sequence.nbytes()
        if not self._fits(depth):
            sequence.truncate(self._last_resort(depth))
        return self._row(sequence, held, depth, timed, total + spent, others)

    def _fits(self, depth: int) -> bool:
        """Whether there is room in the context to decode after `depth`."""
        return depth + 1 + self.settings.decode_tokens + WARM_UP <= self._limit

    def _last_resort(self, depth: int) -> int:
        """Where decoding can begin when the context ends at `depth`."""
        return max(0, (depth - self.settings.decode_tokens - WARM_UP - 1) // PREFILL_CHUNK * PREFILL_CHUNK)

    def _row(
        self, sequence: Sequence, held: CacheBytes, depth: int, read: Timed, total: float | None, others: OtherWork
    ) -> DepthSpeed:
        """Decode where `sequence` is, and put everything measured at `depth` together."""
        self.say(f"decoding at {depth:,}")
        cache = held.to_dict()
        del cache["kept_tails"]  # they serve the measuring
        length = sequence.length
        decoded = self.decode(sequence, self.settings.repetitions, self.settings.decode_tokens)
        return DepthSpeed(
            depth=depth,
            length=length,
            prefill_tok_s=read.rate,
            prefill_tokens=read.tokens,
            read_seconds=total,
            decode_tok_s=decoded.rate,
            decode_tokens=decoded.tokens,
            decode_ms_p50=1e3 * statistics.median(decoded.steps),
            decode_ms_p90=1e3 * sorted(decoded.steps)[int(0.9 * len(decoded.steps))],
            ops=decoded.ops,
            prefill_ops=read.ops,
            index_scored=decoded.index_scored,
            cache_bytes=sum(cache.values()),
            cache=cache,
            peak_bytes=peak_bytes(),
            other_cores=others.cores(),
        )

    # ------------------------------------------------------------------ the two parts

    def read(self, sequence: Sequence, count: int) -> float:
        """Run the next `count` tokens into `sequence`; returns seconds."""
        progress = self._progress("reading")
        spent = 0.0
        for start in range(0, count, PREFILL_CHUNK * 16):
            tokens = self.text(sequence.length, min(PREFILL_CHUNK * 16, count - start))
            began = time.perf_counter()
            self.engine.prefill(sequence, tokens)
            spent += time.perf_counter() - began
            progress(start + len(tokens), count)
        return spent

    def repeat_read(self, sequence: Sequence, count: int) -> Timed:
        """Time the reading of `count` tokens, each time from the same place; the last time they stay read."""
        place, timed = sequence.length, Timed(count)
        sequence.keep_tail()
        self.profiler.start()
        while True:
            timed.seconds.append(self.read(sequence, count))
            if len(timed.seconds) >= self.settings.repetitions or sum(timed.seconds) > self.settings.seconds:
                break
            sequence.truncate(place)
        timed.ops = self.profiler.split(sum(timed.seconds), count * len(timed.seconds))
        return timed

    def decode(self, sequence: Sequence, repetitions: int, count: int) -> Timed:
        """Time `count` tokens chosen one after the other, each time from the same place, where `sequence` ends up."""
        place, timed = sequence.length, Timed(count)
        sequence.keep_tail()
        self.profiler.start()
        passed, passes = 0.0, 0
        for _ in range(repetitions):
            # On the engine's thread a job's steps are taken when they are asked for: nothing runs ahead.
            steps = self.engine.call(partial(self._steps, sequence, count))
            sequence.truncate(place)
            passed, passes = passed + sum(steps), passes + len(steps)
            counted = steps[WARM_UP:]
            timed.steps += counted
            timed.seconds.append(sum(counted) * count / len(counted))
            if passed > self.settings.seconds:
                break
        timed.ops = self.profiler.split(passed, passes)
        timed.index_scored = self.profiler.index_scored()
        return timed

    def _steps(self, sequence: Sequence, count: int) -> list[float]:
        """Seconds of each step of one request: `WARM_UP` and then `count` steps, fewer when time is up."""
        params = SamplingParams(max_tokens=WARM_UP + count, ignore_eos=True)
        steps: list[float] = []
        with self.engine.go_on(sequence, self.text(sequence.length, 1), params) as job:
            events, began = iter(job), time.perf_counter()
            while next(events, None) is not None:
                steps.append(time.perf_counter() - began)
                if sum(steps) > self.settings.seconds and len(steps) >= WARM_UP + _FEWEST:
                    break
                began = time.perf_counter()
        return steps

    # ------------------------------------------------------------------ helpers

    def text(self, position: int, count: int) -> list[int]:
        """Random tokens for the positions from `position` on: the same for every way to get there."""
        size = len(self._text)
        start = position % size
        doubled = self._text[start:] + self._text[:start]
        return (doubled * (1 + count // size))[:count]

    def _progress(self, what: str) -> Callable[[int, int], None]:
        began = time.monotonic()

        def report(done: int, total: int) -> None:
            if time.monotonic() - began > 1:
                self.say(f"{what}: {done:,} of {total:,} tokens")

        return report


def prefill_start(depth: int, tokens: int) -> int:
    """Where to begin so that about `tokens` tokens, in whole chunks of the engine, end at `depth`."""
    last = (depth - 1) // PREFILL_CHUNK * PREFILL_CHUNK
    return max(0, last - (tokens - 1) // PREFILL_CHUNK * PREFILL_CHUNK)


def facts(engine: Engine, settings: Settings) -> dict[str, Any]:
    """What the measuring process knows about itself: `threads` and the network's class."""
    return {"threads": settings.threads, "network": type(engine.network).__name__, "cache": str(engine.kv)}

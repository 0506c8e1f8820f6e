"""A batch engine over a network whose next token is known, stepped by the test itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from foveal.batch import GREEDY, BatchEngine, Event, Request, SamplingParams
from foveal.cache.contract import LayerTrace, Observer, Segment
from foveal.config import ModelConfig

TINY = ModelConfig(
    vocab_size=260,
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    head_dim=32,
    qk_rope_head_dim=16,
    q_lora_rank=32,
    o_groups=2,
    o_lora_rank=32,
    compress_ratios=(0, 4, 128, 4),
    index_n_heads=4,
    index_head_dim=32,
    index_topk=32,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    num_hash_layers=1,
    routed_scaling_factor=1.5,
    num_nextn_predict_layers=0,
    expert_dtype="bf16",
    linear_dtype="bf16",
)
"""Small enough to test with; only its vocabulary matters to the mock."""


class Clock:
    """A time that only passes when the test, or the mock network, says so: `step` seconds for each pass, and `token`
    for each of its tokens."""

    def __init__(self, step: float = 0.001, token: float = 0.0001) -> None:
        self.now, self.step, self.token = 0.0, step, token

    def __call__(self) -> float:
        return self.now


class MockState:
    """Remembers its tokens, nothing else. `limit` makes it fail when it grows beyond that length."""

    def __init__(self, tokens: Sequence[int] = (), limit: int | None = None) -> None:
        self.tokens = list(tokens)
        self.limit = limit

    @property
    def length(self) -> int:
        return len(self.tokens)

    def advance(self, tokens: np.ndarray) -> None:
        self.tokens += tokens.tolist()
        if self.limit is not None and self.length > self.limit:
            raise RuntimeError("out of pages")


class MockNetwork:
    """Logits after a history: `rule(history)` gets all the weight, or a pseudo-random row that depends on all of it."""

    def __init__(
        self,
        rule: Callable[[list[int]], int] | None = None,
        config: ModelConfig = TINY,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.config = config
        self.rule = rule
        self.clock = clock
        self.passes: list[list[tuple[int, int]]] = []

    def __call__(self, tokens: np.ndarray, segments: Sequence[Segment], observer: Observer | None = None) -> np.ndarray:
        rows: list[np.ndarray] = []
        if self.clock is not None:
            self.clock.now += self.clock.step + self.clock.token * len(tokens)
        self.passes.append([(segment.state.length, segment.count) for segment in segments])
        start = 0
        for place, segment in enumerate(segments):
            state = segment.state
            assert isinstance(state, MockState)
            piece = tokens[start : start + segment.count]
            start += segment.count
            for offset in range(segment.count):
                rows.append(self._row([*state.tokens, *piece[: offset + 1].tolist()]))
            state.advance(piece)
            if observer is not None:
                last = np.array([state.length - 1])
                observer.traces.append(LayerTrace(0, place, 4, last // 4, np.ones(1), np.ones(1)))
        return np.stack(rows)[:, None, :]

    def logits(self, streams: np.ndarray) -> np.ndarray:
        return streams[:, 0, :]

    def _row(self, history: list[int]) -> np.ndarray:
        if self.rule is not None:
            row = np.zeros(self.config.vocab_size, np.float32)
            row[self.rule(history)] = 20.0
            return row
        seed = 0
        for token in history:
            seed = (seed * 1_000_003 + token + 1) % (2**61 - 1)
        return np.random.default_rng(seed).standard_normal(self.config.vocab_size, dtype=np.float32)


def counting(history: list[int]) -> int:
    """After token n comes n + 1, within the byte ids."""
    return 4 + (history[-1] - 3) % 256


class Letters:
    """A text stream: id 4 + b is byte b; finds one stop string across tokens by holding text back."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stop = stop
        self.held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        self.held += chr(token - 4)
        for text in self.stop:
            if text in self.held:
                self.stopped = True
                return self.held[: self.held.index(text)]
        keep = max((n for s in self.stop for n in range(len(s)) if self.held.endswith(s[:n])), default=0)
        out, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return out

    def flush(self) -> str:
        out, self.held = self.held, ""
        return out


def ids(text: str) -> list[int]:
    return [4 + ord(letter) for letter in text]


class Driven(BatchEngine):
    """Requests whose events are kept for whoever asks; asking takes the steps that are needed."""

    def submit(self, state: Any, prompt: Sequence[int], params: SamplingParams = GREEDY, **options: Any) -> Request:
        request = self.request(prompt, params, state=state, **options)
        self.kept(request)
        self.add(request)
        return request

    def kept(self, request: Request) -> list[Event]:
        """The events of `request` so far."""
        if not hasattr(self, "_kept"):
            self._kept: dict[int, list[Event]] = {}
        if request.id not in self._kept:
            self._kept[request.id] = []
            request.sink = self._kept[request.id].append
        return self._kept[request.id]

    def events(self, request: Request) -> Iterator[Event]:
        kept = self.kept(request)
        while request.finish_reason is None or kept:
            while not kept:
                assert self.step(), "nothing can be run, and the request has not ended"
            yield kept.pop(0)


def finish(engine: Driven, request: Request) -> tuple[list[Event], str, list[int]]:
    events = list(engine.events(request))
    tokens = [e.sampled.token for e in events if e.sampled is not None and e.is_output]
    return events, "".join(e.text for e in events), tokens

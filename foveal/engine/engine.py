"""The engine: many sequences, one loop of three calls.

What is special here: `step` is ``schedule -> run -> postprocess`` and nothing is hidden beside it. Each sequence runs
in a forward pass of its own unless `batched` is set: with the reference backend the last bits of a product depend on
how many rows it has, so putting two sequences into one pass would let one change the other. A backend whose kernels
are batch-invariant sets `batched`, and the same test holds for it.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from foveal.engine.request import (
    GREEDY,
    ContextLengthError,
    Event,
    FinishReason,
    Network,
    ParameterError,
    Request,
    Sampled,
    SamplingParams,
    TextStream,
    TokenConstraint,
)
from foveal.engine.sampler import sample
from foveal.engine.scheduler import Scheduler, Work, next_cut
from foveal.engine.tokens import IdArray, token_ids
from foveal.model import LayerTrace, Observer, Segment, SequenceState


class BatchEngine:
    """Continues many sequences at once.

    `submit` takes a request, `events` yields what happens to it (stepping the engine, and so every other request, as
    needed), `cancel` ends it. `step` may also be called directly. Safe to use from several threads: a step is taken by
    one thread at a time.
    """

    def __init__(
        self,
        network: Network,
        *,
        scheduler: Scheduler | None = None,
        batched: bool = False,
        vocabulary: int | None = None,
        context_length: int | None = None,
    ) -> None:
        """`vocabulary`: ids from here on, which pad the network's vocabulary, are never chosen (default: none are
        padding). `context_length`: tokens a sequence may have (default: the model's `max_position_embeddings`)."""
        self.network = network
        self.config = network.config
        self.vocabulary = _or_default(vocabulary, network.config.vocab_size, "vocabulary")
        self.context_length = _or_default(context_length, network.config.max_position_embeddings, "context_length")
        self.scheduler = scheduler or Scheduler()
        self.batched = batched
        self._ids = itertools.count(1)
        self._events: dict[int, deque[Event]] = {}
        self._lock = threading.RLock()

    @property
    def grain(self) -> int:
        """A prompt may be cut at every multiple of so many tokens without changing a bit of what it leaves: with
        batch-invariant kernels at any token, else where the scheduler cuts."""
        return 1 if self.batched else self.scheduler.chunk

    # ------------------------------------------------------------------ requests

    def submit(
        self,
        state: SequenceState,
        prompt: Sequence[int],
        params: SamplingParams = GREEDY,
        *,
        text: TextStream | None = None,
        constraint: TokenConstraint | None = None,
        trace: bool = False,
    ) -> Request:
        """Queue the continuation of `state` by `prompt` (token ids, at least one).

        The request owns `state` from now on and changes it. Raises `ParameterError` when the prompt is empty or holds
        an id outside the vocabulary, as `stop_tokens` may, or when stop strings are given without `text` to find them;
        `ContextLengthError` when the prompt and `max_tokens` do not fit the context.
        """
        ids = self.check_tokens(prompt)
        if not len(ids):
            raise ParameterError("the prompt is empty; give at least one token")
        self.check_room(state.length + len(ids), params)
        outside = [token for token in params.stop_tokens if token >= self.config.vocab_size]
        if outside:
            allowed = f"in the vocabulary (0 to {self.config.vocab_size - 1})"
            raise ParameterError(f"sampling parameter 'stop_tokens' has {outside[0]}; it must be {allowed}")
        if params.stop and text is None:
            raise ParameterError("stop strings need a text stream; use stop_tokens for requests without one")
        seed = params.seed if params.seed is not None else secrets.randbits(62)
        with self._lock:
            request = Request(
                id=next(self._ids),
                state=state,
                prompt=tuple(ids.tolist()),
                params=params,
                seed=seed,
                text=text,
                constraint=constraint,
                trace=trace,
            )
            self._events[request.id] = deque()
            self.scheduler.add(request)
        return request

    def check_tokens(self, tokens: Sequence[int]) -> IdArray:
        """The ids as int64 [n]. Raises `ParameterError` naming the first that is none of the vocabulary."""
        return token_ids(tokens, self.config.vocab_size)

    def check_length(self, length: int, what: str = "a sequence") -> None:
        """Raises `ContextLengthError` when `length` tokens are more than the context holds; `what` has them."""
        if length > self.context_length:
            raise ContextLengthError(
                f"{what} of {length:,} tokens is longer than the model's context of {self.context_length:,} tokens"
            )

    def check_room(self, length: int, params: SamplingParams) -> None:
        """Raises `ContextLengthError` when `params.max_tokens` more tokens do not fit behind `length`."""
        self.check_length(length, "a prompt, with what stands before it,")
        room = self.context_length - length
        if params.max_tokens > room:
            raise ContextLengthError(
                f"{params.max_tokens:,} more tokens (max_tokens) do not fit behind {length:,}: the model's context is "
                f"{self.context_length:,} tokens; ask for at most {room:,}"
            )

    def cancel(self, request: Request) -> None:
        """End `request` before its next step; its last event says so. Does nothing when it has ended."""
        with self._lock:
            if request.finish_reason is None:
                held = request.text.flush() if request.text is not None else ""
                self._end(request, FinishReason.CANCELLED)
                self._emit(Event(request.id, text=held, finish_reason=FinishReason.CANCELLED))

    def events(self, request: Request) -> Iterator[Event]:
        """What happens to `request`, until its last event. Closing the iterator early cancels the request.

        Events are given once: a second iteration after the last event yields nothing.
        """
        queue = self._events.setdefault(request.id, deque())
        try:
            while True:
                with self._lock:
                    while not queue and request.finish_reason is None:
                        self.step()
                    if not queue:
                        return
                    event = queue.popleft()
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            self.cancel(request)
            self._events.pop(request.id, None)

    # ------------------------------------------------------------------ the loop

    @torch.no_grad()
    def step(self) -> list[Event]:
        """One step for everybody: schedule -> run -> postprocess. Returns what happened, also queued for `events`."""
        with self._lock:
            plan = self.scheduler.schedule()
            results = self._run_together(plan) if self.batched else [self._run_alone(work) for work in plan]
            return [event for work, result in zip(plan, results, strict=True) for event in self._after(work, result)]

    def _run_alone(self, work: Work) -> _Result:
        """One request in a pass of its own. Its failure is its own: other requests go on."""
        observer = Observer() if work.last and work.request.trace else None
        try:
            streams = self._forward([work], observer)
            logits = self.network.logits(streams[-1:])[0] if work.last else None
        except Exception as error:
            return _Result(error=error)
        return _Result(logits, tuple(observer.traces) if observer is not None else ())

    def _run_together(self, plan: list[Work]) -> list[_Result]:
        """All requests in one pass; for backends with batch-invariant kernels. After a failure, which leaves all states
        as they were, each runs alone, so that it hits only those it concerns."""
        if not plan:
            return []
        observer = Observer() if any(work.last and work.request.trace for work in plan) else None
        try:
            streams = self._forward(plan, observer)
            ends = [end - 1 for end in itertools.accumulate(len(work.tokens) for work in plan)]
            logits = self.network.logits(streams if len(streams) == len(plan) else streams[ends])
        except Exception:
            return [self._run_alone(work) for work in plan]
        return [
            _Result(
                logits[place] if work.last else None,
                tuple(t for t in observer.traces if t.segment == place)
                if observer is not None and work.request.trace
                else (),
            )
            for place, work in enumerate(plan)
        ]

    def _forward(self, plan: Sequence[Work], observer: Observer | None) -> Tensor:
        tokens = torch.from_numpy(np.array([token for work in plan for token in work.tokens], dtype=np.int64))
        segments = [Segment(work.request.state, len(work.tokens)) for work in plan]
        return self.network(tokens, segments, observer)

    def _after(self, work: Work, result: _Result) -> list[Event]:
        """Take the tokens that were run off the request, and choose the next one when its prompt is through."""
        request = work.request
        if result.error is not None:
            return [self._fail(request, result.error)]
        del request.pending[: len(work.tokens)]
        if result.logits is None:
            return []
        try:
            event = self._choose(request, result.logits, result.trace)
        except Exception as error:
            return [self._fail(request, error)]
        self._emit(event)
        return [event]

    def _choose(self, request: Request, logits: Tensor, trace: tuple[LayerTrace, ...]) -> Event:
        allowed = request.constraint.allowed() if request.constraint is not None else None
        known = logits[: self.vocabulary]
        chosen = sample(known, request.params, seed=request.seed, index=len(request.generated), allowed=allowed)
        if request.constraint is not None and allowed is not None:
            request.constraint.accept(chosen.token)
            request.constrained += 1
        if self._is_stop_token(request.params, chosen.token):
            held = request.text.flush() if request.text is not None else ""
            self._end(request, FinishReason.STOP)
            return Event(request.id, chosen, held, is_output=False, finish_reason=FinishReason.STOP, trace=trace)
        request.generated.append(chosen.token)
        request.pending.append(chosen.token)
        text, reason = self._text_after(request, chosen)
        if reason is not None:
            self._end(request, reason)
        return Event(request.id, chosen, text, finish_reason=reason, trace=trace)

    def _text_after(self, request: Request, chosen: Sampled) -> tuple[str, FinishReason | None]:
        text = request.text.push(chosen.token) if request.text is not None else ""
        if request.text is not None and request.text.stopped:
            return text, FinishReason.STOP
        full = request.state.length + len(request.pending) >= self.context_length
        if len(request.generated) - request.constrained < request.params.max_tokens and not full:
            return text, None
        return text + (request.text.flush() if request.text is not None else ""), FinishReason.LENGTH

    def _is_stop_token(self, params: SamplingParams, token: int) -> bool:
        is_eos = token == self.config.eos_token_id and not params.ignore_eos
        return is_eos or token in params.stop_tokens

    def _fail(self, request: Request, error: Exception) -> Event:
        self._end(request, FinishReason.ERROR)
        event = Event(request.id, finish_reason=FinishReason.ERROR, error=error)
        self._emit(event)
        return event

    def _end(self, request: Request, reason: FinishReason) -> None:
        request.finish_reason = reason
        self.scheduler.remove(request)

    def _emit(self, event: Event) -> None:
        queue = self._events.get(event.request_id)
        if queue is not None:
            queue.append(event)

    # ------------------------------------------------------------------ without sampling

    @torch.no_grad()
    def prefill(self, state: SequenceState, tokens: Sequence[int]) -> int:
        """Run the tokens up to the next cut into `state`, choosing nothing. Returns how many were run.

        The cuts are those of the scheduler, so that reading and generating leave the same bits. Raises
        `ParameterError` for an unknown id, `ContextLengthError` when the tokens do not all fit the context,
        `foveal.model.NotFiniteError`.
        """
        ids = self.check_tokens(tokens)
        self.check_length(state.length + len(ids))
        size = next_cut(state.length, len(ids), self.scheduler.chunk)
        if size:
            with self._lock:
                self.network(torch.from_numpy(ids[:size]), [Segment(state, size)])
        return size


class _Result:
    """What a pass gave one request: `logits` [vocab] when its pending tokens are all run, or the failure."""

    __slots__ = ("error", "logits", "trace")

    def __init__(
        self, logits: Tensor | None = None, trace: tuple[LayerTrace, ...] = (), error: Exception | None = None
    ) -> None:
        self.logits = logits
        self.trace = trace
        self.error = error


def _or_default(value: int | None, default: int, name: str) -> int:
    if value is not None and value < 1:
        raise ParameterError(f"{name} is {value}; it must be an integer >= 1")
    return default if value is None else value

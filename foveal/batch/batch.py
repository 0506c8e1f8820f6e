"""The engine: many sequences, one step of three calls.

`step` is ``schedule -> run -> postprocess`` and nothing is hidden beside it: who runs is `foveal.batch.scheduler`'s,
forward passes are `foveal.batch.passes`', and what their results mean to a request is here.

Nothing here knows of threads: one thread calls all of it (`foveal.batch.loop`).
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from foveal.batch.admission import Admission
from foveal.batch.passes import Passes, PassResult
from foveal.batch.penalties import Tally, adjusts
from foveal.batch.ran import Ran
from foveal.batch.request import (
    GREEDY,
    Event,
    FinishReason,
    Kind,
    Network,
    Priority,
    Request,
    Sampled,
    SamplingParams,
    TextStream,
    TokenConstraint,
)
from foveal.batch.room import Room
from foveal.batch.sampler import sample
from foveal.batch.scheduler import Scheduler, Work
from foveal.batch.tokens import IdArray, Tokens, token_ids
from foveal.cache import CacheFull
from foveal.cache.contract import AnyState
from foveal.errors import ContextLengthError, FovealError, ParameterError
from foveal.process.logs import logger

_log = logger(__name__)


class SequenceBusy(FovealError, RuntimeError):
    """A request runs on the sequence; wait for it or cancel it."""

    code = "conflict"


class BatchEngine:
    """Continues many sequences at once.

    `request` makes a request (on any thread), `add` takes it in, `step` runs one step for all of them, `cancel` ends
    one. What happens to a request goes to its `sink`.
    """

    def __init__(
        self,
        network: Network,
        *,
        scheduler: Scheduler | None = None,
        batched: bool = False,
        vocabulary: int | None = None,
        context_length: int | None = None,
        room: Room | None = None,
    ) -> None:
        """`batched`: all sequences may run in one pass (`Passes`). `vocabulary`: ids from here on, which pad the
        network's vocabulary, are never chosen (default: none are padding). `context_length`: tokens a sequence may have
        (default: the model's `max_position_embeddings`). `room`: where the states have their memory (default: it does
        not end)."""
        self.config = network.config
        self.vocabulary = _or_default(vocabulary, network.config.vocab_size, "vocabulary")
        self.context_length = _or_default(context_length, network.config.max_position_embeddings, "context_length")
        self.scheduler = scheduler or Scheduler()
        self.scheduler.grain = 1 if batched else self.scheduler.chunk
        self.passes = Passes(network, vocabulary=self.vocabulary, batched=batched)
        self.ran = Ran()
        self.admission = Admission(self.scheduler, self._begin, self._fail, room)
        self._ids = itertools.count(1)
        self._leaving: dict[int, Callable[[AnyState], None]] = {}
        """By the `id` of a state in use: what to call when it is not any more."""

    @property
    def network(self) -> Network:
        """What runs the tokens."""
        return self.passes.network

    @property
    def grain(self) -> int:
        """A prompt may be cut at every multiple of so many tokens without changing a bit of what it leaves: with
        batch-invariant kernels at any token, else where the scheduler cuts."""
        return self.scheduler.grain

    # ------------------------------------------------------------------ requests

    def request(
        self,
        prompt: Tokens,
        params: SamplingParams = GREEDY,
        *,
        state: AnyState | None = None,
        begin: Callable[[], AnyState] | None = None,
        release: Callable[[AnyState], None] | None = None,
        kind: Kind = Kind.GENERATE,
        priority: Priority = Priority.INTERACTIVE,
        tenant: str = "",
        deadline: float | None = None,
        text: TextStream | None = None,
        constraint: TokenConstraint | None = None,
        trace: bool = False,
        whole_prompt: Tokens | None = None,
        targets: Tokens | None = None,
    ) -> Request:
        """A request to continue `state` (or what `begin` makes when it is taken in) by `prompt` (token ids, at least
        one), and, when its kind is `GENERATE`, to choose tokens as `params` say. `whole_prompt`: the ids that a
        repetition penalty counts, where `prompt` is only the end of them. `targets`, of a request whose kind is
        `SCORE`: what follows each token of the prompt; each is told with `params.logprobs` alternatives. For the rest
        see `Request`.

        The request owns the state from `add` on and changes it. Raises `ParameterError` when the prompt is empty or
        holds an id outside the vocabulary, as `stop_tokens` and `logit_bias` may, when stop strings are given without
        `text` to find them, or when `kind`, `priority`, `tenant` or `deadline` is of another type.
        """
        ids = self.check_tokens(prompt)
        if not len(ids):
            raise ParameterError("the prompt is empty; give at least one token")
        outside = [token for token in params.stop_tokens if token >= self.config.vocab_size]
        if outside:
            allowed = f"in the vocabulary (0 to {self.config.vocab_size - 1})"
            raise ParameterError(f"sampling parameter 'stop_tokens' has {outside[0]}; it must be {allowed}")
        outside = [token for token, _ in params.logit_bias if token >= self.vocabulary]
        if outside:
            allowed = f"in the vocabulary (0 to {self.vocabulary - 1})"
            raise ParameterError(f"sampling parameter 'logit_bias' has token {outside[0]}; it must be {allowed}")
        if params.stop and text is None:
            raise ParameterError("stop strings need a text stream; use stop_tokens for requests without one")
        _check_options(kind, priority, tenant, deadline)
        if (targets is None) == (kind is Kind.SCORE):
            raise ParameterError("targets are for scoring, and scoring needs them")
        follows = None if targets is None else token_ids(targets, self.vocabulary)
        if follows is not None and len(follows) != len(ids):
            raise ParameterError(f"there are {len(follows)} targets for {len(ids)} tokens; each token has one")
        return Request(
            id=next(self._ids),
            prompt=ids,
            params=params,
            seed=params.seed if params.seed is not None else secrets.randbits(62),
            held=state,
            begin=begin,
            release=release,
            kind=kind,
            priority=priority,
            tenant=tenant,
            deadline=deadline,
            text=text,
            constraint=constraint,
            trace=trace,
            targets=follows,
            tally=self._tally(params, ids if whole_prompt is None else self.check_tokens(whole_prompt)),
        )

    def _tally(self, params: SamplingParams, prompt: IdArray) -> Tally | None:
        return Tally(params, prompt, self.vocabulary) if adjusts(params) else None

    def add(self, request: Request) -> None:
        """Take `request` in. One whose state cannot be made, or whose prompt and `max_tokens` do not fit the context
        behind it, ends at once with that error."""
        try:
            if request.held is None:
                self._begin(request)
            else:
                self._check_request(request)
        except CacheFull as error:
            if request.held is not None or not self.scheduler.busy:
                self._fail(request, error)
            else:  # it is tried again when somebody else has ended
                self.scheduler.add(request)
        except Exception as error:
            self._fail(request, error)
        else:
            self.scheduler.add(request)

    def _begin(self, request: Request) -> None:
        assert request.begin is not None
        request.held = request.begin()
        self._check_request(request)

    def _check_request(self, request: Request) -> None:
        length = request.state.length + len(request.prompt)
        if request.kind is Kind.GENERATE:
            self.check_room(length, request.params)
        else:
            self.check_length(length)
        self.admission.check(request)

    def check_tokens(self, tokens: Tokens) -> IdArray:
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

    def check_idle(self, state: AnyState) -> None:
        """Raises `SequenceBusy` when a request runs, or waits to run, on `state`."""
        if self._in_use(state):
            raise SequenceBusy("a job runs on this sequence; wait for it, or cancel it, before changing it")

    def release(self, state: AnyState, free: Callable[[AnyState], None]) -> None:
        """Call `free` when no request runs, or waits to run, on `state` any more: now, or when the last one ends."""
        if self._in_use(state):
            self._leaving[id(state)] = free
        else:
            free(state)

    def _in_use(self, state: AnyState) -> bool:
        return any(request.held is state for request in self.scheduler.requests())

    def cancel(self, request: Request) -> None:
        """End `request` before its next step; its last event says so. Does nothing when it has ended."""
        self._finish_early(request, FinishReason.CANCELLED)

    def abandon(self, error: BaseException | None) -> None:
        """End all requests: cancelled, or with `error`."""
        for request in self.scheduler.requests():
            if error is None:
                self._finish_early(request, FinishReason.CANCELLED)
            else:
                self._fail(request, error)

    # ------------------------------------------------------------------ the step

    def step(self) -> bool:
        """One step for everybody: schedule -> run -> postprocess. Returns whether anything was run.

        Requests whose state was freed under them fail, and no others."""
        try:
            return self._step()
        except Exception:
            if not self._fail_freed():
                raise
            return True

    def _fail_freed(self) -> bool:
        """Whether there were any."""
        found = False
        for request in self.scheduler.requests():
            try:
                request.held is None or request.held.length  # noqa: B018
            except Exception as error:
                self._fail(request, error)
                found = True
        return found

    def _step(self) -> bool:
        for request in self.scheduler.expired():
            self._finish_early(request, FinishReason.DEADLINE)
        self.admission.admit()
        plan = self.admission.fitting(self.scheduler.schedule())
        if not plan:
            return False
        depths = [work.request.state.length for work in plan]
        began = self.scheduler.clock()
        results = self.passes.run(plan)
        took = self.scheduler.clock() - began
        self.ran.add(took)
        if not any(result.error for result in results):
            self.scheduler.ran(plan, depths, took)
        for work, result in zip(plan, results, strict=True):
            self._after(work, result)
        return True

    def _after(self, work: Work, result: PassResult) -> None:
        """Take the tokens that were run off the request, and choose the next one when its prompt is through."""
        request = work.request
        if result.error is not None:
            self._fail(request, result.error)
            return
        if work.reads:
            request.read += work.count
        try:
            event = self._event(work, result)
        except Exception as error:
            self._fail(request, error)
        else:
            if event is not None:
                self._send(request, event)

    def _event(self, work: Work, result: PassResult) -> Event | None:
        request = work.request
        if request.kind is not Kind.GENERATE:
            reason = FinishReason.DONE if work.last else None
            return Event(request.id, finish_reason=reason, scored=result.scored, ran=work.count, at=_now())
        return self._choose(request, result, work.count) if result.logits is not None else None

    def _choose(self, request: Request, result: PassResult, ran: int) -> Event:
        assert result.logits is not None
        trace = result.trace
        allowed = request.constraint.allowed() if request.constraint is not None else None
        chosen = sample(
            result.logits[: self.vocabulary],
            request.params,
            seed=request.seed,
            index=len(request.generated),
            allowed=allowed,
            adjusted=result.adjusted,
        )
        repeats = False
        if request.constraint is not None and allowed is not None:
            repeats = request.constraint.repeats_prompt
            request.constraint.accept(chosen.token)
        request.repeated += repeats
        if request.tally is not None and not repeats:
            request.tally.add(chosen.token)
        if self._is_stop_token(request.params, chosen.token):
            held = request.text.flush() if request.text is not None else ""
            return Event(request.id, chosen, held, False, FinishReason.STOP, trace=trace, ran=ran, at=_now())
        request.generated.append(chosen.token)
        text, reason = self._text_after(request, chosen)
        return Event(request.id, chosen, text, finish_reason=reason, trace=trace, ran=ran, at=_now())

    def _text_after(self, request: Request, chosen: Sampled) -> tuple[str, FinishReason | None]:
        text = request.text.push(chosen.token) if request.text is not None else ""
        if request.text is not None and request.text.stopped:
            return text, FinishReason.STOP
        full = request.state.length + 1 >= self.context_length
        if len(request.generated) - request.repeated < request.params.max_tokens and not full:
            return text, None
        return text + (request.text.flush() if request.text is not None else ""), FinishReason.LENGTH

    def _is_stop_token(self, params: SamplingParams, token: int) -> bool:
        is_eos = token == self.config.eos_token_id and not params.ignore_eos
        return is_eos or token in params.stop_tokens

    def _finish_early(self, request: Request, reason: FinishReason) -> None:
        """End a request between two steps; what its text still holds back comes out."""
        if request.finish_reason is not None:
            return
        try:
            held = request.text.flush() if request.text is not None else ""
        except Exception as error:
            self._fail(request, error)
        else:
            self._send(request, Event(request.id, text=held, finish_reason=reason, at=_now()))

    def _fail(self, request: Request, error: BaseException) -> None:
        _log.warning("request %d failed: %s: %s", request.id, type(error).__name__, error)
        self._send(request, Event(request.id, finish_reason=FinishReason.ERROR, error=error, at=_now()))

    def _send(self, request: Request, event: Event) -> None:
        """Hand an event over. The last one goes out when the request is gone and its state released."""
        if event.finish_reason is not None:
            request.finish_reason = event.finish_reason
            self.scheduler.remove(request)
            event = self._given_back(request, event)
        try:
            request.sink(event)
        except Exception:  # whoever listens has a fault of its own; the others go on
            _log.exception("an event of request %d was not taken", request.id)

    def _given_back(self, request: Request, event: Event) -> Event:
        """`event`, the last one, when all that `request` held was given back; else what went wrong there."""
        try:
            if request.parked is not None:
                request.parked.drop()
            if request.held is not None:
                self._let_go(request.held, request.release)
        except Exception as error:
            _log.exception("request %d could not give back what it held", request.id)
            return replace(event, finish_reason=FinishReason.ERROR, error=event.error or error)
        return event

    def _let_go(self, state: AnyState, release: Callable[[AnyState], None] | None) -> None:
        """A request that ran on `state` has ended."""
        if self._leaving and not self._in_use(state):
            release = self._leaving.pop(id(state), None) or release
        if release is not None:
            release(state)


def _check_options(kind: Kind, priority: Priority, tenant: str, deadline: float | None) -> None:
    """Callers of all kinds give these, and in a step they would concern everybody. Raises `ParameterError`."""
    if not isinstance(kind, Kind):
        raise ParameterError(f"kind is {kind!r}; it must be a foveal.batch.Kind")
    if not isinstance(priority, Priority):
        raise ParameterError(f"priority is {priority!r}; it must be a foveal.batch.Priority")
    if not isinstance(tenant, str):
        raise ParameterError(f"tenant is {tenant!r}; it must be a string")
    is_time = isinstance(deadline, float | int | np.number) and not isinstance(deadline, bool)
    if deadline is not None and not (is_time and deadline == deadline):
        raise ParameterError(f"deadline is {deadline!r}; it must be seconds of time.monotonic()")


_now = time.perf_counter


def _or_default(value: int | None, default: int, name: str) -> int:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ParameterError(f"{name} is {value!r}; it must be an integer >= 1")
    return default if value is None else value

"""One request, whatever its API: a place, the beginning that is known already, the rest read, and its replies.

All but the last token of a prompt is read by itself, and a tail is kept there. So the same prompt again runs one token,
and several replies to one prompt read it once. What was read is kept when the request has ended, however it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from foveal.aio import Event, FinishReason, Priority, Sampled, SamplingParams, Start
from foveal.cache import CacheFull
from foveal.config import PAGE_TOKENS
from foveal.errors import FovealError
from foveal.memory.citing import Citing
from foveal.memory.kept import Miss
from foveal.server.citing import described
from foveal.server.failures import ApiError, TooLong
from foveal.server.looking import Looking
from foveal.server.pieces import Asked, Begun, Delta, Ended, Piece, Scored, Whole
from foveal.server.registry import Why
from foveal.server.voices import ChatVoice, Part, Voice
from foveal.server.why import message_at
from foveal.server.works import merged
from foveal.text.replay import before_stop

if TYPE_CHECKING:
    from foveal.memory import Memory
    from foveal.server.service import Service

IdArray = npt.NDArray[np.int32]
T = TypeVar("T")

WORTH_KEEPING = 64
"""Tokens from which on a sequence is kept for later prompts."""
WORTH_SHARING = 2 * PAGE_TOKENS
"""Tokens that a request has to have read for its prompt to be kept before it has ended."""

AGAIN = 0.05
"""Seconds until it is tried again to find room."""
LEAST_TOP_P = sys.float_info.min
"""What a `top_p` of 0, which the APIs allow, is to the engine: the likeliest token alone."""


async def whole(pieces: AsyncGenerator[Piece]) -> Whole:
    """An answer to its end."""
    answer = Whole.empty()
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            answer.add(piece)
    return answer


async def answers(service: Service, asked: Asked, *, placed: bool = False) -> AsyncGenerator[Piece]:
    """The pieces of an answer; `Begun` is the first. `placed`: the caller has a place already. Raises `FovealError`."""
    watch = service.tracing.watch(asked)
    async with contextlib.AsyncExitStack() as stack:
        stack.push(lambda kind, error, trace: watch.ended(error))
        if not placed:
            await stack.enter_async_context(service.gate.place(asked.key))
        memory: Memory | None = None
        if asked.chosen.memory is not None:
            memory = await stack.enter_async_context(asked.chosen.shelf.fork(asked.chosen.memory))
        watch.placed()
        pieces = await stack.enter_async_context(contextlib.aclosing(_Answering(service, asked, memory).run()))
        async for piece in pieces:
            watch.piece(piece)
            yield piece


class _Answering:
    """One request in work."""

    def __init__(self, service: Service, asked: Asked, memory: Memory | None) -> None:
        self._service, self._asked, self._memory = service, asked, memory
        self._shelf, self._engine = asked.chosen.shelf, asked.chosen.model.engine
        self._ids = _behind(memory, list(asked.prompt.ids))
        self._before = memory.length if memory is not None else 0
        self._deadline = time.monotonic() + service.settings.request_seconds
        self._options: dict[str, Any] = {
            "tenant": asked.key.tenant or asked.key.name,
            "priority": Priority.BACKGROUND if asked.key.background else Priority.INTERACTIVE,
            "deadline": self._deadline,
        }
        self._most = self._most_tokens()
        self._began = time.perf_counter()
        self._locating: asyncio.Task[None] | None = None

    async def run(self) -> AsyncGenerator[Piece]:
        tokens = self._whole_ids()
        number = self._shelf.kept.running(tokens)
        held: list[Any] = []
        try:
            start, begun = await self._start(held, tokens, number)
            yield begun
            self._locating = self._located(begun)
            known = await self._read_common(held[0], start.tokens, begun.miss)
            scored = await self._read(held[0], known)
            if self._asked.score_prompt:
                yield Scored(tuple(scored))
            self._service.metrics.read.labels(self._asked.chosen.model.name).inc(len(self._ids) - 1 - start.tokens)
            await self._share(held[0], len(self._ids) - 1 - start.tokens)
            async with contextlib.aclosing(self._replies(held)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            if self._locating is not None:
                self._locating.cancel()
            self._shelf.kept.ended(number)
            await self._keep(held)

    # ------------------------------------------------------------------ the prompt

    def _most_tokens(self) -> int:
        """How long a reply may be. Raises `TooLong`."""
        settings, total = self._service.settings, self._before + len(self._ids)
        context = min(settings.context_tokens or 1 << 62, self._asked.chosen.model.context_tokens)
        if total >= context:
            raise TooLong(total, context - 1)
        wanted = self._asked.sampling.max_tokens
        wanted = min(settings.output_tokens if wanted is None else wanted, settings.most_output_tokens)
        return min(wanted, self._asked.key.output_tokens or wanted, context - total)

    def _whole_ids(self) -> IdArray:
        ids = np.asarray(self._ids, dtype=np.int32)
        if self._memory is None:
            return ids
        return np.concatenate([np.asarray(self._memory.sequence.tokens, dtype=np.int32), ids])

    async def _start(self, held: list[Any], tokens: IdArray, number: int) -> tuple[Start, Begun]:
        """A sequence that holds what is known of the prompt already."""
        engine, kept = self._engine.engine, self._shelf.kept
        base = self._memory.sequence if self._memory is not None else None
        scores = self._asked.score_prompt
        looked_for = self._ids[:1] if scores else self._ids  # what is scored is run, whatever is known of it

        def start() -> tuple[Start, Miss | None]:
            priority = self._options["priority"]
            found = engine.start(looked_for, base=base, prefixes=kept, priority=priority)
            held.append(found.sequence)
            found.sequence.tail_every = self._shelf.tail_every
            miss = Miss("scored", self._before) if scores else kept.why(tokens, self._before + found.tokens, number)
            return found, miss

        async def attempt() -> tuple[Start, Miss | None]:
            begin = asyncio.ensure_future(asyncio.to_thread(start))
            try:
                return await asyncio.shield(begin)
            except asyncio.CancelledError:
                await asyncio.wait({begin})  # what it takes is given back in order
                raise

        found, miss = await self._in_room(attempt)
        return found, self._begun(self._before + found.reused, miss)

    def _begun(self, reused: int, miss: Miss | None) -> Begun:
        begun = Begun(self._before + len(self._ids), reused, miss)
        model, differs = self._asked.chosen.model.name, miss is not None and miss.reason == "first_difference"
        why = Why(
            request=self._asked.id,
            model=model,
            memory=self._asked.chosen.memory,
            prompt_tokens=begun.prompt_tokens,
            reused_tokens=reused,
            miss=miss,
            conversation=self._asked.prompt.conversation,
            ids=np.asarray(self._ids, dtype=np.int32) if differs else None,
        )
        self._shelf.whys.append(why)
        self._service.metrics.reused.labels(model).inc(reused)
        return begun

    async def _in_room(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` gives; while the cache is full it is tried again, as long as others are in work or what is kept
        is in use, for the server's patience at most."""
        end = time.monotonic() + self._service.settings.patience
        while True:
            try:
                return await work()
            except FovealError as error:
                others = self._service.gate.running > 1 or self._shelf.kept.holds
                if error.code != "full" or not others or time.monotonic() > end:
                    raise
            await asyncio.sleep(AGAIN)

    def _located(self, begun: Begun) -> asyncio.Task[None] | None:
        """Finds, while the prompt is read, in which message the first token stands that was not found."""
        conversation, miss = self._asked.prompt.conversation, begun.miss
        place = None if miss is None or miss.reason == "new" else miss.position - self._before
        if conversation is None or place is None or not 0 <= place < len(self._ids):
            return None

        async def locate() -> None:
            begun.message = await asyncio.to_thread(message_at, self._shelf, conversation, place)

        return asyncio.create_task(locate())

    async def _read_common(self, sequence: Any, known: int, miss: Miss | None) -> int:
        """Read what another prompt begins with too, and keep a tail there: a third one then starts from it, and no
        window is run again. Returns how many tokens of the prompt the sequence has then."""
        if miss is None or miss.reason != "first_difference" or self._asked.score_prompt:
            return known
        common = miss.position - miss.position % self._engine.engine.grain - self._before
        common = min(common, len(self._ids) - 1)
        if common - known < PAGE_TOKENS:
            return known
        length = sequence.length
        with contextlib.suppress(CacheFull):  # then `_read` goes on from where it came to
            self._check_read(await self._engine.read(sequence, self._ids[known:common], **self._options))
        return known + sequence.length - length

    async def _read(self, sequence: Any, known: int) -> list[Sampled]:
        """Read the prompt behind its first `known` tokens, all but its last token, and keep a tail there. If it is to
        be scored: the log-probabilities of its tokens but the first."""
        ids, targets = self._ids[known:-1], self._ids[known + 1 :]
        scored: list[Sampled] = []
        params = SamplingParams(logprobs=self._asked.sampling.logprobs)
        length = sequence.length

        async def attempt() -> FinishReason:
            done = sequence.length - length
            scoring: dict[str, Any] = {"targets": targets[done:], "params": params, "scored": scored}
            options = self._options | (scoring if self._asked.score_prompt else {})
            return await self._engine.read(sequence, ids[done:], **options)

        reason = await self._in_room(attempt)
        self._check_read(reason)
        return scored

    def _check_read(self, reason: FinishReason) -> None:
        """Raises `ApiError` when not all was read."""
        _check(reason)
        if reason is FinishReason.DEADLINE:
            raise ApiError("unavailable", "the time for an answer was up before its prompt was read")

    # ------------------------------------------------------------------ the replies

    async def _replies(self, held: list[Any]) -> AsyncGenerator[Piece]:
        if self._most == 0:
            for index in range(self._asked.sampling.replies):
                voice = self._asked.prompt.voice()
                voice.flush()
                yield Ended(index, "length", (), reply=voice.reply() if isinstance(voice, ChatVoice) else None)
            return
        for _ in range(1, self._asked.sampling.replies):
            held.append(await self._in_room(lambda: self._engine.fork(held[0])))
        each = [self._reply(index, held) for index in range(len(held))]
        async with contextlib.aclosing(merged(each) if len(each) > 1 else each[0]) as pieces:
            async for piece in pieces:
                yield piece

    async def _reply(self, index: int, held: list[Any]) -> AsyncGenerator[Piece]:
        """Reply `index`, on its sequence, which makes room for others if it must; it is in `held` again in the end."""
        prompt = self._asked.prompt
        voice = prompt.voice()
        citing = Citing(self._memory, self._ids) if self._memory is not None and self._asked.citations else None
        shows = self._memory is not None and self._asked.attention
        looking = Looking(self._memory, len(self._ids)) if self._memory is not None and shows else None
        constraint = prompt.constraint() if index == 0 else await asyncio.to_thread(prompt.constraint)
        sequence, held[index] = held[index], None
        try:
            job = self._engine.go_on(
                sequence,
                self._ids[-1:],
                self._params(index),
                text=voice,
                constraint=constraint,
                trace=citing is not None or looking is not None,
                whole_prompt=self._ids,
                give_back=lambda back: held.__setitem__(index, back),
                **self._options,
            )
        except BaseException:
            held[index] = sequence
            raise
        tokens: list[int] = []
        reason: FinishReason | None = None
        async with contextlib.aclosing(job.events()) as events:
            async for event in events:
                batch = [event, *job.waiting()]
                if citing is not None:
                    citing.add(batch)
                reason = batch[-1].finish_reason
                if not tokens:
                    self._service.metrics.first.observe(time.perf_counter() - self._began)
                yield self._delta(index, batch, voice, tokens, looking)
        _check(reason)
        if self._locating is not None:
            await self._locating
        cited = () if citing is None else await asyncio.to_thread(self._cited, citing)
        ended = self._ended(index, voice, reason, tokens, cited)
        self._service.metrics.written.labels(self._asked.chosen.model.name).inc(len(tokens))
        yield ended

    def _delta(self, index: int, batch: list[Event], voice: Voice, tokens: list[int], looking: Looking | None) -> Delta:
        sampled: list[tuple[Sampled, Part]] = []
        looks: list[dict[str, Any]] = []
        chat = isinstance(voice, ChatVoice)
        for event in batch:
            if event.error is not None:
                raise event.error
            if event.sampled is None:
                continue
            if not event.is_output:
                sampled.append((event.sampled, Part.END))
                continue
            tokens.append(event.sampled.token)
            sampled.append((event.sampled, voice.part() if isinstance(voice, ChatVoice) else Part.CONTENT))
            look = looking.told(event, sampled[-1][1] is Part.CONTENT) if looking is not None else None
            looks += [look] if look is not None else []
        text = "" if chat else "".join(event.text for event in batch)
        return Delta(index, text, voice.take() if isinstance(voice, ChatVoice) else [], sampled, looks)

    def _ended(
        self,
        index: int,
        voice: Voice,
        reason: FinishReason | None,
        tokens: list[int],
        cited: tuple[dict[str, Any], ...],
    ) -> Ended:
        ends = {FinishReason.LENGTH: "length", FinishReason.DEADLINE: "time"}
        if voice.stopped_by is not None:  # also when the last token that was allowed completed the stop string
            reason = FinishReason.STOP
        finish = ends.get(reason or FinishReason.STOP, "stop")
        reply = voice.reply() if isinstance(voice, ChatVoice) else None
        if reply is not None and self._asked.prompt.conversation is not None:
            said = before_stop(self._engine.engine.tokenizer, tokens, reply.stopped_by)
            self._shelf.turns.add(self._asked.prompt.ids, self._asked.prompt.head, said, reply.message)
        return Ended(index, finish, tuple(tokens), voice.stopped_by, reply, cited)

    def _cited(self, citing: Citing) -> tuple[dict[str, Any], ...]:
        assert self._memory is not None
        return tuple(described(self._memory, citation) for citation in citing.citations())

    def _params(self, index: int) -> SamplingParams:
        asked, settings = self._asked.sampling, self._service.settings
        return SamplingParams(
            temperature=settings.temperature if asked.temperature is None else asked.temperature,
            top_p=max(settings.top_p if asked.top_p is None else asked.top_p, LEAST_TOP_P),
            top_k=asked.top_k or 0,
            min_p=asked.min_p or 0.0,
            frequency_penalty=asked.frequency_penalty,
            presence_penalty=asked.presence_penalty,
            repetition_penalty=asked.repetition_penalty,
            logit_bias=asked.logit_bias,
            seed=None if asked.seed is None else asked.seed + index,
            max_tokens=self._most,
            stop=asked.stop,
            stop_tokens=(*asked.stop_tokens, *self._asked.prompt.stop_tokens),
            ignore_eos=asked.ignore_eos,
            logprobs=asked.logprobs,
        )

    async def _share(self, sequence: Any, read: int) -> None:
        """What was read is there for other requests while this one goes on."""
        if read < WORTH_SHARING:
            return
        with contextlib.suppress(CacheFull):
            self._shelf.kept.keep(await self._engine.fork(sequence), save=False)

    async def _keep(self, held: list[Any]) -> None:
        """What was read is the beginning of what comes next."""
        for sequence in held:
            if sequence is None:  # it ended while it made room for others
                continue
            if sequence.length >= WORTH_KEEPING and not self._service.closing:
                self._shelf.kept.keep(sequence)
            else:
                await self._engine.free(sequence)


def _check(reason: FinishReason | None) -> None:
    """Raises `ApiError` when the engine was closed."""
    if reason is FinishReason.CANCELLED:
        raise ApiError("unavailable", "the server is being stopped; try again", retry=5)


def _behind(memory: Memory | None, ids: list[int]) -> list[int]:
    """The prompt as it goes on from a memory: one beginning of a text is enough."""
    if memory is None or not memory.length or len(ids) < 2:
        return ids
    first = int(memory.sequence.token_range(0, 1)[0])
    return ids[1:] if ids[0] == first == memory.engine.tokenizer.bos_id else ids

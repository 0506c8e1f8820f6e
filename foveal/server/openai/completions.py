"""Text completions: prompts as texts or token ids, scored if asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from foveal.aio import Sampled
from foveal.batch.tokens import token_ids
from foveal.errors import FovealError, ParameterError
from foveal.server.answers import answers
from foveal.server.auth import Key
from foveal.server.failures import openai_error, unsupported
from foveal.server.openai.sampling import usage_of
from foveal.server.openai.schema import CompletionRequest
from foveal.server.pieces import Asked, Begun, Delta, Ended, Piece, Prompt, Sampling, Scored, Whole
from foveal.server.registry import Chosen
from foveal.server.service import Service
from foveal.server.settings import Settings
from foveal.server.voices import PlainVoice
from foveal.server.wire import DONE, KEEP_ALIVE, now, sse
from foveal.server.works import merged
from foveal.text import Tokenizer

AT_ONCE = 8
"""Prompts of one request that are in work at once."""
MOST_PROMPTS = 4096
DEFAULT_TOKENS = 16


@dataclass(frozen=True)
class Numbered:
    """A piece of the answer to prompt `prompt`."""

    prompt: int
    piece: Piece


def prompts_of(body: CompletionRequest, tokenizer: Tokenizer) -> list[list[int]]:
    """The prompts as token ids. Raises `ApiError`, `ParameterError`."""
    if body.suffix:
        raise unsupported("suffix", "suffix is not supported; leave it out")
    if body.best_of not in (None, body.n or 1):
        raise unsupported("best_of", "best_of is not supported; use n")
    if body.attention:
        raise unsupported("attention", "attention is told by chat completions only; leave it out")
    given = body.prompt
    if isinstance(given, str):
        prompts = [tokenizer.encode(given)]
    elif all(isinstance(entry, int) for entry in given):
        prompts = [list(given)]  # type: ignore[arg-type]
    else:
        prompts = [tokenizer.encode(entry) if isinstance(entry, str) else list(entry) for entry in given]  # type: ignore[arg-type]
    if not prompts or not all(prompts):
        raise ParameterError("the prompt is empty; give at least one token")
    if len(prompts) > MOST_PROMPTS:
        raise ParameterError(f"there are {len(prompts)} prompts; at most {MOST_PROMPTS} are taken")
    for prompt in prompts:
        token_ids(prompt, tokenizer.vocab_size)  # raises for one that there is not
    return prompts


def asked_of(
    body: CompletionRequest, prompts: list[list[int]], sampling: Sampling, chosen: Chosen, key: Key, id: str
) -> list[Asked]:
    """One request in our words for each prompt."""
    tokenizer = chosen.model.engine.engine.tokenizer
    scored = bool(body.echo) and body.logprobs is not None
    most = DEFAULT_TOKENS if sampling.max_tokens is None else sampling.max_tokens
    return [
        Asked(
            id=id,
            key=key,
            chosen=chosen,
            prompt=Prompt(ids=ids, voice=lambda: PlainVoice(tokenizer, sampling.stop)),
            sampling=replace(sampling, max_tokens=most),
            score_prompt=scored,
            citations=bool(body.citations),
        )
        for ids in prompts
    ]


async def all_answers(service: Service, asked: list[Asked]) -> AsyncGenerator[Numbered]:
    """The answers to all prompts, in one place, a few at a time."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> AsyncGenerator[Numbered]:
        async with turn, contextlib.aclosing(answers(service, asked[number], placed=True)) as pieces:
            async for piece in pieces:
                yield Numbered(number, piece)

    async with (
        service.gate.place(asked[0].key),
        contextlib.aclosing(merged([one(number) for number in range(len(asked))])) as pieces,
    ):
        async for piece in pieces:
            yield piece


async def all_whole(service: Service, asked: list[Asked]) -> list[Whole]:
    """All of them, to their end."""
    found = [Whole.empty() for _ in asked]
    async with contextlib.aclosing(all_answers(service, asked)) as pieces:
        async for numbered in pieces:
            found[numbered.prompt].add(numbered.piece)
    return found


class Telling:
    """The texts and log-probabilities of completions."""

    def __init__(self, body: CompletionRequest, prompts: list[list[int]], tokenizer: Tokenizer) -> None:
        self._body, self._prompts, self._tokenizer = body, prompts, tokenizer

    def echo(self, prompt: int) -> str:
        """The text of a prompt, if it is to be repeated."""
        return self._tokenizer.decode(self._prompts[prompt]) if self._body.echo else ""

    def scored(self, prompt: int, scored: Sequence[Sampled]) -> list[tuple[int, Sampled | None]]:
        """The prompt's tokens with their log-probabilities; the first has none."""
        if not self._body.echo or self._body.logprobs is None:
            return []
        return list(zip(self._prompts[prompt], (None, *scored), strict=True))

    def logprobs(self, tokens: Sequence[tuple[int, Sampled | None]], offset: int) -> dict[str, Any] | None:
        """The `logprobs` of a choice; `offset` is where the text of the first token begins."""
        if self._body.logprobs is None:
            return None
        names = [self.name(token) for token, _ in tokens]
        offsets = []
        for token, _ in tokens:
            offsets.append(offset)
            offset += len(self._tokenizer.token_bytes(token).decode("utf-8", "ignore"))
        return {
            "tokens": names,
            "token_logprobs": [None if said is None else max(said.logprob, -9999.0) for _, said in tokens],
            "top_logprobs": [None if said is None else self._top(said) for _, said in tokens],
            "text_offset": offsets,
        }

    def _top(self, said: Sampled) -> dict[str, float]:
        top = {self.name(token): max(value, -9999.0) for token, value in reversed(said.top)}
        return top | {self.name(said.token): max(said.logprob, -9999.0)}

    def name(self, token: int) -> str:
        """A token's text; one that is no text by itself as its bytes."""
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def completion(
    body: CompletionRequest, found: list[Whole], telling: Telling, *, id: str, name: str, model: str, settings: Settings
) -> dict[str, Any]:
    """A text completion."""
    choices = []
    for number, answer in enumerate(found):
        for index, ended in sorted(answer.replies.items()):
            echo = telling.echo(number)
            tokens = telling.scored(number, answer.scored)
            tokens += [(said.token, said) for said, _ in answer.sampled.get(index, [])]
            choices.append(
                {
                    "index": number * (body.n or 1) + index,
                    "text": echo + "".join(answer.text.get(index, [])),
                    "logprobs": telling.logprobs(tokens, 0),
                    "finish_reason": "stop" if ended.finish == "stop" else "length",
                }
                | cited(body, ended)
            )
    return {
        "id": id,
        "object": "text_completion",
        "created": now(),
        "model": name,
        "choices": choices,
        "usage": usage_of(joined(found), model, settings),
        "system_fingerprint": None,
    }


def cited(body: CompletionRequest, ended: Ended) -> dict[str, Any]:
    """What a choice tells of where it came from."""
    return {"citations": list(ended.citations)} if body.citations else {}


def joined(found: list[Whole]) -> Whole:
    """The numbers of several answers in one."""
    begun = Begun(
        sum(answer.begun.prompt_tokens for answer in found),
        sum(answer.begun.reused_tokens for answer in found),
        next((answer.begun.miss for answer in found if answer.begun.miss is not None), None),
    )
    replies = [ended for answer in found for ended in answer.replies.values()]
    return Whole(begun, replies=dict(enumerate(replies)))


class CompletionWriter:
    """A streamed text completion."""

    def __init__(
        self,
        body: CompletionRequest,
        count: int,
        telling: Telling,
        *,
        id: str,
        name: str,
        model: str,
        settings: Settings,
    ) -> None:
        self._head = {"id": id, "object": "text_completion", "created": now(), "model": name}
        self._body, self._telling, self._model, self._settings = body, telling, model, settings
        self._found = [Whole.empty() for _ in range(count)]
        self._usage = bool(body.stream_options and body.stream_options.include_usage)
        self._offsets: dict[int, int] = {}

    def piece(self, numbered: Numbered | None) -> list[bytes]:
        """See `Writer`."""
        if numbered is None:
            return [KEEP_ALIVE]
        number, piece = numbered.prompt, numbered.piece
        if not isinstance(piece, Delta):
            self._found[number].add(piece)
        if isinstance(piece, Scored) or (isinstance(piece, Begun) and self._body.logprobs is None and self._body.echo):
            tokens = self._telling.scored(number, piece.sampled) if isinstance(piece, Scored) else []
            return [sse(self._chunk(number, each, self._telling.echo(number), tokens)) for each in range(self._n)]
        if isinstance(piece, Delta):
            said = [(chosen.token, chosen) for chosen, _ in piece.sampled]
            if piece.text or (said and self._body.logprobs is not None):
                return [sse(self._chunk(number, piece.index, piece.text, said))]
        if isinstance(piece, Ended):
            finish = "stop" if piece.finish == "stop" else "length"
            return [sse(self._chunk(number, piece.index, "", [], finish, cited(self._body, piece)))]
        return []

    def end(self) -> list[bytes]:
        """See `Writer`."""
        if not self._usage:
            return [DONE]
        usage = usage_of(joined(self._found), self._model, self._settings)
        return [sse(self._head | {"choices": [], "usage": usage}), DONE]

    def failed(self, error: FovealError) -> list[bytes]:
        """See `Writer`."""
        return [sse(openai_error(error))]

    @property
    def _n(self) -> int:
        return self._body.n or 1

    def _chunk(
        self,
        number: int,
        index: int,
        text: str,
        tokens: Sequence[tuple[int, Sampled | None]],
        finish: str | None = None,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[str, Any]:
        place = number * self._n + index
        offset = self._offsets.get(place, 0)
        self._offsets[place] = offset + len(text)
        choice = {
            "index": place,
            "text": text,
            "logprobs": self._telling.logprobs(tokens, offset) if tokens else None,
            "finish_reason": finish,
        }
        return self._head | {"choices": [choice | dict(more)]} | ({"usage": None} if self._usage else {})

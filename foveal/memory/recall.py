"""Recall: a cue goes in, what followed it in the source comes out, with the lines it came from.

The memory is never touched, and may change while a recall runs. A fork takes the cue and generates; it is freed when
the recall ends or is abandoned. The cue begins a line of its own, behind blanks if the model wants them (it then sees
nothing but the cue in the cue's context), and its ends are healed (`foveal.memory.attempt`): a cue that stops in the
middle of a token goes on as the source did, and one that was taken from the middle of a line is found there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from foveal import cache
from foveal.batch import FinishReason, ParameterError, Sampled, SamplingParams
from foveal.engine import Engine, Prefixes
from foveal.formats import Array
from foveal.memory.attempt import Attempt, Prompt, prompts
from foveal.memory.citations import CONTEXT_TOKENS, Citation, Locate, TokenOrigin, cite

DEFAULT_TOKENS = 64


@dataclass(frozen=True)
class Recall:
    """What a cue brought back.

    `text` follows the cue. `tokens` are the chosen tokens, the first `healed` of which only repeat the cue's end;
    `sampled` has their log-probabilities and `origins` where each looked. `citations` are of the text after the cue.
    The model was given `cue_tokens` tokens of the cue (all but those that are healed); the last `cue_matched` of them
    stand before the place that the first token came from: with fewer, the cue does not stand there word for word.
    Of the `prompt_tokens` (the cue's, and what goes before it) `reused_tokens` were not run, but found in a store.
    """

    cue: str
    text: str = ""
    tokens: tuple[int, ...] = ()
    healed: int = 0
    finish_reason: FinishReason = FinishReason.CANCELLED
    citations: tuple[Citation, ...] = ()
    sampled: tuple[Sampled, ...] = ()
    origins: tuple[TokenOrigin, ...] = ()
    cue_tokens: int = 0
    cue_matched: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0


class RecallStream:
    """Pieces of text as they become certain; iterate once. `result` is there when the iteration has ended.

    Closing it (or dropping it) early cancels the generation; `result` then holds what there was.
    """

    def __init__(
        self,
        engine: Engine,
        base: cache.Sequence,
        locate: Locate,
        cue: str,
        params: SamplingParams,
        *,
        healing: bool = True,
        prefixes: Prefixes | None = None,
    ) -> None:
        """`base` is a sequence of the stream's own, which it frees in the end; `locate` says where its tokens come
        from. Raises `ParameterError` for an empty cue."""
        self._recalling = _Recalling(engine, base, locate, cue, params, healing, prefixes)
        self._pieces = self._recalling.run()  # it knows nothing of the stream, so a stream that is dropped goes at once

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def result(self) -> Recall:
        """Raises `ParameterError` while the recall is still running."""
        if self._recalling.result is None:
            raise ParameterError("the recall has not ended; iterate over it first")
        return self._recalling.result

    def finish(self) -> Recall:
        """Run to the end and return the result."""
        for _ in self._pieces:
            pass
        return self.result

    def close(self) -> None:
        """Stop generating."""
        self._pieces.close()
        self._recalling.end()


class _Recalling:
    """One recall in work."""

    def __init__(
        self,
        engine: Engine,
        base: cache.Sequence,
        locate: Locate,
        cue: str,
        params: SamplingParams,
        healing: bool,
        prefixes: Prefixes | None,
    ) -> None:
        self._engine, self._base, self._locate = engine, base, locate
        self._cue, self._params, self._prefixes = cue, params, prefixes
        self._source_tokens = base.length
        self._prompts = prompts(engine, base, cue, healing)
        self._text: list[str] = []
        self.result: Recall | None = None

    def end(self) -> None:
        """Free the base. There is a result, also when nothing was begun."""
        self.result = self.result or Recall(self._cue)
        self._engine.free(self._base)

    def run(self) -> Generator[str, None, None]:
        attempt: Attempt | None = None
        try:
            attempt = self._best()
            for event in attempt.events():
                self._text.append(event.text)
                if event.text:
                    yield event.text
        finally:
            try:
                if attempt is not None:
                    source = attempt.sequence.tokens[: self._source_tokens]  # not before: they may be megabytes
                    self.result = self._conclude(attempt, source)
            finally:
                if attempt is not None:
                    attempt.close()
                self.end()

    def _best(self) -> Attempt:
        """The attempt to go on with: the first whose whole cue stands in the source where it looks, or else the one of
        whose cue most stands there (of equals the first)."""
        first, *others = self._prompts
        best = self._attempt(first)
        try:
            for prompt in others:
                if best.cue_matched == best.prompt.cue_tokens:
                    break
                other = self._attempt(prompt)
                if other.cue_matched > best.cue_matched:
                    best, other = other, best
                other.close()
        except BaseException:
            best.close()
            raise
        return best

    def _attempt(self, prompt: Prompt) -> Attempt:
        return Attempt(self._engine, self._base, prompt, self._params, self._prefixes)

    def _conclude(self, attempt: Attempt, source: Array) -> Recall:
        prompt, sampled = attempt.prompt, tuple(attempt.sampled)
        tokens = tuple(s.token for s in sampled)
        healed = _covering(self._engine, tokens, len(prompt.remainder))
        text = np.array([*prompt.tokens, *tokens], dtype=source.dtype)
        starts = range(len(prompt.tokens), len(text))
        evidence = [
            origin.supporting(token, text[max(0, start - CONTEXT_TOKENS) : start], source)
            for origin, token, start in zip(attempt.origins, tokens, starts, strict=True)
        ]
        return Recall(
            cue=self._cue,
            text="".join(self._text),
            tokens=tokens,
            healed=healed,
            finish_reason=attempt.finish_reason or FinishReason.CANCELLED,
            citations=cite(evidence[healed:], self._locate, self._source_tokens),
            sampled=sampled,
            origins=tuple(attempt.origins),
            cue_tokens=prompt.cue_tokens,
            cue_matched=attempt.cue_matched,
            prompt_tokens=len(prompt.tokens),
            reused_tokens=attempt.reused,
        )


def _covering(engine: Engine, tokens: Sequence[int], size: int) -> int:
    """How many of the first tokens say nothing beyond the first `size` bytes."""
    count = 0
    for token in tokens:
        size -= len(engine.tokenizer.token_bytes(token))
        if size < 0:
            break
        count += 1
    return count

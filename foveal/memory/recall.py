"""Recall: a cue goes in, what followed it in the source comes out, with the lines it came from.

What is special here: the memory is never touched. A fork takes the cue and generates; it is freed when the recall ends
or is abandoned. The cue begins a line of its own, behind blanks if the model wants them (it then sees nothing but the
cue in the cue's context), and its end is healed: a cue that stops in the middle of a token goes on as the source did.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import torch

from foveal import cache
from foveal.api import Engine, Prefixes
from foveal.engine import Event, FinishReason, ParameterError, Sampled, SamplingParams
from foveal.memory.citations import CONTEXT_TOKENS, Citation, Locate, TokenOrigin, cite, origin_of
from foveal.text import TokenStream
from foveal.text.healing import PrefixConstraint, heal
from foveal.text.specials import PAD

DEFAULT_TOKENS = 64


@dataclass(frozen=True)
class Recall:
    """What a cue brought back.

    `text` follows the cue. `tokens` are the chosen tokens, the first `healed` of which only repeat the cue's end;
    `sampled` has their log-probabilities and `origins` where each looked. `citations` are of the text after the cue.
    Of the `prompt_tokens` (the cue's, and what goes before it) `reused_tokens` were not run, but found in a store.
    """

    cue: str
    text: str
    tokens: tuple[int, ...]
    healed: int
    finish_reason: FinishReason
    citations: tuple[Citation, ...]
    sampled: tuple[Sampled, ...]
    origins: tuple[TokenOrigin, ...]
    prompt_tokens: int = 0
    reused_tokens: int = 0


@dataclass(frozen=True)
class _Prompt:
    tokens: list[int]
    remainder: bytes


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
        self._engine, self._base, self._locate = engine, base, locate
        self._prefixes, self._reused = prefixes, 0
        self._cue, self._params = cue, params
        self._source_tokens = base.length
        self._prompt = _prompt(engine, base, cue, healing)
        self._text: list[str] = []
        self._events: list[Event] = []
        self._origins: list[TokenOrigin] = []
        self._result: Recall | None = None
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def result(self) -> Recall:
        """Raises `ParameterError` while the recall is still running."""
        if self._result is None:
            raise ParameterError("the recall has not ended; iterate over it first")
        return self._result

    def finish(self) -> Recall:
        """Run to the end and return the result."""
        for _ in self._pieces:
            pass
        return self.result

    def close(self) -> None:
        """Stop generating."""
        self._pieces.close()
        if self._result is None:  # it had not begun
            self._result = self._conclude(torch.empty(0, dtype=torch.int32))

    def _run(self) -> Generator[str, None, None]:
        start = self._engine.start(self._prompt.tokens, base=self._base, prefixes=self._prefixes)
        self._reused = start.reused
        try:
            batch, tokenizer, remainder = self._engine.batch, self._engine.tokenizer, self._prompt.remainder
            request = batch.submit(
                start.sequence,
                self._prompt.tokens[start.tokens :],
                self._params,
                text=TokenStream(tokenizer, self._params.stop, skip_bytes=len(remainder)),
                constraint=PrefixConstraint(tokenizer, remainder) if remainder else None,
                trace=True,
            )
            for event in batch.events(request):
                if event.error is not None:
                    raise event.error
                self._take(event)
                if event.text:
                    yield event.text
        finally:
            source = start.sequence.tokens[: self._source_tokens]  # only now: of a long memory they are megabytes
            start.sequence.free()
            self._result = self._conclude(source)

    def _take(self, event: Event) -> None:
        """Note one event. The row that chose token k stands k places after the prompt's last token."""
        self._text.append(event.text)
        if event.sampled is not None and event.is_output:
            position = self._source_tokens + len(self._prompt.tokens) - 1 + len(self._origins)
            self._origins.append(origin_of(event.trace, position, self._source_tokens))
        self._events.append(event)

    def _conclude(self, source: torch.Tensor) -> Recall:
        sampled = tuple(e.sampled for e in self._events if e.sampled is not None and e.is_output)
        tokens = tuple(s.token for s in sampled)
        healed = _covering(self._engine, tokens, len(self._prompt.remainder))
        reason = self._events[-1].finish_reason if self._events else None
        text = torch.tensor([*self._prompt.tokens, *tokens], dtype=source.dtype)
        starts = range(len(self._prompt.tokens), len(text))
        evidence = [
            origin.supporting(token, text[max(0, start - CONTEXT_TOKENS) : start], source)
            for origin, token, start in zip(self._origins, tokens, starts, strict=True)
        ]
        return Recall(
            cue=self._cue,
            text="".join(self._text),
            tokens=tokens,
            healed=healed,
            finish_reason=reason or FinishReason.CANCELLED,
            citations=cite(evidence[healed:], self._locate, self._source_tokens),
            sampled=sampled,
            origins=tuple(self._origins),
            prompt_tokens=len(self._prompt.tokens),
            reused_tokens=self._reused,
        )


def _prompt(engine: Engine, base: cache.Sequence, cue: str, healing: bool) -> _Prompt:
    if not cue:
        raise ParameterError("the cue is empty; give the beginning of what should be recalled")
    tokenizer = engine.tokenizer
    tokens, remainder = heal(tokenizer, cue) if healing else (tokenizer.encode(cue), b"")
    if engine.recall_blanks:
        return _Prompt([tokenizer.control_id(PAD)] * engine.recall_blanks + tokens, remainder)
    last = int(base.token_range(base.length - 1, base.length)) if base.length else None
    begins_line = last is None or tokenizer.token_bytes(last).endswith(b"\n")
    # A cue of one word leaves no token to run before it is healed: an empty line stands in.
    separator = [] if begins_line and tokens else tokenizer.encode("\n")
    return _Prompt([*separator, *tokens], remainder)


def _covering(engine: Engine, tokens: Sequence[int], size: int) -> int:
    """How many of the first tokens say nothing beyond the first `size` bytes."""
    count = 0
    for token in tokens:
        size -= len(engine.tokenizer.token_bytes(token))
        if size < 0:
            break
        count += 1
    return count

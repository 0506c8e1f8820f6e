"""One way to put a cue to a memory: its tokens, run on a fork to the first token that the model chooses.

Both ends of a typed cue are uncertain. The last word is taken back and generated again, held to what was typed
(`foveal.text.healing`). The first one has another token in the middle of a line than at its beginning, for a word's
token has the space before it; and where a cue is short, it helps to know that it begins a line. So there may be several
prompts for a cue, one for each of `OPENINGS`, and an attempt tells how much of the cue stands in the source before the
place that the model looked at (`cue_matched`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from foveal import cache
from foveal.batch import Event, FinishReason, ParameterError, Sampled, SamplingParams
from foveal.engine import Engine, Prefixes
from foveal.memory.citations import CELL_TOKENS, TokenOrigin, origin_of
from foveal.text.healing import heal
from foveal.text.specials import PAD

OPENINGS = ("", " ", "\n", "\n\n")
"""What may stand before a cue in the source, in the order in which it is tried."""


@dataclass(frozen=True)
class Prompt:
    """The last `cue_tokens` of `tokens` are the cue's; the bytes of `remainder` are to be generated again."""

    tokens: list[int]
    remainder: bytes
    cue_tokens: int

    @property
    def cue(self) -> list[int]:
        return self.tokens[len(self.tokens) - self.cue_tokens :]


def prompts(engine: Engine, base: cache.Sequence, cue: str, healing: bool) -> list[Prompt]:
    """What may be run for `cue`: as it was typed and, where the model wants blanks before a cue and so has nothing else
    to go by, behind other `OPENINGS`. (A cue that is longer than the blanks hides its beginning, and one that begins
    with a space has its own.) Raises `ParameterError` for an empty cue."""
    if not cue:
        raise ParameterError("the cue is empty; give the beginning of what should be recalled")
    if not engine.recall_blanks:
        return [_on_its_own_line(engine, base, cue, healing)]
    blanks = [engine.tokenizer.control_id(PAD)] * engine.recall_blanks
    typed = _opened(engine, blanks, "", cue, healing)
    if typed.cue_tokens > len(blanks) or cue[0] in "\r\n":
        return [typed]
    others = [opening for opening in OPENINGS[1:] if not (opening == " " and cue[0].isspace())]
    return [typed, *(_opened(engine, blanks, opening, cue, healing) for opening in others)]


def _opened(engine: Engine, blanks: list[int], opening: str, cue: str, healing: bool) -> Prompt:
    """The cue behind blanks and an opening, whose own tokens do not count as the cue's."""
    tokens, remainder = _split(engine, opening + cue, healing)
    passed, before = 0, 0
    for token in tokens:
        passed += len(engine.tokenizer.token_bytes(token))
        before += passed <= len(opening)
    return Prompt(blanks + tokens, remainder, len(tokens) - before)


def _on_its_own_line(engine: Engine, base: cache.Sequence, cue: str, healing: bool) -> Prompt:
    tokens, remainder = _split(engine, cue, healing)
    last = base.token_range(base.length - 1, base.length).item() if base.length else None
    begins_line = last is None or engine.tokenizer.token_bytes(last).endswith(b"\n")
    # A cue of one word leaves no token to run before it is healed: an empty line stands in.
    separator = [] if begins_line and tokens else engine.tokenizer.encode("\n")
    return Prompt([*separator, *tokens], remainder, len(tokens))


def _split(engine: Engine, cue: str, healing: bool) -> tuple[list[int], bytes]:
    return heal(engine.tokenizer, cue) if healing else (engine.tokenizer.encode(cue), b"")


class Attempt:
    """A prompt that goes on from `base` on a fork. It has run up to its first chosen token when it is made; `events`
    gives all there is from the beginning. `close` it in any case.

    `sampled`: the tokens chosen so far; `origins`: where each looked; `sequence`: the fork; `reused`: tokens of the
    prompt that were found in a store.
    """

    def __init__(
        self, engine: Engine, base: cache.Sequence, prompt: Prompt, params: SamplingParams, prefixes: Prefixes | None
    ) -> None:
        self.prompt, self._source_tokens = prompt, base.length
        self.sampled: list[Sampled] = []
        self.origins: list[TokenOrigin] = []
        self.finish_reason: FinishReason | None = None
        self._seen: list[Event] = []
        self._engine = engine
        self._more: Generator[Event] | None = None
        engine.batch.check_room(base.length + len(prompt.tokens), params)
        start = engine.start(prompt.tokens, base=base, prefixes=prefixes)
        self.sequence, self.reused = start.sequence, start.reused
        try:
            self._more = self._submitted(engine, prompt.tokens[start.tokens :], params)
            for event in self._more:
                self._seen.append(event)
                if self.sampled:
                    break
        except BaseException:
            self.close()
            raise

    def _submitted(self, engine: Engine, tokens: Sequence[int], params: SamplingParams) -> Generator[Event]:
        job = engine.go_on(self.sequence, tokens, params, remainder=self.prompt.remainder, trace=True)
        return self._taken(job.events())

    def _taken(self, events: Generator[Event]) -> Generator[Event]:
        """Note each event. The row that chose token k stands k places after the prompt's last token."""
        with contextlib.closing(events):
            for event in events:
                self.finish_reason = event.finish_reason
                if event.sampled is not None and event.is_output:
                    position = self._source_tokens + len(self.prompt.tokens) - 1 + len(self.origins)
                    self.sampled.append(event.sampled)
                    self.origins.append(origin_of(event.trace, position, self._source_tokens))
                yield event

    def events(self) -> Iterator[Event]:
        """All events from the first on; iterate once."""
        yield from self._seen
        assert self._more is not None
        yield from self._more

    @property
    def cue_matched(self) -> int:
        """How many of the cue's tokens, from the last one on, stand in the source before the first chosen token: at the
        best of the places where that token looked and stands."""
        if not self.origins:
            return 0
        cue, token = self.prompt.cue, self.sampled[0].token
        best = 0
        for start, _ in self.origins[0].cells:
            first = max(0, start - len(cue))
            text = self.sequence.token_range(first, min(start + CELL_TOKENS, self._source_tokens)).tolist()
            places = [place for place in range(start - first, len(text)) if text[place] == token]
            best = max([best, *(_agreeing(cue, text[:place]) for place in places)])
        return best

    def close(self) -> None:
        """Cancel what still runs, and free the fork."""
        if self._more is not None:
            self._more.close()
        self._engine.free(self.sequence)


def _agreeing(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens in which the ends of both agree."""
    count = 0
    while count < min(len(a), len(b)) and a[-1 - count] == b[-1 - count]:
        count += 1
    return count

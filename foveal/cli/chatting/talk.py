"""What the loop of `foveal chat` needs of a conversation, wherever the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from foveal.text.events import ReplyEvent

if TYPE_CHECKING:
    from foveal.memory import Answer as PlacesAnswer


@dataclass(frozen=True)
class Cited:
    """Lines of a memory that a reply came from. `remark`: what is to be said of them, such as that they changed."""

    path: str
    first_line: int
    last_line: int
    share: float
    remark: str = ""

    def __str__(self) -> str:
        lines = f"{self.first_line}-{self.last_line}" if self.last_line > self.first_line else f"{self.first_line}"
        return f"{self.path}:{lines}  {self.share:.0%}{f'  ({self.remark})' if self.remark else ''}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a message. finish: ``stop``, ``length`` or ``stopped``; empty: nothing was said, and the message
    is dropped. Of the `prompt_tokens`, `found` were not run. first, whole: seconds to the first token, to the end.
    asked: the answer of a question that was asked with zoom; its citations are not among `citations`."""

    finish: str
    text: str = ""
    reasoning: str = ""
    prompt_tokens: int = 0
    found: int = 0
    written: int = 0
    citations: tuple[Cited, ...] = ()
    first: float = 0.0
    whole: float = 0.0
    asked: PlacesAnswer | None = None

    @classmethod
    def of_asked(cls, answer: PlacesAnswer, *, stopped: bool, first: float, whole: float) -> Outcome:
        """What became of a question that was asked with zoom."""
        if stopped and not answer.text:
            return cls(finish="")
        return cls(
            finish="stopped" if stopped else "length" if str(answer.finish_reason) == "length" else "stop",
            text=answer.text,
            prompt_tokens=answer.prompt_tokens,
            written=answer.completion_tokens,
            first=first,
            whole=whole,
            asked=answer,
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON of one answer (docs/cli.md)."""
        cited = [
            {"path": c.path, "first_line": c.first_line, "last_line": c.last_line, "share": round(c.share, 4)}
            for c in self.citations
        ]
        said = {
            "text": self.text,
            "reasoning": self.reasoning,
            "finish_reason": self.finish,
            "prompt_tokens": self.prompt_tokens,
            "found_tokens": self.found,
            "tokens": self.written,
            "seconds": round(self.whole, 3),
            "citations": cited,
        }
        return said if self.asked is None else said | _of_places(self.asked)


def _of_places(answer: PlacesAnswer) -> dict[str, Any]:
    """What the JSON of `foveal ask` says more."""
    from foveal.memory.asking.told import told

    return {name: value for name, value in told(answer).items() if name in ("found", "citations", "places", "steps")}


class Answer(Protocol):
    """A reply in work: iterate once for its events, then take the outcome. `stop` never waits, and may be called by a
    signal's handler; what was said until then stays."""

    def __iter__(self) -> Iterator[ReplyEvent]: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...

    @property
    def outcome(self) -> Outcome: ...


class Talk(Protocol):
    """A conversation that goes on. All may raise `FovealError`; the conversation is then as it was.

    zooms: whether a message is asked of the memory, as far as somebody there can.
    """

    name: str
    zooms: bool

    @property
    def turns(self) -> Sequence[tuple[str, str]]:
        """What was said and answered, in order."""
        ...

    def say(self, text: str) -> Answer:
        """The next turn, without a look at the memory."""
        ...

    def ask(self, question: str, *, only: bool) -> Answer:
        """A question to the memory, answered from the places that fit it, as the next turn. Where none does, nothing is
        added; or, unless `only` the memory was asked, the message is a turn like any other."""
        ...

    def fork(self, turn: int, name: str) -> None:
        """Go on behind turn number `turn` (0: before the first), under another name."""
        ...

    def taken(self, name: str) -> bool:
        """Whether something is saved under that name."""
        ...

    def save(self, name: str) -> None:
        """Save it under `name`, which is its name from then on."""
        ...

    def why(self) -> None:
        """Print what was found of the last prompts, and why not more."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...

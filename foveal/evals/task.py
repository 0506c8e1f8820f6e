"""What a task is: it makes a text with questions, and says how good an answer is.

Every question has two forms. The *chat* form is an instruction, as a chat model is asked. The *completion* form is one
or more cues, beginnings that a model which only continues text can go on with; where a cue repeats the text's own
words, it is what `Memory.recall` is made for. A number always says which form it was got with.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from foveal.evals.material import Documents, Material
from foveal.memory import Citation

Form = Literal["chat", "completion"]
CHAT_SPARE = 4
"""A chat answer may be so many times as long as the answer alone: it comes with words around it."""


@dataclass(frozen=True)
class Where:
    """Lines `first` to `last` of `path` (from 1, both included): where an answer stands."""

    path: str
    first: int
    last: int

    def holds(self, citation: Citation) -> bool:
        """Whether the citation names the file and overlaps the lines."""
        return citation.path == self.path and citation.first_line <= self.last and citation.last_line >= self.first


@dataclass(frozen=True)
class Question:
    """One question about a text.

    `ask`: the chat form, without the text. `cues`: the completion form; each is continued on its own, and `places` says
    where each one's answer stands (empty where no single place holds it). `answers`: what must come back. `expected`:
    the text after the cue, for tasks that compare token by token. `search`: the words a search engine would be given.
    `place`: where in the text the (first) answer stands, 0 to 1.
    """

    ask: str
    cues: tuple[str, ...]
    answers: tuple[str, ...]
    max_tokens: int
    places: tuple[Where, ...] = ()
    stop: tuple[str, ...] = ()
    expected: str = ""
    search: str = ""
    place: float = 0.0
    chat_tokens: int = 0
    """Tokens that a chat answer needs, where that is more than `CHAT_SPARE` times `max_tokens`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the task needs to judge an answer; goes into the results."""

    @property
    def chat_budget(self) -> int:
        """Tokens of the model that a chat answer may take."""
        return max(CHAT_SPARE * self.max_tokens, self.chat_tokens)


@dataclass(frozen=True)
class Context:
    """A text, as documents in the order they are read, and questions about it."""

    documents: Documents
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Answer:
    """What came back for one cue (or for the chat form).

    `tokens` are the ids generated after the cue where the system gives ids, else None. `citations` are None where the
    system has none. `prompt_tokens` as an endpoint counts them.
    """

    text: str
    tokens: tuple[int, ...] | None = None
    citations: tuple[Citation, ...] | None = None
    prompt_tokens: int | None = None
    chat: bool = False
    """Whether the chat form was answered."""
    finish_reason: str | None = None
    """Why it ends, as an endpoint says."""
    shown: tuple[Citation, ...] | None = None
    """The places that the model was shown, where that is known."""


Metrics = dict[str, float]


class Task(ABC):
    """One kind of text with questions. Everything is a function of the material, the length and the dice."""

    name: ClassVar[str]
    about: ClassVar[str]
    """One line for people."""
    metric: ClassVar[str]
    """The metric that stands in the table."""
    family: ClassVar[str] = ""
    """Tasks of one family are given the same dice: their texts are the same, and are read once for all of them."""
    needs_network: ClassVar[bool] = False
    """Whether it looks inside the running network, and so cannot be asked of an endpoint."""

    def version(self, form: Form, length: int) -> int:
        """Raised when what the task asks in this form, or how it scores, changes: old samples are then not taken for
        new ones."""
        return 1

    @abstractmethod
    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        """A text of `length` tokens with up to `count` questions. Raises `EvalError` when it cannot be made."""

    def dice(self, seed: int, length: int, number: int) -> random.Random:
        """The dice for context `number`."""
        return random.Random(f"{seed} {self.family or self.name} {length} {number}")


class Asking(Task):
    """A task whose questions are put to a system and whose answers are scored."""

    @abstractmethod
    def score(self, material: Material, question: Question, answers: Sequence[Answer]) -> Metrics:
        """Metrics of one sample, most of them 0 to 1. One answer for each cue, or one alone in the chat form."""


@dataclass(frozen=True)
class Measured:
    """One sample of a measurement: its number in the context, metrics, and what else is worth keeping."""

    number: int
    metrics: Metrics
    detail: Mapping[str, Any] = field(default_factory=dict)


class Measuring(Task):
    """A task that looks at the running network over a text, instead of asking."""

    needs_network: ClassVar[bool] = True

    @abstractmethod
    def measure(self, bench: Any, context: Context, length: int, number: int) -> Iterator[Measured]:
        """Samples of context `number`, one by one; `bench` is a `foveal.evals.bench.Bench`."""


def cited(question: Question, answers: Sequence[Answer]) -> Metrics:
    """``citation_accuracy``: of answers with a place, the share whose first citation names it; {} without citations."""
    judged = [
        bool(answer.citations) and place.holds(answer.citations[0])
        for answer, place in zip(answers, question.places, strict=False)
        if answer.citations is not None
    ]
    return {"citation_accuracy": sum(judged) / len(judged)} if judged else {}

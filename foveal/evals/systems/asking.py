"""Systems that answer in words: a chat model that is shown what was found, what it remembers, or the right passage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

from foveal.evals.bench import Bench
from foveal.evals.material import Documents, whole_text
from foveal.evals.task import Answer, Question
from foveal.memory import Citation, Memory
from foveal.memory.asking.answering import PLACE_TOKENS, Asking
from foveal.memory.asking.answering import Answer as Told
from foveal.memory.asking.chat_model import ChatModel
from foveal.memory.asking.places import LEAST, NEAR, WEIGHTS, Found
from foveal.memory.asking.prompt import asked as prompted
from foveal.memory.asking.prompt import begun

VERSION = 1
"""Of all systems here: raised when what a model is shown changes."""
_BESIDE = 512
"""Tokens beside a text that fills the window: instructions, the question and the longest answer."""


class AskingSystem:
    """`bench`'s memory, asked with `zoom` places; with `attention` off, found by the search alone. `chat` words the
    answers."""

    def __init__(self, bench: Bench, chat: ChatModel, name: str, *, zoom: int, attention: bool = True) -> None:
        self.name = name
        self._bench, self._chat, self._zoom, self._attention = bench, chat, zoom, attention

    @property
    def identity(self) -> str:
        return _digest(
            f"{VERSION} {self._bench.engine.fingerprint.digest} {self._chat.engine.fingerprint.digest} "
            f"{self._zoom} {self._attention} {PLACE_TOKENS} {LEAST} {NEAR} {sorted(WEIGHTS.items())}"
        )

    def takes(self, length: int) -> bool:
        return True

    @contextmanager
    def reading(self, documents: Documents) -> Iterator[AskingReader]:
        with self._bench.memory(documents) as memory:
            yield AskingReader(memory, self._chat, self._zoom, self._attention)


class AskingReader:
    """One memory, ready to be asked."""

    def __init__(self, memory: Memory, chat: ChatModel, zoom: int, attention: bool) -> None:
        self._memory, self._chat, self._zoom, self._attention = memory, chat, zoom, attention

    def ask(self, question: Question) -> list[Answer]:
        asking = Asking(
            self._memory,
            question.ask,
            self._chat,
            zoom=self._zoom,
            max_tokens=question.chat_budget,
            attention=self._attention,
        )
        for _ in asking.run():
            pass
        assert asking.result is not None
        return [_answer(asking.result, looked=self._zoom > 0)]


class EntriesSystem:
    """The chat model's own memory of the whole text, without a place shown: what its entries hold."""

    name = "entries"

    def __init__(self, bench: Bench) -> None:
        """`bench`: of the chat model."""
        self._bench = bench
        engine = bench.engine
        assert engine.folder is not None
        self._chat = ChatModel.of(engine, engine.folder)

    @property
    def identity(self) -> str:
        return _digest(f"{VERSION} entries {self._bench.engine.fingerprint.digest}")

    def takes(self, length: int) -> bool:
        """Its context ends somewhere; the tokenizers differ, so half of it is left free."""
        return length <= self._bench.engine.batch.context_length // 2

    @contextmanager
    def reading(self, documents: Documents) -> Iterator[AskingReader]:
        with self._bench.memory(documents) as memory:
            yield AskingReader(memory, self._chat, 0, False)


class ShownSystem:
    """A chat model that is shown the right passage (``ceiling``), or the end of the text as far as it sees
    (``window``), right before the question."""

    def __init__(self, chat: ChatModel, name: str) -> None:
        self.name, self._chat = name, chat

    @property
    def identity(self) -> str:
        beside = f" {_BESIDE}" if self.name == "window" else ""
        return _digest(f"{VERSION} {self.name} {self._chat.engine.fingerprint.digest}{beside}")

    def takes(self, length: int) -> bool:
        return True

    @contextmanager
    def reading(self, documents: Documents) -> Iterator[ShownReader]:
        end = self._end(whole_text(documents)) if self.name == "window" else None
        yield ShownReader(self._chat, end)

    def _end(self, text: str) -> str:
        """As much of the end of `text` as leaves room for a question and its answer."""
        tokenizer = self._chat.engine.tokenizer
        return tokenizer.decode(tokenizer.encode(text[-(8 * self._chat.room) :])[-(self._chat.room - _BESIDE) :])


class ShownReader:
    """`end`: what is shown with every question; None: the question's own passage."""

    def __init__(self, chat: ChatModel, end: str | None) -> None:
        self._chat, self._end = chat, end

    def ask(self, question: Question) -> list[Answer]:
        ids = shown_ids(self._chat, question, self._end)
        made = self._chat.engine.generate(
            ids, max_tokens=question.chat_budget, stop_tokens=tuple(self._chat.encoding.stop_tokens)
        )
        return [Answer(begun(made.text).strip(), chat=True, prompt_tokens=len(ids))]


def shown_ids(chat: ChatModel, question: Question, text: str | None) -> list[int]:
    """The prompt that shows a text (default: the question's passage) as a place is shown."""
    place = question.places[0]
    said = str(question.facts["passage"]) if text is None else text
    found = Found(place.path, place.first, place.first + said.count("\n"), said, 1.0)
    return chat.encoding.render(prompted(question.ask, [found])).ids


def _answer(told: Told, *, looked: bool) -> Answer:
    """`looked`: places were looked for, so that none is a miss."""
    cited = [(one.path, one.first_line, one.last_line) for one in told.citations]
    shown = [(one.path, one.first_line, one.last_line) for one in told.places]
    return Answer(
        told.text,
        citations=tuple(Citation(*where, 1.0) for where in cited) if looked else None,
        prompt_tokens=told.prompt_tokens,
        chat=True,
        shown=tuple(Citation(*where, 0.0) for where in shown) if looked else None,
    )


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()

"""The pretrained model itself, shown the right passage: the ceiling of what was converted from it.

It has no cache, so it would run its whole prompt for every token. The converted model, which mostly says the same,
drafts the answer, and the teacher checks a whole draft in one pass: what comes out is the teacher's own greedy answer,
token for token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from foveal.evals.material import Documents
from foveal.evals.systems.asking import VERSION, shown_ids
from foveal.evals.task import Answer, Question
from foveal.memory.asking.chat_model import ChatModel
from foveal.memory.asking.prompt import begun
from foveal.process.streams import told

if TYPE_CHECKING:
    from foveal.convert.llama import Llama

Likeliest = Callable[[Sequence[int]], list[int]]
"""The likeliest next token behind each of the given ones."""
Draft = Callable[[Sequence[int], int], Sequence[int]]
"""So many tokens, or fewer, that may follow the given ones."""


class TeacherSystem:
    """The source that `chat` was converted from (`source`: as `foveal convert` names it)."""

    name = "teacher"

    def __init__(self, chat: ChatModel, source: str) -> None:
        """Raises what opening the source does."""
        self._chat, self._source = chat, source
        self._network = _opened(source)

    @property
    def identity(self) -> str:
        return f"{VERSION} teacher {self._source}"

    def takes(self, length: int) -> bool:
        return True

    @contextmanager
    def reading(self, documents: Documents) -> Iterator[TeacherReader]:
        yield TeacherReader(self._chat, self._network)


class TeacherReader:
    """Answers from the question's passage; it reads no text."""

    def __init__(self, chat: ChatModel, network: Llama) -> None:
        self._chat, self._network = chat, network

    def ask(self, question: Question) -> list[Answer]:
        ids = shown_ids(self._chat, question, None)
        ends = {*self._chat.encoding.stop_tokens, self._chat.engine.tokenizer.eos_id}
        said = greedy(ids, question.chat_budget, ends, self._likeliest, self._draft)
        text = begun(self._chat.engine.tokenizer.decode(said)).strip()
        return [Answer(text, chat=True, prompt_tokens=len(ids))]

    def _likeliest(self, ids: Sequence[int]) -> list[int]:
        import torch

        logits = self._network.logits(torch.tensor([ids]))[0, :, : self._chat.engine.tokenizer.vocab_size]
        return logits.argmax(-1).tolist()

    def _draft(self, ids: Sequence[int], most: int) -> Sequence[int]:
        stops = tuple(self._chat.encoding.stop_tokens)
        return self._chat.engine.generate(list(ids), max_tokens=most, stop_tokens=stops).tokens


def greedy(ids: Sequence[int], most: int, ends: set[int], likeliest: Likeliest, draft: Draft) -> list[int]:
    """At most `most` tokens, each the likeliest behind all before it, up to one of `ends` (left out)."""
    said: list[int] = []
    while len(said) < most:
        drafted = list(draft([*ids, *said], most - len(said)))
        best = likeliest([*ids, *said, *drafted])[len(ids) + len(said) - 1 :]
        agreed = next((n for n, token in enumerate(drafted) if token != best[n]), len(drafted))
        for token in [*drafted[:agreed], best[agreed]]:
            if token in ends or len(said) == most:
                return said
            said.append(token)
    return said


def _opened(source: str) -> Llama:
    from foveal.convert.llama import Llama
    from foveal.convert.opening import open_source

    with TemporaryDirectory(prefix="foveal-eval-") as work:
        return Llama(open_source(source, Path(work), told))

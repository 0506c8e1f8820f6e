"""Our own model: a memory of the text, asked by recall (completion) or by a turn that follows the text (chat)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from foveal.engine import Engine
from foveal.evals.bench import Bench
from foveal.evals.material import Documents
from foveal.evals.task import Answer, Form, Question
from foveal.memory import Memory
from foveal.text.specials import ASSISTANT, THINK_END, USER


class MemorySystem:
    """`bench`'s model. With `topk`, the same weights looking at that many entries: full context when it covers all.
    `up_to`: the longest text it takes."""

    def __init__(
        self, bench: Bench, form: Form, *, name: str = "memory", topk: int | None = None, up_to: int | None = None
    ) -> None:
        self.name = name
        self._bench, self._form, self._topk, self._up_to = bench, form, topk, up_to

    @property
    def engine(self) -> Engine:
        return self._bench.engine if self._topk is None else self._bench.looking_at(self._topk)

    @property
    def identity(self) -> str:
        """The fingerprint of the model and all that changes its state."""
        return self.engine.fingerprint.digest

    def takes(self, length: int) -> bool:
        return self._up_to is None or length <= self._up_to

    @contextmanager
    def reading(self, documents: Documents) -> Iterator[MemoryReader]:
        """Raises what `Bench.memory` does."""
        with self._bench.memory(documents, self.engine) as memory:
            yield MemoryReader(memory, self._form)


class MemoryReader:
    """One memory, ready to be asked. Asking never changes it."""

    def __init__(self, memory: Memory, form: Form) -> None:
        self.memory, self._form = memory, form

    def ask(self, question: Question) -> list[Answer]:
        if self._form == "chat":
            return [self._chat(question)]
        return [self._recall(question, cue) for cue in question.cues]

    def _recall(self, question: Question, cue: str) -> Answer:
        eos = bool(question.facts.get("ignore_eos", False))
        recall = self.memory.recall(cue, max_tokens=question.max_tokens, stop=question.stop, ignore_eos=eos)
        return Answer(recall.text, recall.tokens[recall.healed :], recall.citations)

    def _chat(self, question: Question) -> Answer:
        """The text stands before the turn; the answer begins at once, without thinking (V4's chat encoding)."""
        engine = self.memory.engine
        control = engine.tokenizer.control_id
        turn = [control(USER), *engine.tokenizer.encode(question.ask), control(ASSISTANT), control(THINK_END)]
        made = engine.generate(turn, base=self.memory.sequence, max_tokens=question.chat_budget)
        return Answer(made.text, made.tokens, chat=True)

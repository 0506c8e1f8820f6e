"""One of several identical asks (after OpenAI's MRCR): the text is a conversation, and some of its asks are word for
word the same; the answer to the i-th of them is wanted.

Answers are pieces of the source. The chat form asks for "the i-th", with a mark to be put before it, without which the
answer scores 0. A model that only continues cannot count: the completion form repeats the end of what stood before the
i-th ask and then the ask, so that what tells the identical asks apart is their context. Scored by `difflib`'s ratio, as
MRCR does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from foveal.evals.errors import EvalError
from foveal.evals.material import TEXT_PATH, Documents, Material
from foveal.evals.scoring import likeness, tokens_after
from foveal.evals.task import Answer, Asking, Context, Form, Metrics, Question, Where, cited
from foveal.evals.words import ADJECTIVES, NOUNS
from foveal.sources import Document

PIECE_LINES = 8
ANSWER_TOKENS = 64
_MARK_TOKENS = 64
"""Room for the mark and a few words around it, in the chat form."""


class IdenticalAsks(Asking):
    """`needles` identical asks among others."""

    metric = "likeness"

    def version(self, form: Form, length: int) -> int:
        return 2 if form == "chat" else 1

    def __init__(self, needles: int) -> None:
        self.name = f"mrcr_{needles}"  # type: ignore[misc]
        self.about = f"MRCR-like: the answer to the i-th of {needles} identical asks"  # type: ignore[misc]
        self.needles = needles

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        return material.filled(lambda filler: self._of(filler, material, length, count, rng), rng)

    def _of(self, filler: Sequence[str], material: Material, length: int, count: int, rng: random.Random) -> Context:
        lines = [line for line in filler if line.strip()]
        pieces = ["".join(lines[i : i + PIECE_LINES]) for i in range(0, len(lines) - PIECE_LINES, PIECE_LINES)]
        pieces = list(dict.fromkeys(pieces))
        topics = [f"a {a} {n}" for a in ADJECTIVES for n in NOUNS]
        rng.shuffle(topics)
        shuffle = rng.random()

        def turns(size: int) -> list[str]:
            dice = random.Random(shuffle)
            asks = [topics[0]] * self.needles + [topics[1 + n % (len(topics) - 1)] for n in range(size)]
            dice.shuffle(asks)
            return asks

        def made(size: int) -> Documents:
            """As many other turns as `size` lines fill, the last cut short."""
            full, rest = divmod(size, PIECE_LINES)
            asked = turns(full)
            said = [f"{_ask(topic)}{piece}" for topic, piece in zip(asked, pieces, strict=False)]
            if rest:
                lines = pieces[len(asked)].splitlines(keepends=True)[:rest]
                said.append(_ask(topics[-1]) + "".join(lines))
            return (Document(TEXT_PATH, "".join(said)),)

        size = material.fit(made, length, max(0, len(pieces) - self.needles - 1) * PIECE_LINES)
        text, asked = made(size)[0].text, turns(size // PIECE_LINES)
        at = [n for n, topic in enumerate(asked) if topic == topics[0]]
        if len(at) < self.needles or self.needles > len(pieces):
            raise EvalError(f"{length:,} tokens are too few for {self.needles} asks; ask for a longer text")
        chosen = rng.sample(range(self.needles), min(count, self.needles))
        return Context(
            made(size), tuple(self._question(text, topics[0], i, pieces[at[i]], material, rng) for i in chosen)
        )

    def _question(
        self, text: str, topic: str, which: int, piece: str, material: Material, rng: random.Random
    ) -> Question:
        ask = _ask(topic)
        start = text.index(ask + piece)
        before = text[:start].rstrip("\n").rpartition("\n")[2]
        line = text.count("\n", 0, start + len(ask)) + 1
        mark = f"{rng.getrandbits(40):010x}"
        return Question(
            ask=f"In the conversation above, what was the answer to request number {which + 1} for a piece about "
            f"{topic}? Write {mark} and then that answer word for word, with nothing else.",
            cues=((before + "\n" if before else "") + ask.rstrip("\n"),),
            answers=(piece,),
            max_tokens=ANSWER_TOKENS,
            chat_tokens=2 * len(material.tokenizer.encode(piece)) + _MARK_TOKENS,
            places=(Where(TEXT_PATH, line - 1, line + PIECE_LINES - 1),),
            expected=piece,
            search=topic,
            place=start / len(text),
            facts={"mark": mark, "ignore_eos": True},
        )

    def score(self, material: Material, question: Question, answers: Sequence[Answer]) -> Metrics:
        """``likeness`` of the answer and the piece: whole in the chat form (0 without the mark), its first 64 tokens in
        the completion form."""
        text, mark = answers[0].text, str(question.facts["mark"])
        if answers[0].chat:
            marked = text.lstrip().startswith(mark)
            said = text.lstrip().removeprefix(mark).strip()
            return {"likeness": likeness(said, question.expected.strip()) if marked else 0.0}
        tokenizer = material.tokenizer
        wanted = tokenizer.decode(tokens_after(tokenizer, "", question.expected, ANSWER_TOKENS))
        return {"likeness": likeness(text.lstrip("\n")[: len(wanted)], wanted), **cited(question, answers)}


def _ask(topic: str) -> str:
    return f"User: show me a piece about {topic}\nAssistant:\n"


MRCR = tuple(IdenticalAsks(needles) for needles in (2, 4, 8))

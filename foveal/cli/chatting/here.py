"""A conversation in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from foveal.batch import FinishReason, SamplingParams
from foveal.cli.chatting.asked import Asked, CannotAsk, TooLongToAsk, Turn, Zoom, go_without
from foveal.cli.chatting.talk import Answer, Cited, Outcome
from foveal.config import PAGE_TOKENS
from foveal.engine import SHIPPED
from foveal.memory import MemoryNotFound
from foveal.text.events import ReplyEvent

if TYPE_CHECKING:
    from foveal.memory import ChatModel, Citation, MemoryStore
    from foveal.memory.conversation import Conversation
    from foveal.memory.saying import Said, Saying


class Here:
    """A `Talk` with a model of this process, saved in a store."""

    def __init__(
        self,
        chat: Conversation,
        store: MemoryStore,
        name: str,
        params: SamplingParams,
        zoom: Zoom,
        *,
        zooms: bool,
        threads: int | None,
    ) -> None:
        """`params`: of what the conversation's own model says.   threads: of the one that words answers."""
        self._chat, self._store, self.name = chat, store, name
        self._params, self._zoom, self.zooms, self._threads = params, zoom, zooms, threads
        self._open = ExitStack()
        self._wording: ChatModel | None = None
        self._said: list[tuple[int, Said]] = []

    @property
    def turns(self) -> Sequence[tuple[str, str]]:
        """See `Talk`."""
        return [(turn.user, turn.assistant) for turn in self._chat.turns]

    def say(self, text: str) -> Answer:
        """See `Talk`. What a model that was not made to chat would say means nothing: the one that words answers says
        it."""
        if self.zooms and self._chat.engine.name in SHIPPED:
            return Asked(lambda: self._begin(text, 0), None, None)
        return HereAnswer(self._chat.say(text, self._params, max_tokens=self._params.max_tokens), self._keep)

    def ask(self, question: str, *, only: bool) -> Answer:
        """See `Talk`."""
        otherwise = None if only else lambda: self.say(question)
        return Asked(lambda: self._begin(question, self._zoom.places), otherwise, partial(go_without, self, self._zoom))

    def _begin(self, question: str, zoom: int) -> Turn:
        from foveal.memory.asking.answering import ANSWER_TOKENS, NoRoom
        from foveal.memory.asking.chat_model import NoChatModel, opened_chat

        try:
            if self._wording is None:
                opened = opened_chat(self._chat.engine, self._zoom.with_, threads=self._threads)
                self._wording = self._open.enter_context(opened)
            most = self._zoom.max_tokens or ANSWER_TOKENS
            return self._chat.ask(question, with_=self._wording, zoom=zoom, max_tokens=most)
        except NoChatModel as error:
            raise CannotAsk(str(error)) from error
        except NoRoom as error:
            raise TooLongToAsk(str(error)) from error

    def _keep(self, said: Said) -> None:
        if said.reply is not None:
            self._said.append((len(self._chat.turns), said))

    def fork(self, turn: int, name: str) -> None:
        """See `Talk`."""
        fork = self._chat.fork(turn)
        self._chat.free()
        self._chat, self.name = fork, name
        self._said.clear()

    def taken(self, name: str) -> bool:
        """See `Talk`."""
        try:
            self._store.info(name)
        except MemoryNotFound:
            return False
        return True

    def save(self, name: str) -> None:
        """See `Talk`."""
        self._chat.save(name, root=self._store)
        self.name = name

    def why(self) -> None:
        """See `Talk`."""
        from foveal.cli.render import results, table

        listed = table("turn>", "tokens>", "in the context>", "in the store>", "run>", "first token>")
        for turn, said in self._said:
            numbers = (said.prompt_tokens, said.held, said.stored, said.run)
            listed.add_row(str(turn), *(f"{number:,}" for number in numbers), f"{said.first * 1000:,.0f} ms")
        results().print(listed)
        results().print(
            "Run were a turn's new tokens, less those that the store had (it is asked about messages of more than "
            f"{PAGE_TOKENS} tokens). For questions to the memory see /places."
        )

    def close(self) -> None:
        """See `Talk`."""
        self._chat.free()
        self._open.close()


class HereAnswer:
    """An `Answer` of this process."""

    def __init__(self, saying: Saying, keep: Callable[[Said], None]) -> None:
        self._saying, self._keep = saying, keep

    def __iter__(self) -> Iterator[ReplyEvent]:
        yield from self._saying
        self._keep(self._saying.result)

    def stop(self) -> None:
        """See `Answer`."""
        self._saying.stop()

    def close(self) -> None:
        """See `Answer`."""
        self._saying.close()

    @property
    def outcome(self) -> Outcome:
        """See `Answer`."""
        said = self._saying.result
        if said.reply is None:
            return Outcome(finish="")
        finish = {FinishReason.CANCELLED: "stopped", FinishReason.STOP: "stop"}.get(said.finish, "length")
        return Outcome(
            finish=finish,
            text=said.reply.message.content,
            reasoning=said.reply.message.reasoning,
            prompt_tokens=said.prompt_tokens,
            found=said.held + said.stored,
            written=said.written,
            citations=tuple(map(_cited, said.citations)),
            first=said.first,
            whole=said.whole,
        )


def _cited(citation: Citation) -> Cited:
    remark = "earlier version" if citation.outdated else ""
    return Cited(citation.path, citation.first_line, citation.last_line, citation.share, remark)

"""What a saved memory says of itself, beside its tokens and its source map."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from foveal.memory.options import SourceOptions, TailEvery
from foveal.memory.progress import ReadTotals
from foveal.store.errors import CorruptMemory
from foveal.store.objects import Context

if TYPE_CHECKING:
    from foveal.memory.memory import Memory


@dataclass(frozen=True)
class Facts:
    """The facts of a context (`foveal.store.objects.Context`) that a memory is.

    `model` made it, with entries stored as `cache` and pages of `page_bytes`: that is for people, since the fingerprint
    decides. `tail_every`, `source`, `totals`, `unread` and `appending` are those of the `Memory`; the last two are
    there only while a read is not complete. `chat` is there for conversations only.
    """

    model: str
    cache: str
    page_bytes: int
    tail_every: TailEvery
    source: SourceOptions
    totals: ReadTotals
    unread: tuple[str, ...] = ()
    appending: bool = False
    chat: int | None = None

    @classmethod
    def of(cls, memory: Memory) -> Self:
        return cls(
            model=memory.engine.name,
            cache=str(memory.engine.kv),
            page_bytes=memory.engine.pool.layout.page_bytes,
            tail_every=memory.tail_every,
            source=memory.options,
            totals=memory.totals,
            unread=memory.unread,
            appending=memory.appending,
            chat=memory.chat,
        )

    def to_dict(self) -> dict[str, Any]:
        """As they are saved."""
        return {
            "model": self.model,
            "cache": self.cache,
            "page_bytes": self.page_bytes,
            "tail_every": self.tail_every,
            "source": self.source.to_dict(),
            "totals": self.totals.to_dict(),
            **({} if self.chat is None else {"chat": self.chat}),
            **({} if self.totals.complete else {"unread": list(self.unread), "appending": self.appending}),
        }

    @classmethod
    def saved_in(cls, context: Context) -> Self:
        """Raises `CorruptMemory` when the context was not saved by a memory."""
        said = context.facts
        try:
            totals = ReadTotals.from_dict(said["totals"])
            return cls(
                model=said.get("model", ""),
                cache=said.get("cache", ""),
                page_bytes=said.get("page_bytes", 0),
                tail_every=said["tail_every"],
                source=SourceOptions.from_dict(said["source"]),
                totals=replace(totals, complete=totals.complete and context.length == totals.tokens),
                unread=tuple(said.get("unread", ())),
                appending=bool(said.get("appending", False)),
                chat=_chat(said.get("chat"), context.length),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptMemory(context.name, f"it was not saved as a memory ({error})") from error


def _chat(value: object, length: int) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value <= length):
        raise ValueError(f"a conversation begins at token {value!r}")
    return value

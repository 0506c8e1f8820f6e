"""A store of memories: what is read, loaded, listed, forked and shared there.

store = foveal.open_store()
with foveal.Engine.open("nano") as engine, store.read(engine, "path/to/project", name="project") as memory:
    print(memory.recall("def parse_config(").text)
store.fork("project", "try-out")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from foveal.store import contexts
from foveal.store.errors import MemoryNotFound, StoreError
from foveal.store.schema import check_name
from foveal.store.store import Store

if TYPE_CHECKING:
    # Listing memories must not wait for what runs a network: that is imported by the methods which need it.
    from foveal.engine import Engine
    from foveal.memory.memory import Memory
    from foveal.memory.names import MemoryInfo
    from foveal.memory.options import SourceOptions, TailEvery
    from foveal.memory.prefixes import StoredPrefixes
    from foveal.memory.progress import OnProgress, ShouldStop
    from foveal.memory.shared import SharedContext

SAVE_EVERY = 60.0
"""Seconds after which a read saves what it has, so that a process which is killed loses no more than that."""


class NameTaken(StoreError):
    """A memory of that name holds another source, or was imported: it is not read into."""

    code = "conflict"


class MemoryStore(Store):
    """A `Store` and the memories in it. `foveal.open_store` gives one; it is safe to use from several threads.

    Every method raises `InvalidName` for a name that is not plain, `MemoryNotFound`, `StoreUnavailable` when the
    system refuses just now, and `StoreError`.
    """

    def memories(self) -> list[MemoryInfo]:
        """All memories, by name; damaged ones too, with their problem. Records are verified, pages are not."""
        from foveal.memory.names import list_memories

        return list_memories(self)

    def info(self, name: str, *, sizes: bool = False) -> MemoryInfo:
        """What is known of one memory without loading it. With `sizes` its bytes are counted, which looks at every
        object in the store."""
        from foveal.memory.names import memory_info

        return memory_info(name, self, sizes=sizes)

    def read(
        self,
        engine: Engine,
        source: str | Path | Sequence[str | Path] | SourceOptions,
        *,
        name: str,
        replace: bool = False,
        max_file_bytes: int | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        use_gitignore: bool = True,
        stdin: BinaryIO | None = None,
        progress: OnProgress | None = None,
        should_stop: ShouldStop | None = None,
        tail_every: TailEvery = "auto",
        save_every: float | None = SAVE_EVERY,
    ) -> Memory:
        """Read a source into memory `name` and save it; the same call goes on after an interruption or a change.

        A memory of that name that holds the same source is gone on with: its longest beginning that is unchanged is
        kept. With `replace` it is made anew. `SourceOptions` hold a source with its filters. `save_every`: seconds
        after which what was read so far is saved, again and again. The rest is as `Memory.read`, which says what is
        raised; further `NameTaken`, and `StoreBusy` when another process reads into that name.
        """
        from foveal.memory.memory import Memory
        from foveal.memory.options import SourceOptions, source_options

        check_name(name)
        if isinstance(source, SourceOptions):
            options = source
        else:
            options = source_options(source, max_file_bytes, include, exclude, use_gitignore)
        with contexts.claim(self, name):
            going_on = not replace and self.going_on(name, options) is not None
            if going_on:
                memory = Memory.load(engine, name, root=self)
                memory.options = options
            else:
                memory = Memory.begin(engine, options, name=name, store=self, tail_every=tail_every)
            try:
                done = memory.resume(stdin=stdin, progress=progress, should_stop=should_stop, save_every=save_every)
                memory.resumed = done if going_on else None
                if memory.length:
                    memory.save(root=self)
            except BaseException:
                memory.free()
                raise
        return memory

    def going_on(self, name: str, options: SourceOptions) -> MemoryInfo | None:
        """The memory `name` that reading `options` would go on with; None when there is none of that name.

        Raises `NameTaken` when it holds another source, or was imported.
        """
        from foveal.memory.options import SourceOptions

        try:
            old = self.info(name)
        except MemoryNotFound:
            return None
        if old.problem is not None:
            return old
        if SourceOptions.from_dict(old.facts["source"]).named != options.named:
            held = old.facts["source"]["source"]
            raise NameTaken(f"memory {name} holds {held}; choose another name, or replace it (--replace)")
        if old.facts["origin"]:
            raise NameTaken(
                f"memory {name} was imported, and its pages are not computed here; choose another name, replace it "
                f"(--replace), or bring it up to date: foveal sync {name} --source {options.named[0]}"
            )
        return old

    def load(self, engine: Engine, name: str) -> Memory:
        """The memory `name`, with its pages mapped from the disk; what was damaged or evicted is computed again.

        Raises `FingerprintMismatch` naming what differs when another model made it, `CorruptMemory` when what cannot
        be computed again is damaged in both its copies.
        """
        from foveal.memory.memory import Memory

        return Memory.load(engine, check_name(name), root=self)

    def fork(self, name: str, new: str, at: int | None = None) -> MemoryInfo:
        """A second memory over the first `at` tokens of `name` (default: all). No page is copied and nothing is run."""
        return self.info(contexts.fork(self, name, check_name(new), at=at).name)

    def delete(self, name: str) -> None:
        """Delete a memory; what others share with it stays."""
        from foveal.memory.names import delete_memory

        delete_memory(name, self)

    def share(self, engine: Engine, name: str, text: str, *, author: str = "") -> SharedContext:
        """A new context that several agents append to, beginning with `text`."""
        from foveal.memory.shared import SharedContext

        return SharedContext.create(engine, name, text, author=author, root=self)

    def shared(self, engine: Engine, name: str) -> SharedContext:
        """The context `name`, or any memory, to append to and fork from together with others."""
        from foveal.memory.shared import SharedContext

        return SharedContext.open(engine, name, root=self)

    def prefixes(self) -> StoredPrefixes:
        """For `Engine.open(prefixes=)`: every prompt starts from the longest beginning that is stored here."""
        from foveal.memory.prefixes import StoredPrefixes

        return StoredPrefixes(self)

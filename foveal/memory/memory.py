"""A context that lives: what was read, ready to be recalled from, forked, saved and loaded.

What is special here: a memory is a sequence of the cache together with the map from its tokens to files and lines.
Recalling never changes it. Saved, it is a folder that is whole or not there, and it is loaded only by an engine with
the same fingerprint and only when every byte is what was written.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from foveal import cache
from foveal.api import Engine, with_settings
from foveal.engine import GREEDY, Fingerprint, SamplingParams
from foveal.memory import image
from foveal.memory.errors import CorruptMemory, FingerprintMismatch
from foveal.memory.files import MANIFEST, read_files, read_manifest, write_folder
from foveal.memory.names import check_name, memory_path
from foveal.memory.reading import (
    TAIL_EVERY,
    OnProgress,
    ReadTotals,
    Resumed,
    ShouldStop,
    SourceOptions,
    changed_files,
    gather,
    go_back,
    run_tokens,
    source_options,
)
from foveal.memory.recall import DEFAULT_TOKENS, Recall, RecallStream
from foveal.sources import SourceMap, SourceMapError

FORMAT = 1
"""Version of the folder's layout."""


class Memory:
    """Tokens, pages and tail of a source, with the map to its files and lines.

    Belongs to the engine that made it. Use it in a ``with`` block, or `free` it, to give its pages back.
    """

    def __init__(
        self,
        engine: Engine,
        sequence: cache.Sequence,
        places: SourceMap,
        options: SourceOptions,
        totals: ReadTotals,
        *,
        name: str = "",
        created: str = "",
    ) -> None:
        self.engine = engine
        self.sequence = sequence
        self.places = places
        self.options = options
        self.totals = totals
        self.name = name
        self.created = created or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()

    def __repr__(self) -> str:
        state = "" if self.complete else f" of {self.totals.tokens}"
        return f"<Memory {self.name or self.options.source!r}: {self.length}{state} tokens>"

    @property
    def length(self) -> int:
        """Tokens in the memory."""
        return self.sequence.length

    @property
    def complete(self) -> bool:
        """Whether all of the source was read; if not, `resume` goes on."""
        return self.totals.complete

    @property
    def fingerprint(self) -> Fingerprint:
        return self.engine.fingerprint

    def nbytes(self) -> cache.CacheBytes:
        """Bytes held, by kind."""
        return self.sequence.nbytes()

    # ------------------------------------------------------------------ reading

    @classmethod
    def read(
        cls,
        engine: Engine,
        source: str | Path,
        *,
        name: str = "",
        max_file_bytes: int | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        use_gitignore: bool = True,
        stdin: BinaryIO | None = None,
        progress: OnProgress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Self:
        """Read a folder, a file or standard input (``-``) into a new memory.

        `should_stop` is asked between chunks; it and Ctrl-C (once the network runs) end the read early: the memory
        returned then holds what was read, and `complete` is False. Filters are those of `foveal.sources.read_source`.
        Raises `foveal.sources.SourceError` for a source that does not exist, `ReadError` when nothing in it can be
        read, `InvalidName` for a name that is not plain.
        """
        options = source_options(str(source), max_file_bytes, include, exclude, use_gitignore)
        if name:
            check_name(name)
        sequence = engine.new_sequence(tail_every=TAIL_EVERY)
        memory = cls(engine, sequence, SourceMap(), options, ReadTotals(), name=name)
        try:
            memory.resume(stdin=stdin, progress=progress, should_stop=should_stop)
        except BaseException:
            memory.free()
            raise
        return memory

    def resume(
        self,
        *,
        stdin: BinaryIO | None = None,
        progress: OnProgress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Resumed:
        """Look at the source again and read what is missing, keeping the longest beginning that is unchanged.

        Says what was kept, and which files had changed. Interruption and errors are those of `read`; the memory stays
        usable and holds what was read. Standard input has to be given again from its beginning.
        """
        found = gather(self.options, self.engine.tokenizer, stdin=stdin, progress=progress)
        before = self.length
        past = self.sequence.tokens.numpy()
        kept = go_back(self.sequence, found.ids, self.engine.batch.scheduler.chunk)
        changed = changed_files(self.places, past, found.places, found.ids) if kept < before else ()
        started = time.perf_counter()
        try:
            run_tokens(self.engine, self.sequence, found, progress=progress, should_stop=should_stop)
        except KeyboardInterrupt:
            self.sequence.rollback()  # the chunk in work is dropped; those before it stay
        finally:
            self.places = found.places.copy()
            self.places.truncate(self.length)
            self.totals = ReadTotals(
                files=found.files,
                text_bytes=found.text_bytes,
                tokens=len(found.ids),
                seconds=self.totals.seconds + time.perf_counter() - started,
                skipped=tuple(found.skipped),
                complete=self.length == len(found.ids),
            )
        return Resumed(kept, changed)

    # ------------------------------------------------------------------ recall

    def recall(
        self,
        cue: str,
        params: SamplingParams = GREEDY,
        *,
        max_tokens: int = DEFAULT_TOKENS,
        healing: bool = True,
        **settings: Any,
    ) -> Recall:
        """What followed `cue` in the source, with the lines it came from. The memory does not change.

        `settings` are fields of `SamplingParams` (``stop="\\n\\n"``, ``temperature=0.7``). `healing` lets the cue end
        in the middle of a token. Raises `ParameterError` for an empty cue or bad settings.
        """
        return self.recall_stream(cue, params, max_tokens=max_tokens, healing=healing, **settings).finish()

    def recall_stream(
        self,
        cue: str,
        params: SamplingParams = GREEDY,
        *,
        max_tokens: int = DEFAULT_TOKENS,
        healing: bool = True,
        **settings: Any,
    ) -> RecallStream:
        """`recall` as pieces of text while they come; the stream's `result` has the citations in the end."""
        params = with_settings(params, max_tokens=max_tokens, **settings)
        return RecallStream(self.engine, self.sequence, self.locate, cue, params, healing=healing)

    def locate(self, token: int) -> tuple[str, int] | None:
        """Path and line (from 1) in which token number `token` begins; None in a file's header line."""
        place = self.places.locate(token)
        return (place.path, place.line) if place.line else None

    # ------------------------------------------------------------------ fork and free

    def fork(self) -> Memory:
        """A second memory over the same pages; it costs a tail."""
        return Memory(
            self.engine, self.sequence.fork(), self.places.copy(), self.options, self.totals, created=self.created
        )

    def free(self) -> None:
        """Give the pages back; the memory cannot be used afterwards. Freeing it again does nothing."""
        self.sequence.free()

    # ------------------------------------------------------------------ saving

    def save(self, place: str | Path | None = None, *, root: str | Path | None = None) -> Path:
        """Write the memory as a folder, replacing one that is there in one step; returns where it is.

        `place` is a name in the store (`foveal.memory.store_root`; default: the memory's own name) or, as a `Path` or
        with a slash, a path. Raises `InvalidName` when there is no plain name, `StoreError` when the disk refuses; an
        older folder is then untouched.
        """
        target = _folder(self.name if place is None else place, root)
        write_folder(target, image.pack(self.sequence, self.places.to_bytes()), self._facts())
        return target

    @classmethod
    def load(cls, engine: Engine, place: str | Path, *, root: str | Path | None = None) -> Self:
        """The memory saved at `place`: a name in the store, or a path, as in `save`.

        Raises `MemoryNotFound`; `FingerprintMismatch` naming what differs when another model, tokenizer, number format
        or rotary setting made it; `CorruptMemory` naming the file when any byte is not as it was written.
        """
        folder = _folder(place, root)
        manifest = read_manifest(folder)
        facts = _Facts.of(manifest)
        differing = engine.fingerprint.differing(facts.fingerprint)
        if differing:
            raise FingerprintMismatch(differing)
        files = read_files(folder, manifest, image.FILES)
        unpacked = image.unpack(files, engine.pool.layout, facts.tokens)
        try:
            places = SourceMap.from_bytes(bytes(files[image.SOURCE]))
        except SourceMapError as error:
            raise CorruptMemory(image.SOURCE, str(error)) from error
        if places.tokens != facts.tokens:
            raise CorruptMemory(image.SOURCE, f"it covers {places.tokens} tokens instead of {facts.tokens}")
        try:
            sequence = engine.restore_sequence(unpacked.image, tail_every=TAIL_EVERY)
        except cache.ImageError as error:
            raise CorruptMemory(image.TAIL, str(error)) from error
        for tail in unpacked.tails:
            sequence.add_tail(tail)
        return cls(engine, sequence, places, facts.options, facts.totals, name=folder.name, created=facts.created)

    def _facts(self) -> dict[str, Any]:
        layout = self.engine.pool.layout
        return {
            "format": FORMAT,
            "name": self.name,
            "created": self.created,
            "model": self.engine.name,
            "fingerprint": self.fingerprint.to_dict(),
            "cache": str(self.engine.kv),
            "tokens": self.length,
            "page_bytes": layout.page_bytes,
            "source": asdict(self.options)
            | {"include": list(self.options.include), "exclude": list(self.options.exclude)},
            "totals": self.totals.to_dict(),
        }


class _Facts:
    """What `Memory.load` needs of a manifest, checked."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        if manifest.get("format") != FORMAT:
            raise CorruptMemory(MANIFEST, f"it has format {manifest.get('format')!r}; this version reads {FORMAT}")
        self.fingerprint = Fingerprint.from_dict(manifest["fingerprint"])
        self.tokens = int(manifest["tokens"])
        self.created = str(manifest["created"])
        self.totals = ReadTotals.from_dict(manifest["totals"])
        options = SourceOptions(**manifest["source"])
        self.options = replace(options, include=tuple(options.include), exclude=tuple(options.exclude))

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Self:
        """Raises `CorruptMemory` when the manifest, though whole, does not say what it must."""
        try:
            return cls(manifest)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptMemory(MANIFEST, f"it lacks or misstates something ({error})") from error


def _folder(place: str | Path, root: str | Path | None) -> Path:
    """A string without a slash is a name in the store; anything else is a path (with `root`: always a name)."""
    if root is not None or (isinstance(place, str) and "/" not in place):
        return memory_path(str(place), root)
    return Path(place).absolute()

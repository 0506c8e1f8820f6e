"""The model under test, and the store where what it has read is kept.

A text is read once, whatever asks of it. A memory is saved under a name made of its text and of the model, while it is
still being read too; a run that was killed goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from foveal.engine import Engine, model_folder
from foveal.evals.errors import EvalError
from foveal.evals.material import Documents, whole_text, write_documents
from foveal.memory import Memory, MemoryNotFound, Progress, open_store

SAVE_EVERY = 131_072
"""Tokens read between two saves: what a killed run has to read again at most."""

_NO_LIMIT = sys.maxsize

OnReading = Callable[[Progress], None]


class Bench:
    """Opens engines when they are first needed; a context manager that frees them."""

    def __init__(
        self, model: str, folder: Path, *, threads: int | None = None, on_reading: OnReading = lambda _: None
    ) -> None:
        """`folder`: where the store is. Raises what `Engine.open` does."""
        self.model = model
        self.threads = threads
        self.engine = Engine.open(model, threads=threads)
        self.store = open_store(folder, durability="normal")
        self.tokens_read, self.seconds_read = 0, 0.0
        self._on_reading = on_reading
        self._stack = ExitStack()
        self._looking: dict[int, Engine] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def looking_at(self, topk: int) -> Engine:
        """The same weights with another `index_topk`."""
        if topk == self.engine.config.index_topk:
            return self.engine
        if topk not in self._looking:
            folder = self._stack.enter_context(_with_topk(self.model, topk))
            self._looking[topk] = Engine.open(folder, threads=self.threads)
        return self._looking[topk]

    @contextmanager
    def memory(self, documents: Documents, engine: Engine | None = None) -> Iterator[Memory]:
        """The memory of these documents, loaded, gone on with, or read. Ctrl-C keeps what was read and goes on up.

        Raises `EvalError` when the memory has not as many tokens as its text.
        """
        engine = engine or self.engine
        with self._memory(documents, engine) as memory:
            yield memory

    def _memory(self, documents: Documents, engine: Engine) -> Memory:
        text = hashlib.sha256(whole_text(documents).encode("utf-8", "surrogatepass")).hexdigest()
        name = f"{text[:20]}-{engine.fingerprint.digest[:12]}"
        try:
            memory = Memory.load(engine, name, root=self.store)
        except MemoryNotFound:
            memory = None
        if memory is not None and memory.complete:
            return memory
        with tempfile.TemporaryDirectory(prefix="foveal-eval-") as place:
            write_documents(Path(place), documents)
            return self._read(engine, name, place, memory)

    def _read(self, engine: Engine, name: str, place: str, memory: Memory | None) -> Memory:
        pause = _Pause()

        def tell(progress: Progress) -> None:
            pause.at(progress)
            self._on_reading(progress)

        before, start = (memory.totals.seconds, memory.length) if memory is not None else (0.0, 0)
        if memory is None:
            memory = Memory.read(
                engine,
                place,
                name=name,
                max_file_bytes=_NO_LIMIT,
                use_gitignore=False,
                progress=tell,
                should_stop=pause,
                root=self.store,
            )
        else:
            memory.options = replace(memory.options, source=place)
            memory.resume(progress=tell, should_stop=pause)
        while True:
            memory.save(root=self.store)
            if memory.complete:
                break
            if not pause.asked:
                memory.free()
                raise KeyboardInterrupt
            pause.asked = False
            memory.resume(progress=tell, should_stop=pause)
        self.tokens_read += memory.length - start - memory.reused
        self.seconds_read += memory.totals.seconds - before
        return memory


class _Pause:
    """Asks reading to stop once `SAVE_EVERY` tokens have been read, so that they can be saved."""

    def __init__(self) -> None:
        self.asked = False
        self._first: int | None = None
        self._done = 0

    def at(self, progress: Progress) -> None:
        if progress.exact:
            self._done = progress.tokens_done
            self._first = self._done if self._first is None else self._first

    def __call__(self) -> bool:
        if self._first is not None and self._done - self._first >= SAVE_EVERY:
            self.asked, self._first = True, None
        return self.asked


@contextmanager
def _with_topk(model: str, topk: int) -> Iterator[Path]:
    """A folder with the model's files and another `index_topk` in its config."""
    if topk < 1:
        raise EvalError(f"index_topk is {topk}; it must be at least 1")
    folder = model_folder(model).resolve()
    with tempfile.TemporaryDirectory(prefix="foveal-topk-") as place:
        for path in folder.iterdir():
            if path.name != "config.json":
                (Path(place) / path.name).symlink_to(path)
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (Path(place) / "config.json").write_text(json.dumps(values | {"index_topk": topk}), encoding="utf-8")
        yield Path(place)

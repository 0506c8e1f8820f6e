"""Results as they come: a file of JSON lines that only ever grows.

A sample counts when its line is there, whole. A line is written in one call and synced, so a run that is killed loses
the sample in work and nothing else. A damaged line (half of one that a power cut left, say) is passed over, and what it
held is measured again: a text is done when as many samples are there as it had. A sample is known by what it depends on
(`Key`), so the same command goes on, and a changed one starts anew in the same file.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from foveal.evals.errors import EvalError
from foveal.evals.task import Metrics

FILE = "results.jsonl"


@dataclass(frozen=True)
class Key:
    """One text put to one system. `run` is a digest of everything else: seed, source, model, form, questions a text."""

    run: str
    task: str
    length: int
    system: str
    context: int


@dataclass(frozen=True)
class Sample:
    """One sample: `question` is its number in the text. `detail` is for people and is never read back."""

    key: Key
    question: int
    metrics: Metrics
    detail: Mapping[str, Any] = field(default_factory=dict)


class Results:
    """The samples so far. A context manager; with a folder they are kept there, and nobody else may write to it."""

    def __init__(self, folder: Path | None) -> None:
        """Raises `EvalError` when another process writes to `folder`, or what is there are no results."""
        self._rows: dict[tuple[Key, int], Sample] = {}
        self._there: Counter[Key] = Counter()
        self._finished: dict[Key, int | None] = {}
        self.damaged = 0
        """Lines of the file, half a last one aside, that could not be read."""
        self._file = -1
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._open(folder / FILE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, key: Key, question: int) -> bool:
        """Whether that sample is there."""
        return (key, question) in self._rows

    def finished(self, key: Key) -> bool:
        """Whether all samples of that text are there."""
        if key not in self._finished:
            return False
        samples = self._finished[key]
        # Versions before did not write how many there are: that is believed as long as nothing was lost.
        return not self.damaged if samples is None else self._there[key] >= samples

    def add(self, row: Sample) -> None:
        """Keep one sample."""
        self._keep(row)
        self._write({**asdict(row.key), "question": row.question, "metrics": row.metrics, "detail": dict(row.detail)})

    def finish(self, key: Key) -> None:
        """Say that there are no more samples of that text than there are now."""
        self._finished[key] = self._there[key]
        self._write({**asdict(key), "finished": True, "samples": self._there[key]})

    def of(self, keys: Iterable[Key]) -> list[Sample]:
        """The samples of these texts, in the order of the texts and of their questions."""
        order = {key: place for place, key in enumerate(keys)}
        rows = [row for row in self._rows.values() if row.key in order]
        return sorted(rows, key=lambda row: (order[row.key], row.question))

    def _keep(self, row: Sample) -> None:
        self._there[row.key] += (row.key, row.question) not in self._rows
        self._rows[row.key, row.question] = row

    # ------------------------------------------------------------------ the file

    def _open(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            self._file = -1
            raise EvalError(f"another process is writing to {path}; wait for it, or name another folder") from None
        try:
            self._read(path)
        except BaseException:
            os.close(self._file)
            self._file = -1
            raise

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        *lines, last = data.split(b"\n")
        sound = [self._take(line, path) for line in lines if line.strip()]
        self.damaged = sound.count(False)
        begun = self._take(last, path) or last.startswith(b'{"run"')  # it was being written when the machine went down
        if data.strip() and not begun and not any(sound):
            raise _not_results(path)
        if data and not data.endswith(b"\n"):
            os.write(self._file, b"\n")

    def _take(self, line: bytes, path: Path) -> bool:
        """Whether the line could be read. Raises `EvalError` when it is something else than a result."""
        try:
            value = json.loads(line)
        except ValueError:
            return False
        try:
            key = Key(**{name: value[name] for name in ("run", "task", "length", "system", "context")})
            if value.get("finished"):
                self._finished[key] = value.get("samples")
            else:
                self._keep(Sample(key, value["question"], value["metrics"], value["detail"]))
        except (KeyError, TypeError):
            raise _not_results(path) from None
        return True

    def _write(self, value: Mapping[str, Any]) -> None:
        if self._file >= 0:
            line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
            if os.write(self._file, line) != len(line):
                raise OSError("the disk is full: the last result was not kept")
            os.fsync(self._file)


def _not_results(path: Path) -> EvalError:
    return EvalError(f"{path} holds something else than results; name another folder")

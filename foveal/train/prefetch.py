"""Composing the next steps' rows in other processes while this one trains.

A row is a function of its number, so looking ahead needs no order and no state: what was guessed wrong (a new stage has
begun) is thrown away.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import replace
from typing import Any, Self

import torch

from foveal.process import imports
from foveal.process.signals import shielded
from foveal.train.batch import Batch, Feed, Row, assembled

_AHEAD = 2
"""Steps composed ahead."""

Call = tuple[int, tuple[int, ...], int, tuple[int, int] | None]

_feed: Feed | None = None
"""The worker process's own."""


class Prefetch:
    """`Feed.batch` with the next steps already under way in `workers` processes (0: none, all is done when asked)."""

    def __init__(self, feed: Feed, workers: int) -> None:
        self.feed, self.workers = feed, workers
        self._pool: ProcessPoolExecutor | None = None
        self._pending: dict[Call, list[Future[list[Row]]]] = {}
        self._kept: dict[Call, Batch] = {}

    def batch(
        self, step: int, rows: Sequence[int], length: int, documents: tuple[int, int] | None, *, keep: bool = False
    ) -> Batch:
        """As `Feed.batch`. With `keep` the batch stays here until it is asked for without, so that a step's rows that
        are looked at before their step are composed once."""
        call = (step, tuple(rows), length, documents)
        batch = self._kept.pop(call, None) or self._composed(step, rows, length, documents)
        if keep:
            self._kept[call] = batch
        else:
            self._kept = {other: kept for other, kept in self._kept.items() if other[0] > step}
        return batch

    def _composed(self, step: int, rows: Sequence[int], length: int, documents: tuple[int, int] | None) -> Batch:
        if not self.workers:
            return self.feed.batch(step, rows, length, documents)
        calls = [(step + ahead, tuple(rows), length, documents) for ahead in range(_AHEAD + 1)]
        for dropped in self._pending.keys() - set(calls):
            for future in self._pending.pop(dropped):
                future.cancel()
        for call in calls:
            if call not in self._pending:
                self._pending[call] = self._begin(call)
        try:
            return assembled([_unpacked(row) for future in self._pending.pop(calls[0]) for row in future.result()])
        except BrokenExecutor:  # a worker was killed, as by a signal to the whole group: this process does it alone
            self.workers, self._pending = 0, {}
            return self.feed.batch(step, rows, length, documents)

    def _begin(self, call: Call) -> list[Future[list[Row]]]:
        step, rows, length, documents = call
        each = -(-len(rows) // self.workers)
        groups = [rows[i : i + each] for i in range(0, len(rows), each)]
        pool = self._pool = self._pool or self._started()
        with shielded():
            return [pool.submit(_rows, step, group, length, documents) for group in groups]

    def _started(self) -> ProcessPoolExecutor:
        # A worker begins as ``python -c``, with the current folder on its path; so does what Python starts beside it.
        imports.safely()
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, context, initializer=_enter, initargs=(self.feed,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _enter(feed: Feed) -> None:
    global _feed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer hears it, and ends its workers
    torch.set_num_threads(1)
    _feed = feed
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A run that is killed cannot tell its workers, and they would wait for rows to compose for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _rows(step: int, rows: Sequence[int], length: int, documents: tuple[int, int] | None) -> list[Row]:
    assert _feed is not None
    return [_plain(_feed.row(step, row, length, documents)) for row in rows]


_TENSORS = ("tokens", "targets", "weights", "is_recall")


def _plain(row: Row) -> Row:
    """Tensors as arrays on the way: a tensor would take a file descriptor with it."""
    return _with_parts(row, lambda tensor: tensor.numpy())


def _unpacked(row: Row) -> Row:
    return _with_parts(row, torch.from_numpy)


def _with_parts(row: Row, change: Callable[[Any], Any]) -> Row:
    changed: list[dict[str, Any]] = [{name: change(getattr(s, name)) for name in _TENSORS} for s in row.samples]
    return replace(row, samples=tuple(replace(s, **new) for s, new in zip(row.samples, changed, strict=True)))

"""Processes that work on one store: writers of contexts that say themselves what they must hold, and readers."""

from __future__ import annotations

import faulthandler
import io
import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from store_support import CHUNK, Runner, made_up_source_map, random_tokens, same

from foveal.cache import Pager, Sequence
from foveal.cache.pager import resident
from foveal.store import contexts, eviction, gc, loading, saving, transfer
from foveal.store.about import ABOUT, ABOUT_COPY
from foveal.store.errors import CorruptMemory, MemoryNotFound, StoreError
from foveal.store.index_file import INDEX, LOCK
from foveal.store.objects import Context
from foveal.store.own_files import RESERVE
from foveal.store.repairs import REPAIRS
from foveal.store.report import Report
from foveal.store.store import Durability, Store
from foveal.store.verify import verify

SIZES = (1, 3, 4, 127, 129, 255, 256, 257, 384, 511, 512, 513, 700)
LONGEST = 1500
NAMES = 3
"""Contexts of each writer."""
SEEDS = 3
FILES = {ABOUT, ABOUT_COPY, LOCK, INDEX, RESERVE, REPAIRS, f"{INDEX}-wal", f"{INDEX}-shm"}

Recipe = list[list[int]]
"""Pairs of a text's number and how many of its tokens."""
Held = tuple[tuple[tuple[int, int], ...], int]
"""A recipe, and the length it is cut to."""
Model = dict[str, Held]
"""Name -> what was acknowledged."""


class Failure(Exception):
    """The store broke a promise."""


@dataclass(frozen=True)
class Setting:
    """How a store is used. `limit` and `memory` in bytes, None for none."""

    name: str
    durability: Durability = "full"
    key: bytes | None = None
    limit: int | None = None
    memory: int | None = None
    pack_bytes: int = 300_000

    def open(self, folder: Path) -> Store:
        store = Store(folder, durability=self.durability, key=self.key)
        store.packs.pack_bytes = self.pack_bytes
        return store

    def runner(self, folder: Path) -> Runner:
        runner = Runner()
        if self.memory is not None:
            runner.pool.pager = Pager(resident() + self.memory, folder.parent)
        return runner


SETTINGS = (
    Setting("plain"),
    Setting("off", durability="off", pack_bytes=100_000),
    Setting("normal", durability="normal", pack_bytes=2_000_000),
    Setting("encrypted", durability="normal", key=bytes(range(32))),
    Setting("limited", durability="off", limit=600_000),
    Setting("starved", durability="off", memory=256 << 20),
)


# ---------------------------------------------------------------------- what a context must hold


def tokens_of(held: Held) -> np.ndarray:
    recipe, length = held
    return np.concatenate([_text(seed)[:size] for seed, size in recipe])[:length]


@cache
def _text(seed: int) -> np.ndarray:
    return random_tokens(max(SIZES), seed=seed)


@cache
def reference(held: Held) -> Sequence:
    """What the tokens leave, computed from nothing."""
    return Runner().read(tokens_of(held))


def held_by(context: Context) -> Held:
    return tuple((seed, size) for seed, size in context.facts["recipe"]), context.length


def cut(held: Held, length: int) -> Recipe:
    """The recipe of the first `length` tokens."""
    recipe: Recipe = []
    for seed, size in held[0]:
        if length > 0:
            recipe.append([seed, min(size, length)])
        length -= size
    return recipe


def check_context(store: Store, context: Context, runner: Runner) -> loading.Loaded:
    """Load it, compare every bit; returns what it was loaded as. Raises `CorruptMemory` when it is lost."""
    held = held_by(context)
    loaded = loading.load(store, context, runner.fingerprint, runner, chunk=CHUNK)
    if not same(loaded.sequence, reference(held)):
        raise Failure(f"{context.name} is not what was saved")
    if contexts.read_map(store, context).tokens != context.length:
        raise Failure(f"the source map of {context.name} is not what was saved")
    return loaded


# ---------------------------------------------------------------------- processes


class Child:
    """A process that runs `work` with a log to write lines of JSON to."""

    def __init__(self, work: Callable[[Callable[..., None]], None], log: Path) -> None:
        self.log = log
        self.process = os.fork()
        if self.process == 0:
            code = 1
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                faulthandler.dump_traceback_later(200, exit=True)
                descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                work(lambda **line: os.write(descriptor, json.dumps(line).encode() + b"\n") and None)
                code = 0
            except BaseException:
                os.write(descriptor, json.dumps({"fail": traceback.format_exc()}).encode() + b"\n")
            finally:
                os._exit(code)

    def ended(self) -> int | None:
        """The status it ended with, or None while it runs."""
        process, status = os.waitpid(self.process, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if process else None

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        self.wait()

    def lines(self) -> Iterator[dict[str, Any]]:
        if self.log.exists():
            for line in self.log.read_bytes().splitlines():
                yield json.loads(line)

    def check(self, status: int) -> None:
        """Raise what it failed with."""
        for line in self.lines():
            if "fail" in line:
                raise Failure(line["fail"])
        if status not in (0, -signal.SIGKILL):
            raise Failure(f"a process ended with {status}")


def in_a_process(log: Path, work: Callable[[Callable[..., None]], None]) -> list[dict[str, Any]]:
    """What `work` logged. Raises `Failure` when it failed, or its process did."""
    log.unlink(missing_ok=True)
    child = Child(work, log)
    child.check(child.wait())
    return list(child.lines())


class Writer:
    """Changes to a store, one after the other, for as long as the process lives."""

    def __init__(self, folder: Path, setting: Setting, who: str, seed: int, log: Callable[..., None]) -> None:
        self.folder, self.setting, self.who, self.log = folder, setting, who, log
        self.dice = random.Random(seed)
        self.runner = setting.runner(folder)
        self.store = setting.open(folder)

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        weights = {self.save: 5, self.append: 4, self.fork: 5, self.truncate: 2, self.delete: 2, self.transfer: 1}
        weights |= {self.collect: 2, self.pin: 1, self.verify: 1, self.remake: 0.3, self.reopen: 1}
        if self.setting.limit is not None:
            weights[self.evict] = 3
        while time.monotonic() < end:
            self.dice.choices(list(weights), list(weights.values()))[0]()
        self.store.close()

    def _mine(self) -> list[Context]:
        return [found for found in listed(self.store) if found.name.startswith(self.who)]

    def _free_name(self) -> str | None:
        taken = {context.name for context in self._mine()}
        free = [name for number in range(NAMES) if (name := f"{self.who}{number}") not in taken]
        return self.dice.choice(free) if free else None

    def _put(self, name: str, sequence: Sequence, recipe: Recipe, what: str) -> None:
        self.log(begin=what, name=name, recipe=recipe, length=sequence.length)
        places = made_up_source_map(sequence.length)
        saving.save(self.store, name, sequence, self.runner.fingerprint, source_map=places, facts={"recipe": recipe})
        self.log(done=name, recipe=recipe, length=sequence.length)
        sequence.free()

    def save(self) -> None:
        recipe = [[self.dice.randrange(SEEDS), self.dice.choice(SIZES)]]
        held = ((recipe[0][0], recipe[0][1]),), recipe[0][1]
        sequence = self.runner.read(tokens_of(held), tail_every=self.dice.choice([None, 256, 512]))
        self._put(f"{self.who}{self.dice.randrange(NAMES)}", sequence, recipe, "save")

    def _one(self) -> tuple[Context, Sequence] | None:
        mine = self._mine()
        if not mine:
            return None
        context = self.dice.choice(mine)
        loaded = loading.load(self.store, context, self.runner.fingerprint, self.runner, chunk=CHUNK)
        return context, loaded.sequence

    def append(self) -> None:
        one = self._one()
        more = [self.dice.randrange(SEEDS), self.dice.choice(SIZES)]
        if one is not None and one[0].length + more[1] <= LONGEST:
            context, sequence = one
            self.runner.prefill(sequence, _text(more[0])[: more[1]].tolist())
            self._put(context.name, sequence, [*cut(held_by(context), context.length), more], "append")

    def truncate(self) -> None:
        one = self._one()
        if one is not None:
            context, sequence = one
            length = self.dice.randint(1, context.length)
            self.runner.prefill(sequence, sequence.truncate(length).tolist())
            self._put(context.name, sequence, cut(held_by(context), length), "truncate")

    def fork(self) -> None:
        """From anybody's context, which may be changed or deleted just now."""
        name, all_of_them = self._free_name(), listed(self.store)
        if name is None or not all_of_them:
            return
        base = self.dice.choice(all_of_them)
        at = self.dice.choice([None, self.dice.randint(1, base.length)])
        self.log(begin="fork", name=name, any=True)
        try:
            made = contexts.fork(self.store, base.name, name, at=at)
        except StoreError as error:
            if not any(said in str(error) for said in ("there is no memory", "cannot fork")):
                raise
            self.log(undone=name)
            return
        self.log(done=name, recipe=made.facts["recipe"], length=made.length)

    def transfer(self) -> None:
        """Export anybody's, import it under a name of one's own."""
        name, all_of_them = self._free_name(), listed(self.store)
        if name is None or not all_of_them:
            return
        file, source = io.BytesIO(), self.dice.choice(all_of_them)
        try:
            transfer.export(self.store, source.name, file)
        except (MemoryNotFound, CorruptMemory):
            now = [found for found in listed(self.store) if found == source]
            if now:
                raise
            return
        file.seek(0)
        self.log(begin="import", name=name, any=True)
        made = transfer.import_file(self.store, file, name)
        self.log(done=name, recipe=made.facts["recipe"], length=made.length)

    def delete(self) -> None:
        mine = self._mine()
        if mine:
            name = self.dice.choice(mine).name
            self.log(begin="delete", name=name, recipe=None)
            contexts.delete(self.store, name)
            self.log(done=name, recipe=None)

    def pin(self) -> None:
        mine = self._mine()
        if mine:
            contexts.change(self.store, self.dice.choice(mine).name, pinned=self.dice.random() < 0.3)

    def collect(self) -> None:
        gc.collect(self.store, threshold=self.dice.choice([0.0, 0.25]))

    def evict(self) -> None:
        assert self.setting.limit is not None
        eviction.evict(self.store, int(self.setting.limit * self.dice.uniform(0, 1)))

    def verify(self) -> None:
        must_be_sound(verify(self.store, repair=self.dice.random() < 0.3))

    def remake(self) -> None:
        self.store.repair()

    def reopen(self) -> None:
        self.store.close()
        self.store = self.setting.open(self.folder)


def listed(store: Store) -> list[Context]:
    found = store.contexts()
    for context in found:
        if isinstance(context, StoreError):
            raise Failure(f"the list says {context}")
    return [context for context in found if isinstance(context, Context)]


DEAD: set[str] = set()
"""What was said of damage that hit nothing in use: making the index again says it again."""


def must_be_sound(report: Report) -> None:
    problems = [str(problem) for problem in report.problems if str(problem) not in DEAD]
    if problems:
        raise Failure(f"verify found {problems[:5]} where nothing was damaged")


def read_on(folder: Path, setting: Setting, seed: int, seconds: float) -> None:
    """A reader: whatever it finds must be whole, and nothing sound may be called damaged."""
    dice, runner = random.Random(seed), setting.runner(folder)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with setting.open(folder) as store:
            while time.monotonic() < end and dice.random() < 0.9:
                found = listed(store)
                if not found:
                    time.sleep(0.01)
                    continue
                _read_one(store, dice.choice(found), runner, dice)


def _read_one(store: Store, context: Context, runner: Runner, dice: random.Random) -> None:
    with_presence = contexts.presence(store, context.name) if dice.random() < 0.5 else None
    try:
        loaded = check_context(store, context, runner)
    except CorruptMemory:
        if context in listed(store):
            raise
        return
    finally:
        if with_presence is not None:
            with_presence.close()
    loaded.sequence.free()
    if loaded.damaged:
        raise Failure(f"{context.name}: {len(loaded.damaged)} sound objects were taken for damaged ones")

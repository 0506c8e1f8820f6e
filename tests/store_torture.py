"""Several processes on one store, killed at random, and damage in between: what was acknowledged comes back, or is said
to be lost; never another token.

    python tests/store_torture.py --minutes 5
    python tests/store_torture.py --minutes 5 --only encrypted --seed 7

What is special here: a context says in its facts how its tokens are made, so whoever finds it can compute what it must
hold. Every writer owns its names and logs what it is about to do and what was acknowledged; after a `kill -9` the last
step may or may not have happened, and nothing else. All looking is done by processes of its own, whose end is looked at
too: a signal, or a traceback, is a failure. A failing store is kept, and its folder named.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from store_damage import Damage
from store_support import CHUNK, Runner, made_up_places, random_tokens, same

from foveal.cache import Pager, Sequence
from foveal.cache.pager import resident
from foveal.memory.errors import CorruptMemory, MemoryNotFound, StoreError
from foveal.memory.store import contexts, gc, loading, saving, transfer
from foveal.memory.store.about import ABOUT, ABOUT_COPY
from foveal.memory.store.files import exclusive
from foveal.memory.store.objects import Context
from foveal.memory.store.packs import PACK_HEADER_BYTES, Place
from foveal.memory.store.records import HEADER_BYTES, Header
from foveal.memory.store.store import INDEX, LOCK, RESERVE, Durability, Store
from foveal.memory.store.verify import Report, verify

SIZES = (1, 3, 4, 127, 129, 255, 256, 257, 384, 511, 512, 513, 700)
LONGEST = 1500
NAMES = 3
"""Contexts of each writer."""
SEEDS = 3
FILES = {ABOUT, ABOUT_COPY, LOCK, INDEX, RESERVE, f"{INDEX}-wal", f"{INDEX}-shm"}

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


def tokens_of(held: Held) -> torch.Tensor:
    recipe, length = held
    return torch.cat([_text(seed)[:size] for seed, size in recipe])[:length]


@cache
def _text(seed: int) -> torch.Tensor:
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
        places = made_up_places(sequence.length)
        saving.save(self.store, name, sequence, self.runner.fingerprint, places=places, facts={"recipe": recipe})
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
        gc.evict(self.store, int(self.setting.limit * self.dice.uniform(0, 1)))

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


def must_be_sound(report: Report) -> None:
    if not report.sound:
        raise Failure(f"verify found {[str(problem) for problem in report.problems[:5]]} where nothing was damaged")


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


# ---------------------------------------------------------------------- rounds


@dataclass
class Torture:
    """One store in one setting. `model` is what was acknowledged."""

    folder: Path
    setting: Setting
    seed: int
    model: Model = field(default_factory=dict)
    turns: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.logs = self.folder.parent / "logs"
        self.logs.mkdir(exist_ok=True)

    def turn(self, seconds: float, writers: int = 2, readers: int = 1) -> None:
        """Work and kill; look; damage; look; mend; look."""
        self.turns += 1
        self.work(seconds, writers, readers)
        self.look("after the kills")
        damage = self.damage()
        self.survive(damage)

    # ------------------------------------------------------------------ work

    def work(self, seconds: float, writers: int, readers: int) -> None:
        running: dict[str, Child] = {}
        number, end = 0, time.monotonic() + seconds
        roles = [f"w{n}-" for n in range(writers)] + [f"r{n}" for n in range(readers)]
        try:
            while time.monotonic() < end:
                for who in roles:
                    if who not in running:
                        number += 1
                        running[who] = self._start(who, number, end + 600 - time.monotonic())
                time.sleep(self.dice.uniform(0.02, 0.4))
                self._reap(running)
                if self.dice.random() < 0.5:
                    self._end(running.pop(self.dice.choice(sorted(running))))
            while running:
                self._end(running.popitem()[1])
        finally:
            for child in running.values():
                child.kill()

    def _start(self, who: str, number: int, seconds: float) -> Child:
        log = self.logs / f"{who}{self.turns}.{number}"
        seed = self.dice.randrange(1 << 30)
        if who.startswith("w"):
            return Child(lambda say: Writer(self.folder, self.setting, who, seed, say).run(seconds), log)
        return Child(lambda say: read_on(self.folder, self.setting, seed, seconds), log)

    def _reap(self, running: dict[str, Child]) -> None:
        for who in list(running):
            status = running[who].ended()
            if status is not None:
                running.pop(who).check(status)
                raise Failure(f"a process ended with {status} before its time")

    def _end(self, child: Child) -> None:
        """Kill it, and take what it acknowledged into the model."""
        child.kill()
        child.check(0)
        pending: dict[str, Any] | None = None
        for line in child.lines():
            if "begin" in line:
                pending = line
            elif "undone" in line:
                pending = None
            else:
                self._acknowledge(line)
                pending = None
        child.log.unlink(missing_ok=True)
        if pending is not None:
            self._settle(pending)

    def _acknowledge(self, line: dict[str, Any]) -> None:
        if line["recipe"] is None:
            self.model.pop(line["done"], None)
        else:
            self.model[line["done"]] = (_tuple(line["recipe"]), line["length"])

    def _settle(self, pending: dict[str, Any]) -> None:
        """What was in work when the process died: it happened, or it did not. The store says which."""
        name = pending["name"]

        def find(say: Callable[..., None]) -> None:
            with self.setting.open(self.folder) as store:
                for context in listed(store):
                    if context.name == name:
                        say(recipe=context.facts["recipe"], length=context.length)

        found = in_a_process(self.logs / "settle", find)
        now: Held | None = (_tuple(found[0]["recipe"]), found[0]["length"]) if found else None
        allowed: list[Held | None] = [self.model.get(name)]
        if pending.get("any"):
            allowed.append(now)
        else:
            recipe = pending["recipe"]
            allowed.append(None if recipe is None else (_tuple(recipe), pending["length"]))
        if now not in allowed:
            raise Failure(f"{name} is {now} after {pending}; it was {self.model.get(name)}")
        if now is None:
            self.model.pop(name, None)
        else:
            self.model[name] = now

    # ------------------------------------------------------------------ look

    def look(self, when: str) -> None:
        """Everything that was acknowledged is there, whole; nothing else is, and nothing is left over."""
        try:
            in_a_process(self.logs / "look", lambda say: self._look())
        except Failure as failure:
            raise Failure(f"{when}: {failure}") from failure

    def _look(self) -> None:
        runner = self.setting.runner(self.folder)
        self.setting.open(self.folder).close()
        with exclusive(self.folder / LOCK, 0):
            pass  # no lock was left behind
        with self.setting.open(self.folder) as store:
            self._compare(store)
            for context in listed(store):
                loaded = check_context(store, context, runner)
                if loaded.damaged:
                    raise Failure(f"{context.name}: sound objects were taken for damaged ones")
                loaded.sequence.free()
            must_be_sound(verify(store))
            gc.collect(store, threshold=0.0)
            self._nothing_left_over(store)
            must_be_sound(verify(store))

    def _compare(self, store: Store) -> None:
        found = {context.name: held_by(context) for context in listed(store)}
        if found != self.model:
            wrong = {
                name: (self.model.get(name), found.get(name))
                for name in found.keys() | self.model.keys()
                if found.get(name) != self.model.get(name)
            }
            raise Failure(f"acknowledged and found differ: {wrong}")

    def _nothing_left_over(self, store: Store) -> None:
        orphans, dangling = store.look(lambda index: (index.orphans(), index.dangling()))
        if orphans or dangling:
            raise Failure(f"{len(orphans)} orphans, {dangling} dangling references")
        if store.packs.files() != store.look(lambda index: index.state().sizes):
            raise Failure("packs are not as long as is committed")
        names = {path.name for path in self.folder.iterdir() if path.is_file()}
        live = {path.name for path in (self.folder / "live").glob("*")}
        labels = {store.names.label(name).hex() for name in self.model}
        if names - FILES or live - labels:
            raise Failure(f"left over: {sorted(names - FILES)}, {len(live - labels)} of live")

    # ------------------------------------------------------------------ damage

    def damage(self) -> Damage:
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        live = in_a_process(self.logs / "live", lambda say: say(ranges=self._live_ranges()))[0]["ranges"]
        made = Damage(self.dice, {path: os.path.getsize(path) for path in files}, live)
        made.do()
        return made

    def _live_ranges(self) -> dict[str, list[list[int]]]:
        """Pack -> the bytes that count: headers and payloads of all that is entered."""
        found: dict[str, list[list[int]]] = {}
        with self.setting.open(self.folder) as store:
            rows = store.look(
                lambda index: (
                    [place for entry in index.objects() if entry.pack for place in entry.places]
                    + [row.place for row in index.contexts()]
                )
            )
            for place in rows:
                header = Header.parse(store.packs.raw(Place(*place)) or b"")
                assert header is not None
                end = place.offset + HEADER_BYTES + header.size
                found.setdefault(store.packs.path(place.pack).name, []).append([place.offset, end])
            for pack in store.packs.files():
                found.setdefault(store.packs.path(pack).name, []).append([0, PACK_HEADER_BYTES])
        return found

    def survive(self, damage: Damage) -> None:
        """Nothing wrong comes out; what one flip hits is not lost; `verify` says the truth; then it is mended."""
        copy = self.folder.with_name("damaged")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder, copy)
        try:
            told = in_a_process(self.logs / "told", lambda say: self._tell(say))[0]["sound"]
            if told and damage.counts:
                raise Failure("verify found nothing")
            lost = in_a_process(self.logs / "lost", lambda say: self._survive(say, damage))[0]["lost"]
            for name in lost:
                del self.model[name]
            self.look("mended")
        except Failure as failure:
            raise Failure(f"{failure}\nafter {damage.what} (the store as it was then: {copy})") from failure

    def _tell(self, say: Callable[..., None]) -> None:
        copy = self.folder.with_name("told")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder, copy)
        with self.setting.open(copy) as store:
            say(sound=verify(store).sound)

    def _survive(self, say: Callable[..., None], damage: Damage) -> None:
        runner, lost = self.setting.runner(self.folder), []
        with self.setting.open(self.folder) as store:
            if self.dice.random() < 0.3:
                gc.collect(store, threshold=0.0)
            there = {context.name: context for context in store.contexts() if isinstance(context, Context)}
            for name, held in self.model.items():
                try:
                    context = store.context(name)
                    if held_by(context) != held:
                        raise Failure(f"{name} has gone back to {held_by(context)} from {held}")
                    check_context(store, context, runner).sequence.free()
                except StoreError as error:
                    if damage.light:
                        raise Failure(f"{name} is lost: {error}") from error
                    lost.append(name)
            if there.keys() - self.model.keys():
                raise Failure(f"{sorted(there.keys() - self.model.keys())} came back")
            verify(store, repair=True)
            for name in lost:
                with contextlib.suppress(MemoryNotFound):
                    contexts.delete(store, name)
            after = verify(store)
            if not after.sound:
                raise Failure(f"not mended: {[str(problem) for problem in after.problems[:5]]}")
        say(lost=lost)


def _tuple(recipe: Recipe) -> tuple[tuple[int, int], ...]:
    return tuple((seed, size) for seed, size in recipe)


def torture(setting: Setting, seed: int, seconds: float, folder: Path, *, turn: float = 1.5) -> int:
    """Turns of `turn` seconds of work for about `seconds` seconds; returns how many. Raises `Failure`."""
    run, end = Torture(folder / "store", setting, seed), time.monotonic() + seconds
    while time.monotonic() < end:
        run.turn(turn)
    return run.turns


def main() -> None:
    """Torture store after store until the time is over, or one has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--only", choices=[setting.name for setting in SETTINGS])
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--dir", type=Path, default=None, help="a folder on the disk to use")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 20)
    chosen = [setting for setting in SETTINGS if given.only in (None, setting.name)]
    end, number = time.monotonic() + given.minutes * 60, 0
    while time.monotonic() < end:
        setting = chosen[number % len(chosen)]
        folder = Path(tempfile.mkdtemp(prefix="foveal-torture-", dir=given.dir))
        left = min(max(end - time.monotonic(), 1), given.minutes * 60 / len(chosen), 60)
        try:
            turns = torture(setting, seed + number, left, folder)
        except Failure as failure:
            print(f"{setting.name}, seed {seed + number}: {failure}\nthe store is kept in {folder}")
            sys.exit(1)
        print(f"{setting.name}, seed {seed + number}: {turns} turns, nothing lost", flush=True)
        shutil.rmtree(folder)
        number += 1


if __name__ == "__main__":
    main()

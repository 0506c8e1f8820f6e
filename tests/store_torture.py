"""Several processes on one store, killed at random, and damage in between: what was acknowledged comes back, or is said
to be lost; never another token.

    python tests/store_torture.py --minutes 5
    python tests/store_torture.py --minutes 5 --only encrypted --seed 7

A context says in its facts how its tokens are made, so whoever finds it can compute what it must hold. Every writer
owns its names and logs what it is about to do and what was acknowledged; after a `kill -9` the last step may or may not
have happened, and nothing else. All looking is done by processes of its own, whose end is looked at too: a signal, or a
traceback, is a failure. A failing store is kept, and its folder named.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store_crowd import (
    DEAD,
    FILES,
    SETTINGS,
    Child,
    Failure,
    Held,
    Model,
    Recipe,
    Setting,
    Writer,
    check_context,
    held_by,
    in_a_process,
    listed,
    must_be_sound,
    read_on,
)
from store_damage import Damage

from foveal.store import contexts, gc
from foveal.store.errors import MemoryNotFound, StoreError
from foveal.store.files import exclusive
from foveal.store.index_file import LOCK
from foveal.store.objects import Context
from foveal.store.pack_file import PACK_HEADER_BYTES
from foveal.store.records import HEADER_BYTES, Extent, Header
from foveal.store.store import Store
from foveal.store.verify import verify

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
                # While others live, the next writer decides what becomes of what lies in a pack and not in the index.
                store.transact(lambda writer: None)
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
        orphans, dangling = store.look(lambda index: (index.references.orphans(), index.references.dangling()))
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
                    [place for entry in index.objects.all() if entry.pack for place in entry.extents]
                    + [place for row in index.contexts.all() for place in row.extents]
                )
            )
            for place in rows:
                header = Header.parse(store.packs.raw(Extent(*place)) or b"")
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
            survived = in_a_process(self.logs / "lost", lambda say: self._survive(say, damage))[0]
            for name in survived["lost"]:
                del self.model[name]
            DEAD.update(survived["dead"])
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
            store.repair()  # it tells of stretches that nobody refers to as well, each time until they are gone
            dead = [f"{what}: {where} (mended)" for what, where in store.repairs.told()]
            verify(store)
            after = verify(store)
            if not after.sound:
                raise Failure(f"not mended: {[str(problem) for problem in after.problems[:5]]}")
        say(lost=lost, dead=dead)


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

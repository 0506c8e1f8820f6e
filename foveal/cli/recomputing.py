"""`foveal verify --recompute`: run the network over memories again, and compare what comes out with what is stored."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from foveal.cli.opening import open_engine
from foveal.cli.output import UserError, note
from foveal.cli.progress import Interruption, ReadingBar, describe

if TYPE_CHECKING:
    from foveal.engine import Engine
    from foveal.memory import MemoryInfo, Progress, Store
    from foveal.store.recomputation import Recomputed


@dataclass
class Outcome:
    """What the engines found, one after the other; `unchecked` has the memories that could not be run, and why."""

    found: list[Recomputed] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return all(part.complete for part in self.found)

    @property
    def problems(self) -> list[Any]:
        return [problem for part in self.found for problem in part.problems]

    @property
    def sound(self) -> bool:
        return self.complete and not self.problems and not self.unchecked

    def listed(self, what: str) -> list[str]:
        return [name for part in self.found for name in getattr(part, what)]

    def count(self, what: str) -> int:
        return sum(getattr(part, what) for part in self.found)

    def document(self) -> dict[str, Any]:
        """The JSON under `recomputed` (docs/cli.md)."""
        return {
            "complete": self.complete,
            **{what: self.count(what) for what in ("tokens", "pages", "tails")},
            **{what: self.listed(what) for what in ("adopted", "repaired")},
            "unchecked": self.unchecked,
        }


def recompute_all(
    store: Store,
    names: list[str] | None,
    *,
    model: str | None,
    threads: int | None,
    memory_limit: str | None,
    sample: int | None,
    repair: bool,
) -> Outcome:
    """Compute the memories called `names` (None: all) again. Each is run by the model that made it; `sample` pages are
    those of all memories of one model together."""
    from foveal.memory import StoreError, list_memories, memory_info

    infos = list_memories(store) if names is None else [memory_info(name, store) for name in names]
    outcome, groups = Outcome(), defaultdict[tuple[str, str], list["MemoryInfo"]](list)
    for info in infos:
        if info.problem is not None:
            outcome.unchecked[info.name] = info.problem
        else:
            groups[str(info.facts["model"]), str(info.facts["cache"])].append(info)
    bar = ComputingBar()
    with Interruption(bar, "what was found right is not computed again").watch() as stop, bar:
        for members in groups.values():
            try:
                engine = open_engine(model, threads, members[0], memory_limit=memory_limit, store=store)
                mine = [info.name for info in members if _fits(info, engine, outcome)]
                if mine:
                    outcome.found.append(_recompute(store, mine, engine, sample, repair, bar, stop))
            except (UserError, StoreError) as error:
                outcome.unchecked |= {info.name: str(error) for info in members}
            if not outcome.complete:
                break
    return outcome


def _fits(info: MemoryInfo, engine: Engine, outcome: Outcome) -> bool:
    from foveal.checkpoint.identity import Fingerprint
    from foveal.memory import FingerprintMismatch

    differing = engine.fingerprint.differing(Fingerprint.from_dict(info.facts["fingerprint"]))
    if differing:
        outcome.unchecked[info.name] = str(FingerprintMismatch(differing))
    return not differing


def _recompute(
    store: Store,
    names: list[str],
    engine: Engine,
    sample: int | None,
    repair: bool,
    bar: ComputingBar,
    stop: Callable[[], bool],
) -> Recomputed:
    from foveal.batch import Priority
    from foveal.engine import RunningAgain
    from foveal.memory.progress import Progress
    from foveal.store.recompute import recompute

    started = time.perf_counter()

    def tell(name: str, done: int, due: int) -> None:
        speed = done / max(time.perf_counter() - started, 1e-9)
        bar(Progress(done, due, True, speed, (due - done) / max(speed, 1e-9), name))

    chunk = engine.batch.scheduler.chunk
    bar.reading = True
    return recompute(
        store,
        names,
        engine.fingerprint,
        RunningAgain(engine, replay=Priority.BACKGROUND),
        chunk=chunk,
        sample=sample,
        repair=repair,
        progress=tell,
        should_stop=stop,
    )


class ComputingBar(ReadingBar):
    """How far the tokens of memories were run again."""

    def __call__(self, progress: Progress) -> None:
        count = describe(progress)
        self.show("computing", progress.tokens_done, progress.tokens_total, count, progress.file)
        self.tell(f"{count}, {progress.file}")


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def tell_outcome(outcome: Outcome) -> None:
    """What was found, in a line or two on stderr."""
    pages, tails, tokens = (outcome.count(what) for what in ("pages", "tails", "tokens"))
    different = "" if outcome.problems else ", all as the network computes them"
    note(f"{_several(pages, 'page')} and {_several(tails, 'tail')} computed again ({tokens:,} tokens){different}")
    for name in outcome.listed("adopted"):
        note(f"{name} was imported; its pages now count as computed here")
    for name in outcome.listed("repaired"):
        note(f"{name}: what differed was replaced by what was computed")
    for name, reason in outcome.unchecked.items():
        note(f"{name} was not computed again: {reason}")
    if not outcome.complete:
        note("stopped before the end; run the same command again to go on")

"""The checks: the same prompts over and over, on every way by which a server may have come to know them.

Every prompt begins with random tokens, so that nobody has seen it before. What a prompt's first reply was, all later
ones must be: when it is known whole, when others share its beginning, beside others in one batch, after it was pushed
out, after a restart, and when its own log-probabilities are asked for, which servers compute without their cache.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from foveal.evals.hits.client import Client, HitsError
from foveal.evals.hits.report import Prompt, Report

LENGTHS = (61, 62, 63, 64, *range(126, 132), *range(254, 260), *range(510, 516), 1027, 2050)
TAIL = 9
"""Numbers that a second continuation has of its own."""
TURNS = 4
TURN = 37
"""Numbers that a turn of a session adds."""
FILLER = 2000
"""Tokens of a prompt that pushes others out."""

PATIENCE = 300.0
"""Seconds that a restarted server may take until it answers."""

Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Checks:
    """What is checked.

    lengths: of prompts, in tokens.   tokens: of each reply.   evict: tokens of other prompts that are sent to push all
    out; 0 for none.   restart: restarts the server, and returns when that is on its way.   parallel: requests at once.
    tolerance: see `Report`.   progress: told a check, and how many of its replies are there.
    """

    lengths: Sequence[int] = LENGTHS
    tokens: int = 8
    evict: int = 40_000
    restart: Callable[[], None] | None = None
    parallel: int = 6
    tolerance: float = 0.0
    seed: int | None = None
    progress: Told = field(default=lambda check, done, of: None)

    def __post_init__(self) -> None:
        """Raises `HitsError`: nothing is within a tolerance that is no number."""
        if not self.tolerance >= 0:
            raise HitsError(f"the tolerance is {self.tolerance:g}; give a number from 0 up")


@dataclass(frozen=True)
class _Family:
    """Prompts of which one is the beginning of the others."""

    whole: Prompt
    cut: Prompt
    one: Prompt
    other: Prompt


def check(client: Client, plan: Checks) -> Report:
    """Run all checks. Raises `HitsError` when the server cannot be asked."""
    return _Checking(client, plan).run()


class _Checking:
    def __init__(self, client: Client, plan: Checks) -> None:
        self._client, self._plan = client, plan
        self._dice = random.Random(plan.seed)
        self._report = Report(plan.tolerance)

    def run(self) -> Report:
        client, plan = self._client, self._plan
        client.calibrate(self._random(40), self._random(140))
        families = [self._family(length) for length in plan.lengths]
        sessions = self._sessions()
        self._one_by_one(families)
        self._in_turn(sessions)
        known = [prompt for family in families for prompt in (family.other, family.one, family.whole, family.cut)]
        known += [prompt for turns in sessions for prompt in turns]
        self._together("together", known)
        if client.api != "chat" and self._scores():
            self._each("scored", known, scored=True)
        if plan.evict:
            self._push_out()
            self._each("evicted", known)
        if plan.restart is not None:
            self._restart(plan.restart)
            self._each("restarted", known)
        return self._report

    # ------------------------------------------------------------------ prompts

    def _random(self, count: int) -> Prompt:
        return tuple(self._dice.randrange(self._client.numbers) for _ in range(count))

    def _family(self, tokens: int) -> _Family:
        whole = self._random(self._client.numbers_for(tokens))
        one, other = self._random(TAIL), self._random(TAIL)
        while one[0] == other[0]:
            other = self._random(TAIL)
        return _Family(whole, whole[:-1] or whole, whole + one, whole + other)

    def _sessions(self) -> tuple[list[Prompt], list[Prompt]]:
        """The prompts of two sessions that share their beginning, turn by turn."""
        base = self._random(self._client.numbers_for(300))
        found: tuple[list[Prompt], list[Prompt]] = ([], [])
        for turns in found:
            prompt = base
            for _ in range(TURNS):
                prompt += self._random(TURN)
                turns.append(prompt)
        return found

    # ------------------------------------------------------------------ checks

    def _one_by_one(self, families: list[_Family]) -> None:
        for number, family in enumerate(families, start=1):
            steps = (
                ("cold", family.whole),
                ("hit", family.whole),
                ("forked", family.one),
                ("forked", family.other),
                ("hit after forks", family.whole),
                ("hit after forks", family.one),
                ("cut", family.cut),
            )
            for name, prompt in steps:
                said = self._say(name, prompt)
                if name == "cold":
                    self._report.lengths.add(said)
            self._plan.progress("one by one", number, len(families))

    def _in_turn(self, sessions: tuple[list[Prompt], list[Prompt]]) -> None:
        for turn, prompts in enumerate(zip(*sessions, strict=True), start=1):
            for prompt in prompts:
                self._say("sessions in turn", prompt)
            self._plan.progress("sessions in turn", turn, TURNS)

    def _each(self, name: str, prompts: Sequence[Prompt], *, scored: bool = False) -> None:
        for number, prompt in enumerate(prompts, start=1):
            self._say(name, prompt, scored=scored)
            self._plan.progress(name, number, len(prompts))

    def _together(self, name: str, prompts: Sequence[Prompt]) -> None:
        """All prompts, several at once, in an order in which neighbours have nothing in common."""
        mixed = list(prompts)
        self._dice.shuffle(mixed)
        with ThreadPoolExecutor(self._plan.parallel) as threads:
            replies = threads.map(lambda prompt: self._client.say(prompt, self._plan.tokens), mixed)
            for number, (prompt, said) in enumerate(zip(mixed, replies, strict=True), start=1):
                self._report.add(name, prompt, said)
                self._plan.progress(name, number, len(mixed))

    def _scores(self) -> bool:
        """Whether the server gives the log-probabilities of prompts."""
        try:
            self._client.say(self._random(8), 1, scored=True)
        except HitsError:
            self._report.unscored = True
            return False
        return True

    def _push_out(self) -> None:
        size = min(FILLER, self._plan.evict)
        count = -(-self._plan.evict // size)
        fillers: Iterable[Prompt] = (self._random(self._client.numbers_for(size)) for _ in range(count))
        for number, filler in enumerate(fillers, start=1):
            self._client.say(filler, 1)
            self._plan.progress("pushing out", number, count)

    def _restart(self, restart: Callable[[], None]) -> None:
        restart()
        end = time.monotonic() + PATIENCE
        while not self._client.reachable():
            if time.monotonic() > end:
                raise HitsError(f"{self._client.url} did not come back within {PATIENCE:.0f} seconds of its restart")
            time.sleep(0.2)

    def _say(self, name: str, prompt: Prompt, *, scored: bool = False) -> int:
        said = self._client.say(prompt, self._plan.tokens, scored=scored)
        self._report.add(name, prompt, said)
        return said.prompt_tokens

"""When does a runtime stop asking the system for memory?

Which worker takes which piece is chance: one that first gets a piece in the tenth round grows its scratch then. So "no
growth" is asked of a whole round, soon, and not of the round after the first.
"""

from __future__ import annotations

from collections.abc import Callable

from foveal import _native

ROUNDS = 12


def assert_scratch_settles(runtime: _native.Runtime, work: Callable[[], object]) -> None:
    """`work` comes to ask for nothing: each worker's scratch doubles a few times at most, so some round soon is quiet.

    What asks again each time never has such a round.
    """
    grown = []
    for _ in range(ROUNDS):
        before = runtime.growths
        work()
        grown.append(runtime.growths - before)
        if grown[-1] == 0:
            return
    raise AssertionError(f"scratch memory still grows after {ROUNDS} rounds: {grown}")

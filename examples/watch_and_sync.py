"""A memory that follows its folder: it looks every few seconds, and reads what is new or changed.

python examples/watch_and_sync.py ~/src/project 5
"""

import itertools
import sys
import time
from collections.abc import Iterable

import foveal


def follow(folder: str, seconds: float, turns: Iterable[int]) -> None:
    store = foveal.open_store()
    with foveal.Engine.open("nano") as engine, store.read(engine, folder, name="followed") as memory:
        for _ in turns:
            time.sleep(seconds)
            plan = memory.plan_sync()
            if not plan.up_to_date:
                done = memory.sync("append", plan=plan)
                memory.save("followed", root=store)
                print(f"{[*done.changed, *done.new]}: {memory.length} tokens")


if __name__ == "__main__":
    follow(sys.argv[1], float(sys.argv[2]), itertools.count())

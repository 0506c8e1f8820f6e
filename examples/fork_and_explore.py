"""Three branches of one memory: each goes on in its own way, and none costs a copy.

python examples/fork_and_explore.py NAME 'class Parser:'
"""

import sys

import foveal


def main(name: str, cue: str) -> None:
    store = foveal.open_store()
    with foveal.Engine.open("nano") as engine, store.load(engine, name) as memory:
        for seed in range(3):
            with memory.fork() as branch:
                answer = branch.recall(cue, max_tokens=48, temperature=0.8, seed=seed)
                print(f"--- branch {seed}: {answer.text}")
        store.fork(name, f"{name}-half", memory.length // 2)  # on disk: the first half, under a name of its own
        print([info.name for info in store.memories()])


if __name__ == "__main__":
    main(*sys.argv[1:])

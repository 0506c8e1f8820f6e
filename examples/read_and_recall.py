"""Read a folder into a memory, and continue a line of it.

python examples/read_and_recall.py ~/src/project 'def parse_config('
"""

import sys

import foveal


def main(folder: str, cue: str) -> None:
    store = foveal.open_store()
    engine = foveal.Engine.open("nano", prefixes=store.prefixes())
    with store.read(engine, folder, name="project") as memory:  # the second time, only what changed is read
        answer = memory.recall(cue, max_tokens=64)
        print(cue + answer.text)
        for citation in answer.citations:
            print(citation)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Two agents append to one context. Who does not know the latest head is refused, looks, and appends again.

python examples/agents_on_one_memory.py
"""

import foveal
from foveal.memory import Conflict


def main() -> None:
    store = foveal.open_store()
    with foveal.Engine.open("nano") as engine, store.share(engine, "plan", "# The plan\n", author="anna") as context:
        seen = context.head()  # both agents begin here
        context.append("1. Measure first.\n", seen, author="anna")
        try:
            context.append("1. Begin anywhere.\n", seen, author="ben")
        except Conflict as late:
            context.append("2. Then begin.\n", late.head, author="ben")
        with context.fork() as mine:  # the same pages; what is added here is nobody else's
            print(mine.recall("1. Measure", max_tokens=8).text)
            print(f"{mine.length} tokens, shared with whoever else forks it")


if __name__ == "__main__":
    main()

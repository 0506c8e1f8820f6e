"""How often the search and attention find the place that answers a question about this repository.

    foveal read foveal/memory foveal/store docs README.md --name mine
    python bench/places.py mine

Prints how often a place that holds the answer is first, among the first three and the first five: by tokenizer of the
index (passages), and by who proposes (places as a model is shown them).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from foveal.engine import Engine
from foveal.memory import Memory, open_store
from foveal.memory.asking import places, text_index
from foveal.memory.asking.places import Finder
from foveal.memory.asking.texts import MemoryTexts

ASKED = (
    ("How is a page named?", "hash over"),
    ("What happens to open pages when a sequence is forked?", "fork shares the pages"),
    ("How many tokens are in a page?", "256 tokens"),
    ("How does foveal sync decide between append and rebuild?", "at most twice as many tokens"),
    ("What is the reserve file for?", "given up when the disk is full"),
    ("Which file says how big a store's format is?", "store.json"),
    ("How is an encrypted store protected?", "AES-256-GCM"),
    ("What does the raw window hold?", "last 128 tokens"),
    ("Where is the key of an encrypted store looked for?", "FOVEAL_STORE_KEY"),
    ("Which class decides whether a citation supports a token?", "def supporting"),
    ("How long does a writer wait for another writer?", "WAIT = 60"),
    ("What is the licence of SmolLM2?", "Apache-2.0"),
    ("What does durability normal mean?", "power cut may undo"),
    ("Why is a fork cheap?", "shares all full pages"),
    ("How are citations scored?", "share"),
    ("Who goes first when two requests wait?", "Interactive requests go before"),
    ("What is CSA?", "compressed sparse attention"),
    ("How many parameters does nano have?", "19.5 million parameters"),
)
"""Questions, and words that stand where the answer does."""
TOKENIZERS = ("porter unicode61 remove_diacritics 2", "unicode61 remove_diacritics 2", "trigram")
AROUND = 200
"""Characters around a passage in which the answer counts as found."""


def ranked(find: Callable[[str], Sequence[str]]) -> str:
    """``first / first 3 / first 5`` of the texts that `find` gives for each question."""
    ranks = []
    for question, words in ASKED:
        found = [" ".join(text.split()).lower() for text in find(question)]
        ranks.append(next((rank for rank, text in enumerate(found, start=1) if words.lower() in text), 99))
    return " / ".join(str(sum(rank <= most for rank in ranks)) for most in (1, 3, 5))


def by_tokenizer(memory: Memory) -> None:
    """The table of tokenizers."""
    texts = MemoryTexts(memory)
    for tokenizer in TOKENIZERS:
        text_index._TABLES = text_index._TABLES.replace(text_index.TOKENIZER, tokenizer)
        text_index.TOKENIZER = tokenizer
        memory.store, began = None, time.process_time()
        index = text_index.TextIndex.of(memory, texts)
        seconds = time.process_time() - began
        size = index._connection.execute("select page_count * page_size from pragma_page_count, pragma_page_size")

        def passages(question: str, index: text_index.TextIndex = index) -> list[str]:
            hits = index.search(question, 10)
            return [texts.file(hit.document).text[max(0, hit.start - AROUND) : hit.end + AROUND] for hit in hits]

        bytes_, count = size.fetchone()[0], index.count()
        print(f"{tokenizer}: {ranked(passages)}; {seconds:.2f} s of CPU, {count:,} passages, {bytes_:,} bytes")


def by_proposer(memory: Memory) -> None:
    """The table of who proposes."""
    with Finder(memory) as finder:

        def shown(**who: bool) -> Callable[[str], list[str]]:
            return lambda question: [
                place.text for place in finder.find(question, 5, 800, lambda text: len(text) // 4, **who)
            ]

        print(f"search: {ranked(shown(attention=False))}")
        print(f"attention: {ranked(shown(search=False))}")
        for weight in (0.3, places.WEIGHTS["attention"]):
            places.WEIGHTS["attention"] = weight
            print(f"both, attention with weight {weight}: {ranked(shown())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memory")
    parser.add_argument("--store", type=Path)
    arguments = parser.parse_args()
    store = open_store(arguments.store, create=False)
    with Engine.open(threads=1) as engine, Memory.load(engine, arguments.memory, root=store) as memory:
        by_proposer(memory)
        by_tokenizer(memory)


if __name__ == "__main__":
    main()

"""More sequences than there is room for: all finish, each with the tokens it has alone.

    python bench/crowd.py --sequences 200 --tokens 4096 --room 50

The nano with a cache for `--room` sequences of that length. First each request runs in an engine without a bound, then
all of them at once in the one with it; the tokens are compared one by one. `--check 20` compares only so many.
"""

from __future__ import annotations

import argparse
import random
import time

from foveal.config import PAGE_TOKENS
from foveal.engine import Engine


def prompts(count: int) -> list[list[int]]:
    dice = random.Random(1)
    return [[dice.randrange(4, 4000) for _ in range(dice.randrange(20, 600))] for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of each sequence in the end")
    parser.add_argument("--room", type=int, default=50, help="sequences of that length that the cache holds")
    parser.add_argument("--check", type=int, default=None, help="compare so many of them (default: all)")
    parser.add_argument("--model", default="nano")
    options = parser.parse_args()
    texts = prompts(options.sequences)

    def settings(number: int) -> dict[str, object]:
        most = options.tokens - len(texts[number])
        return {"max_tokens": most, "ignore_eos": True, "temperature": 0.8, "seed": number}

    with Engine.open(options.model) as engine:
        engine.pool.limit = options.room * -(-options.tokens // PAGE_TOKENS)
        began = time.perf_counter()
        jobs = [engine.submit(text, **settings(number)) for number, text in enumerate(texts)]
        results = [job.result().tokens for job in jobs]
        seconds = time.perf_counter() - began
        assert engine.pool.live == 0, "pages were kept"
    tokens = sum(map(len, results))
    print(f"{len(results)} sequences finished: {tokens:,} tokens in {seconds:.0f} s, {tokens / seconds:.0f} a second")
    with Engine.open(options.model) as engine:
        chosen = range(len(texts)) if options.check is None else range(0, len(texts), len(texts) // options.check)
        different = [n for n in chosen if engine.generate(texts[n], **settings(n)).tokens != results[n]]
    print(f"{len(chosen)} compared with what they give alone: {len(different)} different {different or ''}".rstrip())
    raise SystemExit(bool(different))


if __name__ == "__main__":
    main()

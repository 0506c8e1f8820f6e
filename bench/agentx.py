"""Agents with subagents and waits: how long each turn waits for its first token, and how much of its prompt was found.

    python bench/agentx.py                                     8 made-up agents at a server of its own, the nano
    python bench/agentx.py --agents 16 --write trace.jsonl     write the trace only
    python bench/agentx.py --trace trace.jsonl --url http://127.0.0.1:8000 --model v4 --speed 2

A trace is in the form that aiperf reads as `mooncake_trace`: one JSON object a line with `session_id`, `input_length`,
`output_length`, `hash_ids` (one for each 512 tokens; the same id is the same text), and `timestamp` (a session's first
turn) or `delay` (after the answer before), both in milliseconds. `aiperf profile --custom-dataset-type mooncake_trace`
runs the same trace, and this script runs those of others.

A made-up agent begins with instructions and tools that all agents have in common, and adds a task of its own; each turn
adds the results of tools. At some turns it starts subagents, which begin with instructions of theirs and a part of its
task, and waits for them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from streams import Stream, completion, percentiles, said, serving

from foveal.measure import OtherWork

BLOCK = 512
FIRST, AFTER = 100, 4000
"""Ids that text is made of; the nano's and most vocabularies have all of them."""


@dataclass
class _Ids:
    """Gives new hash ids."""

    count: int = 0

    def blocks(self, count: int) -> list[int]:
        first, self.count = self.count, self.count + count
        return list(range(first, self.count))


@dataclass
class _Session:
    """One agent, or subagent, as lines of a trace."""

    name: str
    ids: list[int]
    lines: list[dict[str, Any]] = field(default_factory=list)

    def turn(self, dice: random.Random, *, timestamp: int | None = None, delay: int | None = None) -> None:
        """Ask with all that there is; the last block is not full."""
        length = BLOCK * (len(self.ids) - 1) + dice.randrange(1, BLOCK + 1)
        line: dict[str, Any] = {
            "session_id": self.name,
            "input_length": length,
            "output_length": dice.randrange(20, 120),
        }
        line |= {"hash_ids": list(self.ids)}
        line |= {"timestamp": timestamp} if timestamp is not None else {"delay": delay}
        self.lines.append(line)


def made_up(agents: int, turns: int, seed: int) -> list[dict[str, Any]]:
    """The trace of so many agents, of about so many turns each."""
    dice, ids = random.Random(seed), _Ids()
    instructions, for_helpers = ids.blocks(8), ids.blocks(4)
    lines = []
    for number in range(agents):
        agent = _Session(f"agent-{number}", [*instructions, *ids.blocks(dice.randrange(1, 4))])
        start = at = dice.randrange(0, 1000 * agents)
        for turn in range(dice.randrange(turns // 2, turns * 2)):
            wait = dice.randrange(50, 1500)  # what tools take
            if turn and dice.random() < 0.2:
                helpers = [_helper(agent, f"{agent.name}-{turn}-{n}", for_helpers, at, ids, dice) for n in range(3)]
                lines += [line for helper in helpers for line in helper.lines]
                wait += 8000
            at += wait
            agent.turn(dice, **({"timestamp": start} if turn == 0 else {"delay": wait}))
            agent.ids += ids.blocks(dice.randrange(1, 3))
        lines += agent.lines
    return lines


def _helper(agent: _Session, name: str, common: list[int], at: int, ids: _Ids, dice: random.Random) -> _Session:
    """A subagent: instructions, what the agent was asked, and a few turns."""
    helper = _Session(name, [*common, *agent.ids[8:9], *ids.blocks(1)])
    for turn in range(dice.randrange(1, 5)):
        helper.turn(dice, **({"timestamp": at} if turn == 0 else {"delay": dice.randrange(50, 800)}))
        helper.ids += ids.blocks(1)
    return helper


def prompt_of(line: dict[str, Any]) -> list[int]:
    """The token ids of a line: each block's are drawn by its hash id."""
    length = line["input_length"]
    hashes = line.get("hash_ids") or range(-(-length // BLOCK))
    blocks = [np.random.default_rng(number).integers(FIRST, AFTER, BLOCK) for number in hashes]
    return np.concatenate(blocks)[:length].tolist()


async def replay(
    url: str, model: str, key: str | None, lines: list[dict[str, Any]], speed: float
) -> list[tuple[dict[str, Any], Stream]]:
    """Send every turn when it is due: a session's first at its time, the others after the answer before."""
    sessions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, line in enumerate(lines):
        sessions[line.get("session_id") or f"alone-{number}"].append(line)
    began = time.perf_counter()

    async def session(turns: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Stream]]:
        done = []
        for line in turns:
            at = line.get("timestamp")
            left = (
                at / 1000 / speed - (time.perf_counter() - began)
                if at is not None
                else line.get("delay", 0) / 1000 / speed
            )
            await asyncio.sleep(max(0.0, left))
            body = {"model": model, "prompt": prompt_of(line), "max_tokens": line.get("output_length") or 64}
            done.append((line, await completion(url, body | {"ignore_eos": True, "temperature": 0}, key)))
        return done

    return [one for done in await asyncio.gather(*map(session, sessions.values())) for one in done]


def best_found(lines: list[dict[str, Any]]) -> float:
    """Share of prompts' tokens that some line before has in common, in whole blocks: what could be found at most."""
    known: set[tuple[int, ...]] = set()
    found = 0
    for line in sorted(lines, key=lambda each: each.get("timestamp", 0)):
        hashes = tuple(line.get("hash_ids") or ())
        common = next((n for n in range(len(hashes), 0, -1) if hashes[:n] in known), 0)
        found += min(common * BLOCK, line["input_length"])
        known |= {hashes[:n] for n in range(1, line["input_length"] // BLOCK + 1)}
    return found / max(1, sum(line["input_length"] for line in lines))


def report(done: list[tuple[dict[str, Any], Stream]], lines: list[dict[str, Any]], seconds: float) -> None:
    """Print what came of a trace."""
    good = [(line, stream) for line, stream in done if not stream.error and stream.times]
    for error in sorted({stream.error for _, stream in done if stream.error}):
        print(f"failed: {error}")
    read, found = sum(s.prompt_tokens for _, s in good), sum(s.found for _, s in good)
    print(f"{len(done)} turns in {seconds:.0f} s, {len(done) - len(good)} failed; {read:,} tokens of prompts")
    print(f"found {found / max(read, 1):.1%} of them (of whole blocks in common, in order: {best_found(lines):.1%})")
    print(said("time to first token", [stream.first for _, stream in good]))
    later = [stream for line, stream in good if "delay" in line]
    print(said("  of turns behind another one", [stream.first for stream in later]))
    print(said("between two events", [gap for _, stream in good for gap in stream.gaps]))
    missed = percentiles([s.prompt_tokens - s.found for s in later], 0.5, 0.9)
    print(f"tokens run for a turn behind another one: p50 {missed[0]:,}, p90 {missed[1]:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server; default: one of its own")
    parser.add_argument("--key", help="its key")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--trace", type=Path, help="a trace; default: made up")
    parser.add_argument("--write", type=Path, help="write the made-up trace there, and do no more")
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--turns", type=int, default=8, help="turns of an agent, about")
    parser.add_argument("--speed", type=float, default=1.0, help="waits are divided by this")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.trace is None:
        lines = made_up(given.agents, given.turns, given.seed)
    else:
        lines = [json.loads(line) for line in given.trace.read_text().splitlines() if line.strip()]
    if given.write is not None:
        given.write.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    with contextlib.ExitStack() as stack:
        url = given.url
        if url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            url = stack.enter_context(serving(Path(folder) / "store")).url
        others, began = OtherWork(), time.perf_counter()
        done = asyncio.run(replay(url, given.model, given.key, lines, given.speed))
        report(done, lines, time.perf_counter() - began)
        print(f"other processes (the server too) kept {others.cores() or 0:.2f} cores busy")


if __name__ == "__main__":
    main()

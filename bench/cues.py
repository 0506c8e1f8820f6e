"""How long a cue has to be: recall from lines, from lines without their indentation, and from parts of lines.

    python bench/cues.py --source build/corpus/final_src --length 128k --samples 100

`foveal eval recall` asks with whole lines of 8 tokens and more, as they stand in the source. People type less. Here a
cue has 3 to 14 tokens and stands once in the text; right is an answer whose next 20 characters are those of the source.
With `--plain` the cue is only tried as it was typed (`foveal.memory.attempt.OPENINGS`).
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from foveal.cli.render import results, table
from foveal.engine import Engine
from foveal.evals.material import Documents, Material, write_documents
from foveal.evals.scoring import interval
from foveal.evals.tasks.recall import MIN_DISTANCE
from foveal.memory import Memory
from foveal.memory import attempt as attempts
from foveal.plan import parse_tokens

RIGHT_CHARACTERS = 20
SIZES = ((3, 4), (5, 7), (8, 10), (11, 14))
"""Tokens of a cue, inclusive: the groups of the table."""


@dataclass(frozen=True)
class Cue:
    """A text that stands once, the number of its tokens, and what follows it."""

    text: str
    tokens: int
    following: str


def whole_line(line: str, dice: random.Random) -> str:
    return line


def without_indentation(line: str, dice: random.Random) -> str:
    return line.strip() if line[0].isspace() else ""


def part_of_line(line: str, dice: random.Random) -> str:
    """Some words from the middle on: they begin behind a space and end before one."""
    words = [match.start() for match in re.finditer(r"(?<= )\S", line)]
    if len(words) < 4:
        return ""
    first = dice.randrange(len(words) - 3)
    return line[words[first] : words[dice.randrange(first + 2, len(words))]].rstrip()


KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "a line": whole_line,
    "a line without its indentation": without_indentation,
    "a part of a line": part_of_line,
}


def cues(documents: Documents, material: Material, kind: str, dice: random.Random) -> Iterator[Cue]:
    """Cues of a kind from random lines, far from the end of the text."""
    whole = "".join(document.text for document in documents)
    lines = [line.rstrip() for document in documents for line in document.text.split("\n") if line.strip()]
    dice.shuffle(lines)
    for line in lines:
        cue = KINDS[kind](line, dice)
        tokens = len(material.tokenizer.encode(cue)) if cue else 0
        if not SIZES[0][0] <= tokens <= SIZES[-1][1] or whole.count(cue) != 1:
            continue
        end = whole.index(cue) + len(cue)
        if len(whole) - end > 4 * MIN_DISTANCE:
            yield Cue(cue, tokens, whole[end : end + RIGHT_CHARACTERS])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of text or code")
    parser.add_argument("--length", type=parse_tokens, default=131072)
    parser.add_argument("--samples", type=int, default=100, help="cues of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plain", action="store_true", help="only as typed")
    given = parser.parse_args()
    if given.plain:
        attempts.OPENINGS = ("",)
    engine = Engine.open("nano", threads=given.threads)
    material = Material.read(given.source, engine.tokenizer)
    documents = material.stretch(given.length, random.Random(f"cues {given.seed}"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_documents(Path(folder), documents)
        with Memory.read(engine, Path(folder)) as memory:
            for kind in KINDS:
                dice = random.Random(f"{given.seed} {kind}")
                asked = list(islice(cues(documents, material, kind, dice), given.samples))
                right = [memory.recall(cue.text, max_tokens=24).text.startswith(cue.following) for cue in asked]
                rows.append(row(kind, asked, right))
    groups = [f"{low} to {high} tokens>" for low, high in SIZES]
    results().print(table("cue", "cues>", "right>", "95 %", *groups, rows=rows))


def row(kind: str, asked: list[Cue], right: list[bool]) -> list[str]:
    """Shares of right answers: of all, and by the cue's tokens with the number of cues."""
    low, high = interval([float(r) for r in right])
    cells = [kind, f"{len(asked)}", f"{sum(right) / len(right):.2f}", f"{low:.2f}-{high:.2f}"]
    for first, last in SIZES:
        group = [r for cue, r in zip(asked, right, strict=True) if first <= cue.tokens <= last]
        cells.append(f"{sum(group) / len(group):.2f} ({len(group)})" if group else "")
    return cells


if __name__ == "__main__":
    main()

"""Verbatim recall and its citations: ``python -m foveal.evals.recall --source DIR``.

What is special here: nothing is measured beside the product. Files are put into a folder, `Memory.read` reads it, and
`Memory.recall` is given a line of text that stands in it once, as a person would paste it. Right is what the source
says next, token by token; a citation is right when the first one names the file and lines where that text stands.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from foveal.api import Engine, model_folder
from foveal.cache.plan import parse_tokens
from foveal.memory import Memory, Recall
from foveal.sources import Document, read_source
from foveal.text import Tokenizer

ANSWER_TOKENS = 32
MIN_CUE_TOKENS = 8
MIN_DISTANCE = 300
"""Tokens between the cue's place in the source and the end of the memory, at least: well outside the raw window."""


@dataclass(frozen=True)
class Cue:
    """A line that stands once in the memory, where it stands, and what follows it."""

    path: str
    line: int
    text: str
    following: str
    place: float


@dataclass(frozen=True)
class Sample:
    """One recall: share of the answer's tokens that are right at their place, and whether the first citation is."""

    path: str
    line: int
    cue: str
    expected: str
    got: str
    place: float
    token_accuracy: float
    first_wrong: int
    cited: str
    citation_right: bool


@dataclass(frozen=True)
class Report:
    """All samples of one length, and their means."""

    model: str
    length: int
    samples: tuple[Sample, ...]
    token_accuracy: float
    sequence_accuracy: float
    citation_accuracy: float
    read_tokens_per_second: float


def evaluate(
    engine: Engine, folder: Path, length: int, *, contexts: int, cues: int, seed: int = 0, model: str = ""
) -> Report:
    """Read `contexts` different stretches of about `length` tokens from `folder`, ask `cues` lines of each."""
    documents = [item for item in read_source(folder) if isinstance(item, Document)]
    samples: list[Sample] = []
    tokens, seconds = 0, 0.0
    for number in range(contexts):
        rng = random.Random(f"{seed} {length} {number}")
        chosen = stretch(documents, engine.tokenizer, length, rng)
        with tempfile.TemporaryDirectory() as place:
            write_files(Path(place), chosen)
            started = time.monotonic()
            with Memory.read(engine, place) as memory:
                seconds += time.monotonic() - started
                tokens += memory.length
                for cue in choose_cues(chosen, engine.tokenizer, cues, rng):
                    samples.append(ask(memory, cue))
                    _tell(length, samples)
    return Report(
        model=model,
        length=length,
        samples=tuple(samples),
        token_accuracy=fmean(s.token_accuracy for s in samples),
        sequence_accuracy=fmean(s.token_accuracy == 1 for s in samples),
        citation_accuracy=fmean(s.citation_right for s in samples),
        read_tokens_per_second=tokens / seconds,
    )


def stretch(documents: Sequence[Document], tokenizer: Tokenizer, length: int, rng: random.Random) -> list[Document]:
    """Whole files from a random one on, the last cut at a line, of about `length` tokens in all."""
    start = rng.randrange(len(documents))
    chosen: list[Document] = []
    left = length
    for document in [*documents[start:], *documents[:start]]:
        lines, kept = document.text.splitlines(keepends=True), []
        left -= 16  # the header line
        for line in lines:
            left -= len(tokenizer.encode(line))
            if left < 0:
                break
            kept.append(line)
        if kept:
            chosen.append(Document(document.path, "".join(kept)))
        if left <= 0:
            break
    return chosen


def write_files(folder: Path, documents: Sequence[Document]) -> None:
    """Put the documents under `folder`."""
    for document in documents:
        path = folder / document.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document.text.encode("utf-8", "surrogatepass"))


def choose_cues(documents: Sequence[Document], tokenizer: Tokenizer, count: int, rng: random.Random) -> list[Cue]:
    """Random lines of at least `MIN_CUE_TOKENS` tokens that stand only once, with enough text behind them."""
    seen = Counter(line.strip() for document in documents for line in document.text.splitlines())
    every = list(_candidates(documents, seen))
    rng.shuffle(every)
    found: list[Cue] = []
    for cue in every:
        if len(found) == count:
            break
        long_enough = len(tokenizer.encode(cue.following)) >= ANSWER_TOKENS + 2
        if long_enough and len(tokenizer.encode(cue.text)) >= MIN_CUE_TOKENS:
            found.append(cue)
    return found


def _candidates(documents: Sequence[Document], seen: Counter[str]) -> Iterator[Cue]:
    total = sum(len(document.text) for document in documents)
    before = 0
    for document in sorted(documents, key=lambda d: d.path):
        lines = document.text.splitlines(keepends=True)
        offset = 0
        for number, line in enumerate(lines, start=1):
            text = line.rstrip("\r\n")
            offset += len(line)
            far = total - before - offset > 4 * MIN_DISTANCE
            if text.strip() and seen[text.strip()] == 1 and far:
                following = document.text[offset - (len(line) - len(text)) : offset + 800]
                yield Cue(document.path, number, text, following, (before + offset) / total)
        before += len(document.text)


def ask(memory: Memory, cue: Cue) -> Sample:
    """Recall from the cue, greedily, and compare with the source."""
    recall = memory.recall(cue.text, max_tokens=ANSWER_TOKENS, ignore_eos=True)
    expected = _tokens_after(memory.engine.tokenizer, cue)
    got = recall.tokens[recall.healed :][:ANSWER_TOKENS]
    right = [a == b for a, b in zip(got, expected, strict=False)]
    first_wrong = right.index(False) if False in right else len(right)
    text = memory.engine.tokenizer.decode(list(expected))
    lines = (cue.line, cue.line + 1 + text.count("\n"))
    return Sample(
        path=cue.path,
        line=cue.line,
        cue=cue.text,
        expected=text,
        got=memory.engine.tokenizer.decode(list(got)),
        place=cue.place,
        token_accuracy=sum(right) / ANSWER_TOKENS,
        first_wrong=first_wrong,
        cited=str(recall.citations[0]) if recall.citations else "",
        citation_right=_cites(recall, cue.path, lines),
    )


def _tokens_after(tokenizer: Tokenizer, cue: Cue) -> tuple[int, ...]:
    """The source's tokens from the one on in which the cue's end lies (or that begins there)."""
    whole = tokenizer.encode(cue.text + cue.following)
    passed, size = 0, len(cue.text.encode("utf-8", "surrogatepass"))
    for place, token in enumerate(whole):
        passed += len(tokenizer.token_bytes(token))
        if passed > size:
            return tuple(whole[place : place + ANSWER_TOKENS])
    return ()


def _cites(recall: Recall, path: str, lines: tuple[int, int]) -> bool:
    """Whether the first citation names the file and overlaps the lines where the true text stands."""
    if not recall.citations:
        return False
    first = recall.citations[0]
    return first.path == path and first.first_line <= lines[1] and first.last_line >= lines[0]


def _tell(length: int, samples: Sequence[Sample]) -> None:
    right = fmean(s.token_accuracy for s in samples)
    cited = fmean(s.citation_right for s in samples)
    print(f"{length} tokens, {len(samples)} recalls: tokens {right:.3f}, cited {cited:.3f}", file=sys.stderr)


@contextmanager
def looking_at(model: str, topk: int | None) -> Iterator[str | Path]:
    """The model, or the same weights with another `index_topk` in a folder that lasts as long as this."""
    if topk is None:
        yield model
        return
    folder = model_folder(model).resolve()
    with tempfile.TemporaryDirectory() as place:
        for path in folder.iterdir():
            if path.name != "config.json":
                (Path(place) / path.name).symlink_to(path)
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (Path(place) / "config.json").write_text(json.dumps(values | {"index_topk": topk}), encoding="utf-8")
        yield Path(place)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, or with ``--json`` everything."""
    parser = argparse.ArgumentParser(prog="python -m foveal.evals.recall", description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder of code the model has not seen")
    parser.add_argument("--model", default="nano", help="nano, or a checkpoint directory")
    parser.add_argument("--length", nargs="+", default=["4k"], help="tokens read: 4k, 32k, ...")
    parser.add_argument("--contexts", type=int, default=8, help="different stretches of the source, for each length")
    parser.add_argument("--cues", type=int, default=5, help="lines asked of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--topk", type=int, default=None, help="entries the indexer chooses; default: the model's")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    sizes = dict(contexts=given.contexts, cues=given.cues, seed=given.seed)
    with looking_at(given.model, given.topk) as model:
        engine = Engine.open(model, threads=given.threads)
        reports = [evaluate(engine, given.source, parse_tokens(n), model=given.model, **sizes) for n in given.length]
    if given.json:
        json.dump({"reports": [asdict(report) for report in reports]}, sys.stdout, indent=1)
        print()
        return 0
    print(f"{'length':>8} {'recalls':>8} {'tokens':>8} {'whole':>8} {'cited':>8} {'read tok/s':>11}")
    for r in reports:
        print(
            f"{r.length:>8} {len(r.samples):>8} {r.token_accuracy:>8.3f} {r.sequence_accuracy:>8.3f} "
            f"{r.citation_accuracy:>8.3f} {r.read_tokens_per_second:>11.0f}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

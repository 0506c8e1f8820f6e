"""Recall on code the model never saw: ``python -m foveal.train.evaluate --model DIR --length 4k --samples 20``.

What is special here: the same questions for every model (deterministic in seed, length and number), read through the
network in chunks of 512 and answered greedily, token by token, as the engine does; beside it the accuracy when every
true token is given, which tells a derailed answer from a wrong one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from foveal.checkpoint.errors import CheckpointError
from foveal.checkpoint.reader import open_checkpoint
from foveal.config import ConfigError, ModelConfig
from foveal.model.attention import Segment
from foveal.model.state import PlainState, SequenceState
from foveal.model.transformer import Transformer
from foveal.model.weights import load_transformer
from foveal.train import snapshot
from foveal.train.data import DataError, TokenStore, TokenTable
from foveal.train.export import model_of
from foveal.train.recall import Question, ask
from foveal.train.settings import StageConfig
from foveal.train.start import prepare_stage

CHUNK = 512
StateFactory = Callable[[ModelConfig], SequenceState]


@dataclass(frozen=True)
class Answer:
    """One question answered. Accuracies are fractions of the answer's tokens; `first_wrong` is the index of the first
    greedy token that differs, or the answer's length; `distance` counts tokens from the cue in the context to the end
    of the prompt."""

    number: int
    length: int
    document: int
    distance: int
    cue_length: int
    greedy_accuracy: float
    exact: bool
    first_wrong: int
    forced_accuracy: float
    seconds: float
    expected: list[int]
    got: list[int]


@dataclass(frozen=True)
class Summary:
    """Means over the questions of one context length."""

    length: int
    samples: int
    greedy_accuracy: float
    exact: float
    forced_accuracy: float

    @classmethod
    def of(cls, length: int, answers: Sequence[Answer]) -> Summary:
        def mean(values: Sequence[float]) -> float:
            return sum(values) / len(values)

        return cls(
            length,
            len(answers),
            mean([a.greedy_accuracy for a in answers]),
            mean([float(a.exact) for a in answers]),
            mean([a.forced_accuracy for a in answers]),
        )


class Reader:
    """A sequence being read by a network."""

    def __init__(self, model: Transformer, state: SequenceState) -> None:
        self.model, self.state = model, state

    @torch.no_grad()
    def read(self, tokens: Tensor) -> Tensor:
        """Logits [V] after the last of `tokens` [n], which become part of the past."""
        streams = torch.empty(0)
        for start in range(0, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            streams = self.model(chunk, [Segment(self.state, len(chunk))])
        return self.model.logits(streams[-1:])[0]


def answer(model: Transformer, question: Question, number: int, new_state: StateFactory = PlainState) -> Answer:
    """Ask one question: the context is read once for the greedy answer and once more for the forced one, which differs
    only from the first wrong token on."""
    started = time.monotonic()
    expected = question.answer.tolist()
    prompt = torch.from_numpy(question.prompt)
    got, forced = _greedy(model, prompt, expected, new_state)
    right = [a == b for a, b in zip(got, expected, strict=True)]
    return Answer(
        number=number,
        length=len(question.context),
        document=question.document,
        distance=len(question.prompt) - question.cue_at,
        cue_length=question.cue_length,
        greedy_accuracy=sum(right) / len(right),
        exact=all(right),
        first_wrong=right.index(False) if False in right else len(right),
        forced_accuracy=sum(a == b for a, b in zip(forced, expected, strict=True)) / len(expected),
        seconds=time.monotonic() - started,
        expected=expected,
        got=got,
    )


def _greedy(
    model: Transformer, prompt: Tensor, expected: list[int], new_state: StateFactory
) -> tuple[list[int], list[int]]:
    """The greedy tokens, and the top-1 tokens when the true ones are given. Both go the same way until the first wrong
    token; only then is the prompt read again for the forced branch."""
    reader = Reader(model, new_state(model.config))
    logits = reader.read(prompt)
    got: list[int] = []
    for _ in expected:
        got.append(int(logits.argmax()))
        if len(got) < len(expected):
            logits = reader.read(torch.tensor(got[-1:]))
    if got == expected:
        return got, got
    # One pass over prompt and answer; the state is new, so nothing of the greedy branch remains.
    reader = Reader(model, new_state(model.config))
    reader.read(prompt[:-1])
    tail = torch.cat([prompt[-1:], torch.tensor(expected[:-1], dtype=torch.int64)])
    with torch.no_grad():
        streams = model(tail, [Segment(reader.state, len(tail))])
        return got, [int(token) for token in model.logits(streams).argmax(-1)]


def load_model(path: Path, *, quantized: bool = False) -> Transformer:
    """A network from a directory in the official layout, from a training checkpoint, or from a run's folder (its
    newest checkpoint). With `quantized` a training checkpoint computes as its export would.

    Raises `SnapshotError` when `path` is none of these, `CheckpointError` when the directory is damaged.
    """
    if (path / "position.json").is_file() or snapshot.all_in(path):
        model = model_of(path)
        prepare_stage(model, StageConfig(length=model.config.index_topk, quantize=quantized))
        return model
    if not (path / "config.json").is_file():
        raise snapshot.SnapshotError(f"{path} is neither a model directory nor a training checkpoint")
    checkpoint = open_checkpoint(path)
    return load_transformer(checkpoint.config, checkpoint.weights, dtype=torch.float32)


def parse_length(text: str) -> int:
    """A number of tokens: 4k -> 4096, 1M -> 1048576, 5000 -> 5000."""
    factor = {"k": 1 << 10, "m": 1 << 20}.get(text[-1:].lower(), 1)
    digits = text if factor == 1 else text[:-1]
    try:
        value = int(digits) * factor
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no length; write 4096, 4k or 1M")
    return value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m foveal.train.evaluate", description="Measure verbatim recall.")
    parser.add_argument("--model", type=Path, required=True, help="model directory, checkpoint or run folder")
    parser.add_argument("--data", default="build/corpus/heldout", help="token store, without .bin")
    parser.add_argument("--tokenizer", default="build/corpus/tokenizer.json")
    parser.add_argument("--length", type=parse_length, nargs="+", default=[4096], help="context lengths: 4k 32k ...")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--quantized", action="store_true", help="compute a training checkpoint as its export would")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="all answers as JSON on stdout")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    try:
        model = load_model(given.model, quantized=given.quantized)
        table, store = TokenTable.from_tokenizer(given.tokenizer), TokenStore(given.data)
        answers = {n: _ask_all(model, store, table, n, given.samples, given.seed) for n in given.length}
    except (snapshot.SnapshotError, CheckpointError, DataError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    summaries = [Summary.of(length, each) for length, each in answers.items()]
    if given.json:
        samples = [asdict(a) for each in answers.values() for a in each]
        print(json.dumps({"model": str(given.model), "summary": [asdict(s) for s in summaries], "samples": samples}))
    else:
        print("length  samples  greedy  exact  forced")
        for s in summaries:
            print(f"{s.length:6d}  {s.samples:7d}  {s.greedy_accuracy:6.3f}  {s.exact:5.2f}  {s.forced_accuracy:6.3f}")
    return 0


def _ask_all(
    model: Transformer, store: TokenStore, table: TokenTable, length: int, samples: int, seed: int
) -> list[Answer]:
    answers: list[Answer] = []
    for number in range(samples):
        answers.append(answer(model, ask(store, table, length, number, seed=seed), number))
        so_far = Summary.of(length, answers)
        print(
            f"{length} tokens, {number + 1} of {samples}: greedy {so_far.greedy_accuracy:.3f},"
            f" exact {so_far.exact:.2f}, forced {so_far.forced_accuracy:.3f} ({answers[-1].seconds:.1f} s)",
            file=sys.stderr,
            flush=True,
        )
    return answers


if __name__ == "__main__":
    raise SystemExit(main())

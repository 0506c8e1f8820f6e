"""What nano's circuit would recall with other look-backs: the circuit alone, in exact arithmetic.

    python bench/circuit.py --source build/corpus/heldout_src --length 128k --samples 200
    python bench/circuit.py --source DIR --weights 1,.8,.6,.5,.4 --group 5      # four heads: 5 groups of 5 tokens

No network runs. Signatures, entries and their match (`foveal.train.structured`) are written down once more as a few
sums over the tokens' codes, which the shipped model's embedding gives; the next token is the one with the largest sum
of exp(logit) over all places. So a setting takes seconds, and what the network does worse than this is its own
(rounding, what its layers add, the choice of the indexer). The questions are those of `foveal eval recall`, with one
text.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foveal.checkpoint.reader import open_checkpoint
from foveal.cli.render import results, table
from foveal.engine import model_folder
from foveal.evals.material import Material, whole_text
from foveal.evals.scoring import interval, tokens_after, tokens_right
from foveal.evals.tasks.recall import ANSWER_TOKENS, Recall
from foveal.formats import dequantize
from foveal.formats.tensors import to_tensor
from foveal.plan import parse_tokens
from foveal.text import Tokenizer
from foveal.train.structured import SLOTS, ChannelPlan, Strengths

BLANK = -1


@dataclass(frozen=True)
class Question:
    """Tokens of a cue, and those that should follow."""

    cue: list[int]
    expected: tuple[int, ...]


class ExactCircuit:
    """The circuit over one text: tokens [n] -> entries of four."""

    def __init__(self, text: Tensor, codes: Tensor, signatures: Tensor, weights: Sequence[float]) -> None:
        """`codes` [V, c] and `signatures` [V, s] are the embedding's; `weights` those of the tokens 0, 1, ... back."""
        self.codes, self.signatures, self.weights = codes, signatures, weights
        self.angles = torch.rand(signatures.shape[1] // 2, generator=torch.Generator().manual_seed(0)) * 2 * math.pi
        text = text[: len(text) // SLOTS * SLOTS]
        self.following = text.view(-1, SLOTS)
        before = self.signature(torch.cat([torch.full((len(weights) - 1,), BLANK), text]))[SLOTS - 1 : -SLOTS : SLOTS]
        keys = torch.cat([torch.zeros(1, signatures.shape[1]), before])
        entries = torch.cat([keys, codes[text].view(len(keys), -1)], dim=1)
        self.entries = entries / entries.norm(dim=1, keepdim=True)

    def turned(self, x: Tensor, steps: int) -> Tensor:
        """R^steps x for vectors [..., s]."""
        cos, sin = (self.angles * steps).cos(), (self.angles * steps).sin()
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    def signature(self, tokens: Tensor) -> Tensor:
        """Tokens [..., k - 1 + n] (`BLANK`: none) -> signatures [..., n, s] of all but the first k - 1, k the reach."""
        terms = torch.where((tokens >= 0).unsqueeze(-1), self.signatures[tokens.clamp(min=0)], 0.0)
        reach = len(self.weights)
        count = tokens.shape[-1] - reach + 1
        total = torch.zeros(*tokens.shape[:-1], count, terms.shape[-1])
        for back, weight in enumerate(self.weights):
            first = reach - 1 - back
            total += weight * self.turned(terms[..., first : first + count, :], back)
        return total

    def next(self, contexts: Tensor) -> Tensor:
        """The last k tokens [q, k] of each context -> the token [q] that follows."""
        signature, size = self.signature(contexts)[:, 0], self.signatures.shape[1]
        logits = []
        for head in range(SLOTS):
            query = torch.zeros(len(contexts), self.entries.shape[1])
            query[:, :size] = self.turned(signature, -head)
            for back in range(head):
                token = contexts[:, -1 - back]
                code = torch.where((token >= 0).unsqueeze(1), self.codes[token.clamp(min=0)], 0.0)
                query[:, size:].unflatten(1, (SLOTS, -1))[:, head - 1 - back] = code
            cosine = (query / query.norm(dim=1, keepdim=True)) @ self.entries.T
            logits.append(Strengths().match_logit * cosine)
        weight = torch.softmax(torch.cat(logits, dim=1), dim=1)
        places = self.following.T.flatten()
        return torch.zeros(len(contexts), len(self.codes)).index_add_(1, places, weight).argmax(dim=1)

    def recall(self, cues: Sequence[Sequence[int]], count: int) -> Tensor:
        """`count` tokens after each cue [q, count], greedily, behind blanks."""
        reach = len(self.weights)
        contexts = torch.tensor([([BLANK] * reach + list(cue))[-reach:] for cue in cues])
        for _ in range(count):
            contexts = torch.cat([contexts, self.next(contexts[:, -reach:]).unsqueeze(1)], dim=1)
        return contexts[:, -count:]


def questions(source: Path, length: int, samples: int, seed: int) -> tuple[Tensor, list[Question]]:
    """A text's tokens, and what is asked of it."""
    tokenizer = Tokenizer.from_file(model_folder("nano"))
    material, task = Material.read(source, tokenizer), Recall()
    context = task.build(material, length, samples, task.dice(seed, length, 0))
    found = []
    for question in context.questions:
        expected = tokens_after(tokenizer, question.cues[0], question.expected, ANSWER_TOKENS)
        whole = tokenizer.encode(question.cues[0] + question.expected)
        place = next(i for i in range(len(whole)) if tuple(whole[i : i + len(expected)]) == expected)
        found.append(Question(whole[:place], expected))
    return torch.tensor(tokenizer.encode(whole_text(context.documents))), found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of text or code")
    parser.add_argument("--length", type=parse_tokens, default=32768)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--weights", help="of each group of tokens, the nearest first (default: nano's)")
    parser.add_argument("--group", type=int, default=6, help="tokens of a group (default: 6)")
    given = parser.parse_args()
    weights = [1.0, *Strengths().far_weight] if given.weights is None else [float(w) for w in given.weights.split(",")]
    checkpoint = open_checkpoint(model_folder("nano"))
    plan, stored = ChannelPlan.of(checkpoint.config), checkpoint.weights["embed.weight"]
    embedding = to_tensor(dequantize(stored))
    text, asked = questions(given.source, given.length, given.samples, given.seed)
    each = [weight for weight in weights for _ in range(given.group)]
    circuit = ExactCircuit(text, embedding[:, plan.recent[0]], embedding[:, plan.signature], each)
    got = circuit.recall([question.cue for question in asked], ANSWER_TOKENS).tolist()
    shares = [tokens_right(answer, question.expected)[0] for answer, question in zip(got, asked, strict=True)]
    low, high = interval(shares)
    mean, whole = sum(shares) / len(shares), sum(share == 1 for share in shares) / len(shares)
    row = [f"{len(text):,}", f"{len(asked)}", f"{len(each)}", f"{mean:.3f}", f"{low:.2f}-{high:.2f}", f"{whole:.3f}"]
    columns = ("tokens>", "questions>", "reach>", "tokens right>", "95 %", "whole answers right>")
    results().print(table(*columns, rows=[row]))


if __name__ == "__main__":
    main()

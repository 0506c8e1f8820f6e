"""Perplexity by position: how well each next token of a text is foretold, as the text grows.

The network reads the text as `Memory.read` does, in the engine's chunks, and gives logits for every token of them. A
sample is a stretch of positions, powers of two wide, so a position that helps shows as a fall.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from math import exp

import numpy as np

from foveal.backends.cpu.sampling import log_softmax
from foveal.batch import next_cut
from foveal.cache import Segment, Sequence
from foveal.engine import Engine
from foveal.evals.bench import Bench
from foveal.evals.material import Material, whole_text
from foveal.evals.task import Context, Measured, Measuring
from foveal.evals.tasks.recall import CODE
from foveal.formats import Array


def _logits(engine: Engine, sequence: Sequence, tokens: Array) -> Array:
    """Run the next tokens; logits behind each, fp32."""
    return engine.network.logits(engine.network(tokens, [Segment(sequence, len(tokens))]))


class Perplexity(Measuring):
    """Mean negative log-likelihood of the next token, in nats, and its exponential."""

    name = "perplexity"
    about = "negative log-likelihood of the next token (nats), by position"
    metric = "nll"
    family = CODE

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        """The text of `recall`; there is nothing to ask."""
        return Context(material.stretch(length, rng), ())

    def measure(self, bench: Bench, context: Context, length: int, number: int) -> Iterator[Measured]:
        """One sample a text: ``nll`` and ``perplexity`` of all tokens; ``nll_to_N``: of positions N / 2 to N."""
        engine = bench.engine
        tokens = np.array(engine.tokenizer.encode(whole_text(context.documents)), dtype=np.int64)
        losses = []
        with engine.new_sequence() as sequence:
            while (start := sequence.length) < len(tokens) - 1:
                size = next_cut(start, len(tokens) - 1 - start, engine.batch.scheduler.chunk)
                logits = engine.call(partial(_logits, engine, sequence, tokens[start : start + size]))
                losses.append(-log_softmax(logits)[np.arange(size), tokens[start + 1 :][:size]])
        every = np.concatenate(losses).astype(np.float64)
        mean = float(every.mean())
        metrics = {"nll": mean, "perplexity": exp(min(mean, 700.0))}
        end, begin = 512, 0
        while begin < len(every):
            metrics[f"nll_to_{end}"] = float(every[begin:end].mean())
            begin, end = end, 2 * end
        yield Measured(0, metrics)

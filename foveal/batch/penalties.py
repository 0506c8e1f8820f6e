"""Bias and penalties: what a request adds to the logits before a token is chosen.

The order is vLLM's: `logit_bias`, `repetition_penalty`, `frequency_penalty`, `presence_penalty`. The last two count
the tokens of the output, as OpenAI defines them; the repetition penalty (Keskar et al., 2019, arXiv 1909.05858) also
those of the prompt. Everything is fp32 and element by element, so a row comes out the same whatever rows are beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from foveal.batch.request import SamplingParams
from foveal.batch.tokens import IdArray
from foveal.formats import F32, I64, Array


def penalises(params: SamplingParams) -> bool:
    """Whether the tokens of the output change what comes next."""
    return bool(params.frequency_penalty or params.presence_penalty) or params.repetition_penalty != 1


def adjusts(params: SamplingParams) -> bool:
    """Whether `params` change any logit."""
    return bool(params.logit_bias) or penalises(params)


class Tally:
    """The tokens that the bias and the penalties of one request concern, each once, and how often it was put out."""

    def __init__(self, params: SamplingParams, prompt: IdArray, vocabulary: int) -> None:
        """`prompt`: the ids that a repetition penalty counts beside those of the output. Ids from `vocabulary` on are
        left out."""
        self.params = params
        self._place: dict[int, int] = {}
        self._size = 0
        self._tokens, self._counts = np.zeros(16, dtype=I64), np.zeros(16, dtype=F32)
        self._bias, self._repetition = np.zeros(16, dtype=F32), np.ones(16, dtype=F32)
        for token, bias in params.logit_bias:
            place = self._of(token)
            self._bias[place] = bias
        if params.repetition_penalty != 1:
            for token in np.unique(prompt[prompt < vocabulary]).tolist():
                place = self._of(token)
                self._repetition[place] = params.repetition_penalty
        self._penalises = penalises(params)

    def add(self, token: int) -> None:
        """`token` was put out."""
        if self._penalises:
            place = self._of(token)
            self._counts[place] += 1
            self._repetition[place] = self.params.repetition_penalty

    @property
    def tokens(self) -> IdArray:
        """The ids, int64 [n]."""
        return self._tokens[: self._size]

    def columns(self) -> tuple[Array, Array, Array]:
        """For each of `tokens`, fp32 [n]: its bias, what divides or multiplies it, and what is taken off it."""
        counts = self._counts[: self._size]
        off = np.float32(self.params.frequency_penalty) * counts + np.float32(self.params.presence_penalty) * (
            counts > 0
        )
        return self._bias[: self._size], self._repetition[: self._size], off.astype(F32)

    def _of(self, token: int) -> int:
        """The token's place, a new one if it has none."""
        place = self._place.setdefault(token, self._size)
        if place == self._size:
            if place == len(self._tokens):
                self._grow()
            self._tokens[place] = token
            self._size += 1
        return place

    def _grow(self) -> None:
        size = len(self._tokens)
        self._tokens, self._counts, self._bias = (
            np.concatenate([array, np.zeros_like(array)]) for array in (self._tokens, self._counts, self._bias)
        )
        self._repetition = np.concatenate([self._repetition, np.ones(size, dtype=F32)])


def adjusted(rows: Sequence[Array], tallies: Sequence[Tally]) -> list[Array]:
    """The logits fp32 [vocab] of each row with its request's bias and penalties, as new arrays; all rows at once."""
    known = [np.asarray(row, dtype=F32)[tally.tokens] for row, tally in zip(rows, tallies, strict=True)]
    bias, repetition, off = (np.concatenate(column) for column in zip(*(t.columns() for t in tallies), strict=True))
    values = np.concatenate(known) + bias
    values = np.where(values > 0, values / repetition, values * repetition) - off
    changed, start = [], 0
    for row, tally in zip(rows, tallies, strict=True):
        new = np.array(row, dtype=F32)
        end = start + len(tally.tokens)
        new[tally.tokens] = values[start:end]
        changed.append(new)
        start = end
    return changed


def adjusted_plainly(logits: Array, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Array:
    """What `adjusted` computes for one row, token by token as the formulas say: the reference."""
    new = np.array(logits, dtype=F32)
    bias, counts = dict(params.logit_bias), Counter(output)
    repeated = set(prompt) | set(output) if params.repetition_penalty != 1 else set()
    factor = np.float32(params.repetition_penalty)
    for token in range(len(new)):
        value = new[token] + np.float32(bias.get(token, 0.0))
        if token in repeated:
            value = value / factor if value > 0 else value * factor
        frequency = np.float32(params.frequency_penalty) * np.float32(counts[token])
        presence = np.float32(params.presence_penalty) if counts[token] else np.float32(0)
        new[token] = value - (frequency + presence)
    return new

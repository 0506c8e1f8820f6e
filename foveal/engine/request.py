"""What a caller asks of the engine and what comes back, one token at a time.

What is special here: the engine speaks tokens only. Text enters through two small protocols, `TextStream` (tokens to
text, stop strings) and `TokenConstraint` (which tokens may come next), so that this room needs no tokenizer and is
tested with a mock network.
"""

from __future__ import annotations

import enum
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from foveal.config import ModelConfig
from foveal.model import LayerTrace, Observer, Segment, SequenceState

MAX_TOP_LOGPROBS = 20


class ParameterError(ValueError):
    """A sampling parameter or a prompt is out of range; the message names it and the allowed range."""


class ContextLengthError(ParameterError):
    """More tokens than the model's context holds; the message names both numbers."""


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    """A stop token (the end-of-sequence token among them) or a stop string."""
    LENGTH = "length"
    """`max_tokens` tokens were generated, or the context is full."""
    CANCELLED = "cancelled"
    ERROR = "error"
    """The network or the text stream failed; `Event.error` holds the exception. Other requests go on."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop. The default is greedy.

    temperature: 0 is greedy (the lowest token id wins a tie); else logits are divided by it.
    top_k: keep the k likeliest tokens (0: all).   top_p: then the smallest set whose probability reaches it.
    min_p: then those at least `min_p` times as likely as the likeliest.
    seed: makes sampling reproducible, whatever else is in the batch; None draws a fresh one for each request.
    max_tokens: tokens to generate at most, not counting those chosen under a constraint.
    stop: strings that end the text (they are not part of it).
    stop_tokens: ids that end it, beside the end-of-sequence token (unless `ignore_eos`).
    logprobs: report this many likeliest alternatives of each token (0: none; at most 20). The log-probabilities are
    those of the network itself, before temperature, filters and constraints.

    Raises `ParameterError` when a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int = 0

    def __post_init__(self) -> None:
        self._check("temperature", _is_number(self.temperature) and 0 <= self.temperature <= 100, "from 0 to 100")
        self._check("top_k", _is_int(self.top_k) and self.top_k >= 0, "an integer >= 0 (0: off)")
        self._check("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "greater than 0 and at most 1")
        self._check("min_p", _is_number(self.min_p) and 0 <= self.min_p <= 1, "from 0 to 1")
        self._check("seed", self.seed is None or (_is_int(self.seed) and abs(self.seed) < 2**63), "a 64-bit integer")
        self._check("max_tokens", _is_int(self.max_tokens) and self.max_tokens >= 1, "an integer >= 1")
        strings = isinstance(self.stop, tuple) and all(isinstance(text, str) and text for text in self.stop)
        self._check("stop", strings, "a tuple of strings, none of them empty")
        ids = isinstance(self.stop_tokens, tuple) and all(_is_int(token) and token >= 0 for token in self.stop_tokens)
        self._check("stop_tokens", ids, "a tuple of token ids >= 0")
        in_range = _is_int(self.logprobs) and 0 <= self.logprobs <= MAX_TOP_LOGPROBS
        self._check("logprobs", in_range, f"an integer from 0 to {MAX_TOP_LOGPROBS}")
        self._check("ignore_eos", isinstance(self.ignore_eos, bool | np.bool_), "True or False")
        for name in ("temperature", "top_p", "min_p"):  # numbers of other libraries become Python's
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("top_k", "max_tokens", "logprobs", *(("seed",) if self.seed is not None else ())):
            object.__setattr__(self, name, int(getattr(self, name)))
        object.__setattr__(self, "stop_tokens", tuple(map(int, self.stop_tokens)))

    def _check(self, name: str, ok: bool, allowed: str) -> None:
        if not ok:
            raise ParameterError(f"sampling parameter {name!r} is {getattr(self, name)!r}; it must be {allowed}")


def _is_int(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


GREEDY = SamplingParams()


class Network(Protocol):
    """What the engine needs of a network: `foveal.model.Transformer`, or a mock."""

    @property
    def config(self) -> ModelConfig: ...

    def __call__(self, tokens: Tensor, segments: Sequence[Segment], observer: Observer | None = None) -> Tensor: ...

    def logits(self, streams: Tensor) -> Tensor: ...


class TextStream(Protocol):
    """Turns one request's tokens into text as they come, holding back what may still become a stop string."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found; the text before it has been returned."""
        ...

    def push(self, token: int) -> str:
        """Text that is now certain (may be empty)."""
        ...

    def flush(self) -> str:
        """The text still held back; called once, when the request ends for another reason than a stop string."""
        ...


class TokenConstraint(Protocol):
    """Restricts the next tokens, for example to those that continue a half-typed word (token healing)."""

    def allowed(self) -> Tensor | None:
        """Allowed token ids (int64 [k], k >= 1), or None when every token is."""
        ...

    def accept(self, token: int) -> None:
        """`token` was chosen."""
        ...


@dataclass(frozen=True)
class Sampled:
    """One chosen token: its log-probability (natural logarithm) and the likeliest alternatives, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """What one step gave one request.

    `sampled` is None only when nothing was chosen (cancelled or failed). `text` is what may be shown now. The last
    event of a request, and only that one, has `finish_reason`. A stop token is reported with `is_output` False: it is
    not part of the result. `trace` is where attention looked when this token was chosen (requests with `trace`).
    """

    request_id: int
    sampled: Sampled | None = None
    text: str = ""
    is_output: bool = True
    finish_reason: FinishReason | None = None
    trace: tuple[LayerTrace, ...] = ()
    error: Exception | None = None


@dataclass(eq=False)
class Request:
    """One sequence being continued: the state it grows, the tokens still to be run, and what was generated.

    The request owns `state` until it ends; the caller frees it. The last generated token is never run, so that in the
    end ``state.length == start + len(prompt) + len(generated) - 1`` (or fewer when cancelled).
    """

    id: int
    state: SequenceState
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    text: TextStream | None = None
    constraint: TokenConstraint | None = None
    trace: bool = False
    generated: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    constrained: int = 0
    """Tokens chosen under the constraint; they repeat the prompt's end and do not count for `max_tokens`."""
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.pending = list(self.prompt)

    @property
    def decoding(self) -> bool:
        """Whether the prompt has been run and tokens are being generated."""
        return bool(self.generated)

"""What a caller asks of the engine and what comes back, one token at a time.

Everything that runs tokens is a request, reading as well as generating. The engine speaks tokens only. Text enters
through two small protocols, `TextStream` (tokens to text, stop strings) and `TokenConstraint` (which tokens may come
next), so that this room needs no tokenizer and is tested with a mock network.
"""

from __future__ import annotations

import enum
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from foveal.batch.tokens import IdArray
from foveal.cache.contract import AnySegment, AnyState, LayerTrace, Observer
from foveal.config import ModelConfig
from foveal.errors import ParameterError
from foveal.formats import Array

if TYPE_CHECKING:
    from foveal.batch.penalties import Tally
    from foveal.batch.room import Parked

MAX_TOP_LOGPROBS = 20
_FLOATS = ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
_INTEGERS = ("top_k", "max_tokens", "logprobs", "seed")


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    """A stop token (the end-of-sequence token among them) or a stop string."""
    LENGTH = "length"
    """`max_tokens` tokens were generated, or the context is full."""
    DONE = "done"
    """All tokens were run, of a request that chooses none."""
    CANCELLED = "cancelled"
    """The caller ended it, or the engine was closed."""
    DEADLINE = "deadline"
    """Its time was up."""
    ERROR = "error"
    """The network or the text stream failed; `Event.error` holds the exception. Other requests go on."""


class Kind(enum.StrEnum):
    """What a request is for. Only generating chooses tokens; the others end with `FinishReason.DONE`."""

    GENERATE = "generate"
    READ = "read"
    REPLAY = "replay"
    """Tokens that were run before, of which only the window is wanted."""
    SYNC = "sync"
    """Bringing a memory up to date with its source."""
    SCORE = "score"
    """Tokens of which it is told how likely what follows each of them is (`Request.targets`)."""
    RECOMPUTE = "recompute"
    """Tokens that were run before, to see whether the same comes out."""


class Priority(enum.IntEnum):
    """Who goes first: somebody who waits for the next token, before work that nobody watches."""

    INTERACTIVE = 0
    BACKGROUND = 1


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop. The default is greedy.

    temperature: 0 is greedy (the lowest token id wins a tie); else logits are divided by it.
    top_k: keep the k likeliest tokens (0: all).   top_p: then the smallest set whose probability reaches it.
    min_p: then those at least `min_p` times as likely as the likeliest.
    seed: makes sampling reproducible, whatever else is in the batch; None draws a fresh one for each request.
    frequency_penalty, presence_penalty: taken off a token's logit for each time that it is in the output, and once if
    it is (-2 to 2).   repetition_penalty: divides the logits above 0, and multiplies those below, of tokens of the
    prompt and the output (0.01 to 100; 1: off).   logit_bias: (token, -100 to 100) pairs that are added to logits.
    max_tokens: tokens to generate at most, not counting those that repeat the end of a healed prompt.
    stop: strings that end the text (they are not part of it).
    stop_tokens: ids that end it, beside the end-of-sequence token (unless `ignore_eos`).
    logprobs: report this many likeliest alternatives of each token (at most 20; 0 for the chosen token alone). The
    log-probabilities are those of the network itself, before bias, penalties, temperature, filters and constraints.
    None: a greedy token's log-probability may differ in its last bits from what it is when it is asked for.

    Raises `ParameterError` when a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        self._check("temperature", _is_number(self.temperature) and 0 <= self.temperature <= 100, "from 0 to 100")
        self._check("top_k", _is_int(self.top_k) and self.top_k >= 0, "an integer >= 0 (0: off)")
        self._check("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "greater than 0 and at most 1")
        self._check("min_p", _is_number(self.min_p) and 0 <= self.min_p <= 1, "from 0 to 1")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            self._check(name, _is_number(value) and -2 <= value <= 2, "from -2 to 2")
        repetition = _is_number(self.repetition_penalty) and 0.01 <= self.repetition_penalty <= 100
        self._check("repetition_penalty", repetition, "from 0.01 to 100 (1: off)")
        self._check("logit_bias", _is_bias(self.logit_bias), "(token id, number from -100 to 100) pairs, each id once")
        self._check("seed", self.seed is None or (_is_int(self.seed) and abs(self.seed) < 2**63), "a 64-bit integer")
        self._check("max_tokens", _is_int(self.max_tokens) and self.max_tokens >= 1, "an integer >= 1")
        strings = isinstance(self.stop, tuple) and all(isinstance(text, str) and text for text in self.stop)
        self._check("stop", strings, "a tuple of strings, none of them empty")
        ids = isinstance(self.stop_tokens, tuple) and all(_is_int(token) and token >= 0 for token in self.stop_tokens)
        self._check("stop_tokens", ids, "a tuple of token ids >= 0")
        in_range = self.logprobs is None or (_is_int(self.logprobs) and 0 <= self.logprobs <= MAX_TOP_LOGPROBS)
        self._check("logprobs", in_range, f"an integer from 0 to {MAX_TOP_LOGPROBS}, or None")
        self._check("ignore_eos", isinstance(self.ignore_eos, bool | np.bool_), "True or False")
        for name in _FLOATS:  # numbers of other libraries become Python's
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in _INTEGERS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, int(getattr(self, name)))
        object.__setattr__(self, "logit_bias", tuple((int(token), float(bias)) for token, bias in self.logit_bias))
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


def _is_bias(value: object) -> bool:
    if not isinstance(value, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        return False
    known = {token for token, _ in value if _is_int(token) and token >= 0}
    return len(known) == len(value) and all(_is_number(bias) and -100 <= bias <= 100 for _, bias in value)


GREEDY = SamplingParams()


class Network(Protocol):
    """What the engine needs of a network: a `foveal.backends.Runner`, or a mock."""

    @property
    def config(self) -> ModelConfig: ...

    def __call__(
        self, tokens: Array, segments: Sequence[AnySegment], observer: Observer[Array] | None = None
    ) -> Any: ...

    def logits(self, streams: Any) -> Array: ...


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

    @property
    def repeats_prompt(self) -> bool:
        """Whether the tokens chosen under it repeat the end of the prompt: these do not count for `max_tokens`."""
        ...

    def allowed(self) -> Array | None:
        """Which tokens may come next: bool [vocab], at least one of them true; or None when every token may."""
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

    `sampled` is None when nothing was chosen (a piece of a text was read, or the request was cancelled or failed).
    `text` is what may be shown now. The last event of a request, and only that one, has `finish_reason`. A stop token
    is reported with `is_output` False: it is not part of the result. `trace` is where attention looked when this token
    was chosen (requests with `trace`). `scored` are the targets of the tokens that were run (`Kind.SCORE`). `ran` is
    how many of its tokens the step ran. `at` is when the event was made (seconds of `time.perf_counter`), for
    measuring.
    """

    request_id: int
    sampled: Sampled | None = None
    text: str = ""
    is_output: bool = True
    finish_reason: FinishReason | None = None
    trace: tuple[LayerTrace[Array], ...] = ()
    error: BaseException | None = None
    scored: tuple[Sampled, ...] = ()
    ran: int = 0
    at: float = 0.0


def _ignore(event: Event) -> None:
    """What takes the events of a request that nobody listens to."""


@dataclass(eq=False, kw_only=True)
class Request:
    """One sequence being continued: the state it grows, the tokens still to be run, and what was generated.

    The request owns the state until it ends. `begin` makes the state when the request is taken in, where there is none
    yet; `release` is called with it when the request has ended, before the last event is sent; a state
    that has one is nobody else's, so it may make room for others meanwhile. Every event goes to
    `sink`, on the thread that steps the engine. `deadline` is a time of the scheduler's clock (`time.monotonic`).
    The last generated token is never run, so that in the end ``state.length == start + len(prompt) + len(generated) -
    1`` (or fewer when it was ended early).
    """

    id: int
    prompt: IdArray
    params: SamplingParams
    seed: int = 0
    held: AnyState | None = None
    begin: Callable[[], AnyState] | None = None
    release: Callable[[AnyState], None] | None = None
    sink: Callable[[Event], None] = _ignore
    kind: Kind = Kind.GENERATE
    priority: Priority = Priority.INTERACTIVE
    tenant: str = ""
    deadline: float | None = None
    text: TextStream | None = None
    constraint: TokenConstraint | None = None
    trace: bool = False
    targets: IdArray | None = None
    """What follows each token of the prompt, of a request that scores."""
    read: int = 0
    """Tokens of the prompt that were run."""
    generated: list[int] = field(default_factory=list)
    repeated: int = 0
    """Tokens of `generated` that repeat the prompt's end; they do not count for `max_tokens`."""
    tally: Tally | None = None
    """What the bias and the penalties of `params` concern; None where they change nothing."""
    finish_reason: FinishReason | None = None
    served: float = 0.0
    """When a step last ran something of it, or when it came."""
    parked: Parked | None = None
    """What its state is in while it has made room for others."""

    @property
    def state(self) -> AnyState:
        assert self.held is not None, "the request was not taken in, or is parked"
        return self.held

    @property
    def most(self) -> int:
        """Tokens that may still be run."""
        left = self.params.max_tokens + self.repeated - len(self.generated) if self.kind is Kind.GENERATE else 0
        return self.waiting + max(left - 1, 0)

    @property
    def begun(self) -> bool:
        """Whether it was running and has made room since."""
        return self.parked is not None and (self.read > 0 or self.decoding)

    @property
    def decoding(self) -> bool:
        """Whether the prompt has been run and tokens are being generated."""
        return bool(self.generated)

    @property
    def waiting(self) -> int:
        """Tokens that can be run now: the rest of the prompt, or the token that was chosen last."""
        return 1 if self.generated else len(self.prompt) - self.read

    def next_tokens(self, count: int) -> Sequence[int] | IdArray:
        """The first `count` of the waiting tokens."""
        return self.generated[-1:] if self.generated else self.prompt[self.read : self.read + count]

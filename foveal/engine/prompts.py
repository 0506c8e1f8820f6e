"""What becomes of a prompt before it is run: its tokens, its settings, and where it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from foveal import cache
from foveal.batch import Priority, Request, SamplingParams
from foveal.formats import Array
from foveal.text import Tokenizer, TokenStream
from foveal.text.healing import PrefixConstraint, heal

if TYPE_CHECKING:
    from foveal.engine.engine import Engine


@dataclass(frozen=True)
class Start:
    """Where a prompt starts from: `sequence` holds its first `tokens` already. `replayed` tokens were run again to get
    it, since no tail lay where they end."""

    sequence: cache.Sequence
    tokens: int = 0
    replayed: int = 0

    @property
    def reused(self) -> int:
        """Tokens of the prompt that the network was spared."""
        return max(0, self.tokens - self.replayed)


class Prefixes(Protocol):
    """What is kept of earlier prompts, such as `foveal.memory.StoredPrefixes`."""

    def start(
        self,
        engine: Engine,
        tokens: Array,
        *,
        most: int | None = None,
        after: cache.Sequence | None = None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Start | None:
        """A sequence of the longest beginning of `tokens` (integers [n]) that is kept, of `most` tokens at most; None
        when nothing longer than `after`, a sequence of the first of them, is. What has to be run again for it runs
        with `priority`."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to be submitted, and what is known of its prompt."""

    request: Request
    prompt_tokens: int
    reused_tokens: int


def tokens_of(text: str, tokenizer: Tokenizer, *, heal_prompt: bool) -> tuple[list[int], bytes]:
    """Tokens to run, and bytes to be generated anew after them."""
    tokens, remainder = heal(tokenizer, text) if heal_prompt else ([], b"")
    # A prompt of one word leaves nothing to run before it is healed: it is taken as it is.
    return (tokens, remainder) if tokens else (tokenizer.encode(text), b"")


def text_of(params: SamplingParams, tokenizer: Tokenizer, remainder: bytes) -> dict[str, Any]:
    """How a request's tokens become text, and what its first ones must be: options of `BatchEngine.request`."""
    return {
        "text": TokenStream(tokenizer, params.stop, skip_bytes=len(remainder)),
        "constraint": PrefixConstraint(tokenizer, remainder) if remainder else None,
    }


def with_settings(params: SamplingParams, **settings: Any) -> SamplingParams:
    """`params` with some fields replaced. `stop` may be a string or any sequence of strings, and so `stop_tokens` of
    ids, and `logit_bias` a mapping; None is none of them. Raises `ParameterError`."""
    if isinstance(settings.get("stop"), str):
        settings["stop"] = (settings["stop"],)
    if isinstance(settings.get("logit_bias"), Mapping):
        settings["logit_bias"] = tuple(settings["logit_bias"].items())
    names = ("stop", "stop_tokens", "logit_bias")
    settings |= {name: _as_tuple(settings[name]) for name in names if name in settings}
    return dataclasses.replace(params, **settings) if settings else params


def _as_tuple(value: Any) -> Any:
    """A tuple of what `value` holds; what holds nothing stays what it is, and is refused by that."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple | set | frozenset) else value

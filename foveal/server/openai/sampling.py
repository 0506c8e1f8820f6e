"""The sampling fields of OpenAI's APIs in our own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foveal.errors import ParameterError
from foveal.server.failures import ApiError
from foveal.server.openai.schema import Sampled
from foveal.server.pieces import Begun, Sampling, Whole
from foveal.server.settings import Settings

MOST_STOPS = 16


def bias_of(bias: Mapping[str, float] | None, vocabulary: int) -> tuple[tuple[int, float], ...]:
    """`logit_bias` as (token, bias) pairs. Raises `ApiError` for a key that is no id of the vocabulary."""
    pairs: dict[int, float] = {}
    for key, value in (bias or {}).items():
        token = int(key) if key.isascii() and key.isdigit() and len(key) < 20 else -1
        if not 0 <= token < vocabulary:
            told = f"logit_bias: {key!r} is no token id of this model (0 to {vocabulary - 1})"
            raise ApiError("invalid_request", told, param="logit_bias")
        if value:
            pairs[token] = value
    return tuple(pairs.items())


def sampling_of(
    body: Sampled, settings: Settings, *, vocabulary: int, max_tokens: int | None, logprobs: int | None
) -> Sampling:
    """The sampling of a request to a model with so many tokens. Raises `ApiError`, `ParameterError`."""
    replies = body.n or 1
    if replies > settings.replies:
        raise ParameterError(f"n is {replies}; this server gives at most {settings.replies} replies to one request")
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(0, body.top_k) if body.top_k is not None else None,
        min_p=body.min_p,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=bias_of(body.logit_bias, vocabulary),
        seed=body.seed,
        max_tokens=max_tokens,
        stop=stops_of(body.stop),
        stop_tokens=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        replies=replies,
    )


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings; empty ones are none. Raises `ParameterError` for too many."""
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(found) > MOST_STOPS:
        raise ParameterError(f"there are {len(found)} stop strings; at most {MOST_STOPS} are taken")
    return tuple(text for text in found if text)


def usage_of(answer: Whole, model: str, settings: Settings, output: int | None = None) -> dict[str, Any]:
    """The usage of a chat or completion, so far."""
    begun, written = answer.begun, answer.output_tokens if output is None else output
    usage: dict[str, Any] = {
        "prompt_tokens": begun.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": begun.prompt_tokens + written,
        "prompt_tokens_details": {"cached_tokens": begun.reused_tokens},
        "completion_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
    }
    return usage | extras_of(begun, model, settings, written)


def extras_of(begun: Begun, model: str, settings: Settings, written: int) -> dict[str, Any]:
    """What our usage tells beyond that of others: why not more was found, and what it cost."""
    told: dict[str, Any] = {"cache_miss": miss_of(begun)}
    if model in settings.prices:
        told["cost"] = settings.prices[model].of(begun.prompt_tokens, begun.reused_tokens, written)
    return told


def miss_of(begun: Begun) -> dict[str, Any] | None:
    """Why a prompt was not found whole, as JSON."""
    if begun.miss is None:
        return None
    told: dict[str, Any] = {"reason": begun.miss.reason, "position": begun.miss.position}
    return told | ({} if begun.message is None else {"message": begun.message})

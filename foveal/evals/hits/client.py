"""Prompts and replies over OpenAI's completions (token ids, or text) or chat completions, whichever a server has.

A prompt is a list of numbers, each of which becomes one token as a rule: an id, or a word. So prompts can be cut,
joined and made as long as wanted, whatever the tokenizer is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import httpx

from foveal.evals.errors import EvalError

Api = Literal["ids", "text", "chat"]
APIS: tuple[Api, ...] = ("ids", "text", "chat")

TIMEOUT = 600.0
"""Seconds to wait for one reply."""
TOP = 5
"""Alternatives of each token that are compared; OpenAI's completions give no more."""
FIRST_ID, IDS = 300, 2700
"""Ids that are plain text in the vocabularies of practically all models."""
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father "
    "power hour game line end member law car city name team minute idea body back face level office door health person"
).split()


class HitsError(EvalError):
    """The server cannot be checked; the message says why."""

    code = "invalid_request"


@dataclass(frozen=True)
class Said:
    """A reply. tokens: their text.   top: for each token the likeliest ones, by text.
    cached: tokens of the prompt that were not run; None where the server does not tell."""

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    top: tuple[dict[str, float], ...]
    prompt_tokens: int
    cached: int | None


class Client:
    """One model of one server. Safe to use from several threads."""

    def __init__(self, http: httpx.Client, model: str, api: Api) -> None:
        self._http, self.model, self.api = http, model, api
        self._overhead, self._rate = 0.0, 1.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @property
    def url(self) -> str:
        """Where the server is, without ``/v1``."""
        return str(self._http.base_url).rstrip("/").removesuffix("/v1")

    @property
    def numbers(self) -> int:
        """A prompt's numbers are less than this."""
        return IDS if self.api == "ids" else len(WORDS)

    def numbers_for(self, tokens: int) -> int:
        """How many numbers make a prompt of about so many tokens; see `calibrate`."""
        return max(1, round((tokens - self._overhead) / self._rate))

    def calibrate(self, short: Sequence[int], long: Sequence[int]) -> None:
        """Learn how many tokens a number is, and what a chat template adds, from two prompts."""
        sizes = [self.say(prompt, 1).prompt_tokens for prompt in (short, long)]
        self._rate = max((sizes[1] - sizes[0]) / (len(long) - len(short)), 0.1)
        self._overhead = sizes[0] - self._rate * len(short)

    def say(self, prompt: Sequence[int], tokens: int, *, scored: bool = False) -> Said:
        """So many greedy tokens behind a prompt, with log-probabilities. `scored`: the prompt's log-probabilities are
        asked for too, which servers give from no cache (completions only). Raises `HitsError`."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": tokens, "temperature": 0}
        if self.api == "chat":
            message = {"role": "user", "content": _text(prompt)}
            return _chat(self._post("chat/completions", body | _CHAT | {"messages": [message]}))
        told = [FIRST_ID + number for number in prompt] if self.api == "ids" else _text(prompt)
        echo = {"echo": True} if scored else {}
        return _completion(self._post("completions", body | {"prompt": told, "logprobs": TOP} | echo), scored)

    def reachable(self) -> bool:
        """Whether the server answers."""
        try:
            return self._http.get("models").status_code < 500
        except httpx.HTTPError:
            return False

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._http.post(path, json=body)
            found = answer.json()
        except httpx.HTTPError as error:
            raise HitsError(f"{self.url} does not answer: {error or type(error).__name__}") from error
        except ValueError as error:
            raise HitsError(f"{self.url}/v1/{path} did not answer with JSON") from error
        if answer.status_code != 200 or not isinstance(found, dict):
            raise HitsError(f"{self.url}/v1/{path} refused with {answer.status_code}: {answer.text[:300]}")
        return found


_CHAT = {"logprobs": True, "top_logprobs": TOP}


def connect(url: str, *, model: str | None = None, key: str | None = None, api: Api | None = None) -> Client:
    """A client for the server at `url` (with or without ``/v1``); `model`: default the first that it serves; `api`:
    default the first of `APIS` that gives log-probabilities. Raises `HitsError`."""
    base = url.rstrip("/").removesuffix("/v1") + "/v1/"
    _check_address(url)
    if key and not (key.isascii() and key.isprintable()):
        raise HitsError("what was given as the server's key is no key: it has a line break, or characters beyond ASCII")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with ExitStack() as unless_found:
        try:
            http = httpx.Client(base_url=base, headers=headers, timeout=TIMEOUT)
            unless_found.callback(http.close)
            named = model or _first_model(http, url)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise HitsError(f"{url} does not answer: {error or type(error).__name__}") from error
        client = _speaking(http, named, (api,) if api else APIS)
        unless_found.pop_all()
        return client


def _check_address(url: str) -> None:
    """Raises `HitsError`."""
    try:
        place = urlsplit(url)
        sound = place.scheme in ("http", "https") and bool(place.hostname) and place.port != 0
    except ValueError:  # brackets that do not close, a port that is none
        sound = False
    if not sound:
        raise HitsError(f"{url!r} is no address of a server; give one like http://127.0.0.1:8000")


def _speaking(http: httpx.Client, model: str, apis: Sequence[Api]) -> Client:
    """The first API that gives log-probabilities."""
    problem = "its answers have none"
    for api in apis:
        client = Client(http, model, api)
        try:
            if client.say(range(8), 2).logprobs:
                return client
        except HitsError as error:
            problem = str(error)
    raise HitsError(f"the server gives no log-probabilities, so nothing can be compared: {problem}")


def _first_model(http: httpx.Client, url: str) -> str:
    answer = http.get("models")
    try:
        return str(answer.json()["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        told = f"{url}/v1/models answered with {answer.status_code} and no list of models"
        raise HitsError(f"{told}; name one with --model, and a key with --key if it wants one") from None


def _text(prompt: Sequence[int]) -> str:
    return " ".join(WORDS[number] for number in prompt)


def _completion(found: dict[str, Any], scored: bool) -> Said:
    try:
        told = found["choices"][0]["logprobs"] or {}
        tokens, logprobs, top = told.get("tokens", ()), told.get("token_logprobs", ()), told.get("top_logprobs") or ()
        usage = found["usage"]
        first = len(tokens) - int(usage["completion_tokens"]) if scored else 0
        kept = [dict(each or {}) for each in top][first:] or [{} for _ in tokens[first:]]
        return Said(tuple(tokens[first:]), tuple(logprobs[first:]), tuple(kept), *_counts(usage))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise HitsError(f"the server's completion is not in OpenAI's form ({error!r})") from error


def _chat(found: dict[str, Any]) -> Said:
    try:
        told = (found["choices"][0].get("logprobs") or {}).get("content") or ()
        top = [{each["token"]: each["logprob"] for each in token.get("top_logprobs") or ()} for token in told]
        tokens, logprobs = tuple(token["token"] for token in told), tuple(token["logprob"] for token in told)
        return Said(tokens, logprobs, tuple(top), *_counts(found["usage"]))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise HitsError(f"the server's chat completion is not in OpenAI's form ({error!r})") from error


def _counts(usage: dict[str, Any]) -> tuple[int, int | None]:
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return int(usage["prompt_tokens"]), None if cached is None else int(cached)

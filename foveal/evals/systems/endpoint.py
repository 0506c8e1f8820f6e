"""A model behind an OpenAI-compatible endpoint: the text and the question in one prompt.

It speaks plain HTTP, two calls of the protocol and nothing else. The chat form goes to ``/v1/chat/completions``, the
completion form to ``/v1/completions`` with the text before the cue. Greedy, seeded. A refusal that may pass (429, 5xx,
no connection) is tried again a few times; anything else ends the run with one line.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from foveal.evals.errors import EndpointError
from foveal.evals.material import Documents, whole_text
from foveal.evals.task import Answer, Form, Question

TIMEOUT = 3600.0
"""Seconds to wait for one answer: a million tokens take long to read."""
TRIES, PAUSE = 4, 2.0
SPARE = 3
"""An answer may take so many times the tokens it takes with our tokenizer."""


class EndpointSystem:
    """`url` is the server's, with or without ``/v1``; `model` the name it serves."""

    name = "endpoint"

    def __init__(self, url: str, model: str, form: Form, *, seed: int, key: str | None = None, pause: float = PAUSE):
        """Raises `EndpointError` when `url` is not one of HTTP, or no header can hold the key."""
        try:
            urllib.parse.urlsplit(url).port  # noqa: B018
        except ValueError as error:
            raise EndpointError(f"{url!r} is not the address of an endpoint: {error}") from None
        if not url.startswith(("http://", "https://")):
            raise EndpointError(f"{url!r} is not the address of an endpoint; write one like http://localhost:8000/v1")
        key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise EndpointError("the endpoint's key has characters that no header can have; look at OPENAI_API_KEY")
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._model, self._form, self._seed, self._key, self._pause = model, form, seed, key, pause

    @property
    def identity(self) -> str:
        return f"endpoint {self._url} {self._model}"

    def takes(self, length: int) -> bool:
        return True

    @contextmanager
    def reading(self, documents: Documents) -> Iterator[EndpointReader]:
        yield EndpointReader(self, whole_text(documents))

    def complete(self, prompt: str, question: Question) -> Answer:
        """Continue `prompt`."""
        settings: dict[str, Any] = {"prompt": prompt, "max_tokens": SPARE * question.max_tokens}
        if question.stop:
            settings["stop"] = list(question.stop)
        answer = self._post("completions", settings)
        return self._answer(answer, lambda choice: choice["text"])

    def chat(self, prompt: str, question: Question) -> Answer:
        """Answer `prompt` as the user's turn."""
        settings = {"messages": [{"role": "user", "content": prompt}], "max_tokens": question.chat_budget}
        return self._answer(self._post("chat/completions", settings), lambda choice: choice["message"]["content"])

    def _answer(self, answer: Any, text: Any) -> Answer:
        try:
            counted = (answer.get("usage") or {}).get("prompt_tokens")
            choice = answer["choices"][0]
            said, reason = text(choice), choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise EndpointError(f"{self._url} answered with something else than the OpenAI protocol says") from None
        if said is None and reason == "length":
            raise EndpointError(
                f"{self._url} used up the tokens of an answer before any text of it; switch the model's thinking off"
            )
        if not isinstance(said, str):
            raise EndpointError(f"{self._url} answered without a text (finish_reason {reason!r})")
        return Answer(said, prompt_tokens=counted, chat=self._form == "chat", finish_reason=reason)

    def _post(self, path: str, settings: dict[str, Any]) -> Any:
        body = {"model": self._model, "temperature": 0, "seed": self._seed, **settings}
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        request = urllib.request.Request(f"{self._url}/{path}", json.dumps(body).encode(), headers)
        for attempt in range(TRIES):
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
                    return self._decoded(reply.read(), path)
            except urllib.error.HTTPError as error:
                if attempt == TRIES - 1 or (error.code != 429 and error.code < 500):
                    said = error.read(2000).decode("utf-8", "replace")[:300]
                    raise EndpointError(f"{self._url}/{path} refused with {error.code}: {said}") from None
            except http.client.InvalidURL as error:
                raise EndpointError(f"{self._url!r} is not the address of an endpoint: {error}") from None
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                if attempt == TRIES - 1:
                    why = getattr(error, "reason", None) or str(error) or type(error).__name__
                    raise EndpointError(f"{self._url} cannot be reached: {why}") from None
            time.sleep(self._pause * 2**attempt)
        raise AssertionError("unreachable")

    def _decoded(self, body: bytes, path: str) -> Any:
        try:
            return json.loads(body)
        except ValueError:
            raise EndpointError(f"{self._url}/{path} did not answer with JSON") from None


class EndpointReader:
    """One text, sent with every question (a server with a prefix cache reads it once)."""

    def __init__(self, system: EndpointSystem, text: str) -> None:
        self._system, self._text = system, text

    def ask(self, question: Question) -> list[Answer]:
        if self._system._form == "chat":
            return [self._system.chat(f"{self._text}\n\n{question.ask}", question)]
        return [self._system.complete(f"{self._text}\n{cue}", question) for cue in question.cues]

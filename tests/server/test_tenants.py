"""Two tenants of one server: whatever the one has read, nothing tells the other of it, not even how long it takes.

Time is not measured: what takes time is running tokens, and these are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_support import write_model
from server_support import Running, key, serving

pytestmark = pytest.mark.slow

KEYS = (key("alice"), key("bob"))
TEXT = "".join(f"a secret of alice, number {n}\n" for n in range(300))


class Counting:
    """A network that counts the tokens that it runs."""

    def __init__(self, network: Any) -> None:
        self._network, self.ran = network, 0

    def __call__(self, tokens: Any, *rest: Any, **options: Any) -> Any:
        self.ran += len(tokens)
        return self._network(tokens, *rest, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), 4)


@contextmanager
def counted(folder: Path, model: Path) -> Iterator[tuple[Running, Counting]]:
    with serving(folder, model=model, keys=KEYS) as running:
        batch = running.engine.batch
        batch.passes.network = Counting(batch.network)
        yield running, batch.network


def send(running: Running, secret: str, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{running.url}{path}", json=body, headers={"x-api-key": secret}, timeout=120)
    assert answer.is_success, answer.text
    return answer.json()


MESSAGES = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 3, "ignore_eos": True, "seed": 1}
WORK: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "a chat": (("/v1/chat/completions", MESSAGES),),
    "a completion": (("/v1/completions", {"prompt": TEXT, "max_tokens": 3, "seed": 1, "ignore_eos": True}),),
    "a message": (("/v1/messages", {"model": "tiny", "messages": MESSAGES["messages"], "max_tokens": 3}),),
    "a response": (("/v1/responses", {"input": TEXT, "max_output_tokens": 3, "seed": 1}),),
    "a memory and a chat about it": (
        ("/v1/memories", {"name": "m", "text": TEXT}),
        ("/v1/memories/m/append", {"text": TEXT}),
        ("/v1/chat/completions", MESSAGES | {"memory": "m"}),
    ),
}


def tokens_run(running: Running, counting: Counting, secret: str, work: str) -> list[int]:
    """How many tokens the network ran for each request of a work."""
    ran = []
    for path, body in WORK[work]:
        before = counting.ran
        answer = send(running, secret, path, body)
        ran.append(counting.ran - before)
        usage = answer.get("usage") or {}
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        if secret == "bob" and "memory" not in body:
            assert details.get("cached_tokens", 0) == usage.get("cache_read_input_tokens", 0) == 0
    return ran


@pytest.mark.parametrize("work", WORK)
def test_what_one_has_read_spares_the_other_nothing(work: str, model: Path, tmp_path: Path) -> None:
    with counted(tmp_path / "alone", model) as (running, counting):
        alone = tokens_run(running, counting, "bob", work)
    with counted(tmp_path / "shared", model) as (running, counting):
        tokens_run(running, counting, "alice", work)
        if work != "a memory and a chat about it":  # a name is taken once
            assert sum(tokens_run(running, counting, "alice", work)) < sum(alone) / 10, "this is what a hit spares"
        beside = tokens_run(running, counting, "bob", work)
    with counted(tmp_path / "third", model) as (running, counting):
        tokens_run(running, counting, "alice", work)
    with counted(tmp_path / "third", model) as (running, counting):  # what alice has left lies in the store
        restarted = tokens_run(running, counting, "bob", work)
    assert alone == beside == restarted


def test_what_is_being_read_spares_the_other_nothing(model: Path, tmp_path: Path) -> None:
    body = MESSAGES | {"max_tokens": 100_000, "stream": True}
    with counted(tmp_path, model) as (running, _):
        url, headers = f"{running.url}/v1/chat/completions", {"x-api-key": "alice"}
        with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as stream:
            next(stream.iter_bytes())
            usage = send(running, "bob", "/v1/chat/completions", MESSAGES)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0 and usage["cache_miss"]["reason"] == "new"


def test_names_and_answers_are_as_if_there_were_nobody_else(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, model=model, keys=(*KEYS, key("operator", metrics=True))) as running:

        def bob(method: str, path: str, **options: Any) -> tuple[int, str]:
            options.setdefault("headers", {"x-api-key": "bob"})
            answer = httpx.request(method, f"{running.url}{path}", timeout=60, **options)
            return answer.status_code, answer.text

        made = send(running, "alice", "/v1/responses", {"input": TEXT, "max_output_tokens": 2})["id"]
        send(running, "alice", "/v1/memories", {"name": "theirs", "text": TEXT})
        for method, path, body in (
            ("GET", "/v1/memories/{}", None),
            ("DELETE", "/v1/memories/{}", None),
            ("GET", "/v1/memories/{}/head", None),
            ("GET", "/v1/memories/{}/export", None),
            ("POST", "/v1/memories/{}/fork", {"name": "mine"}),
            ("POST", "/v1/memories/{}/sync", {}),
            ("POST", "/v1/memories/{}/append", {"text": "x"}),
            ("POST", "/v1/memories/{}/recall", {"cue": "secret"}),
            ("POST", "/v1/memories/{}/search", {"text": "secret"}),
        ):
            there, nowhere = (bob(method, path.format(name), json=body) for name in ("theirs", "nobody"))
            assert there[0] == nowhere[0] == 404, path
            assert there[1].replace("theirs", "nobody") == nowhere[1], "the words are those of a name that there is not"
        for path in ("/v1/responses/{}", "/v1/responses/{}/input_items"):
            there, nowhere = (bob("GET", path.format(name)) for name in (made, "resp_0"))
            assert there[0] == 404 and there[1].replace(made, "resp_0") == nowhere[1]
        forked, nowhere = (
            bob("POST", "/v1/responses", json={"input": "x", "previous_response_id": name}) for name in (made, "resp_0")
        )
        assert forked[0] == 404 and forked[1].replace(made, "resp_0") == nowhere[1]
        assert bob("GET", "/metrics")[0] == 403, "how many tokens were found tells of others"
        assert bob("GET", "/metrics", headers={"x-api-key": "operator"})[0] == 200
        assert send(running, "bob", "/v1/memories", {"name": "theirs", "text": "mine\n"})["tokens"] < 50
        assert bob("DELETE", "/v1/memories/theirs")[0] == 200
        kept = httpx.get(f"{running.url}/v1/memories/theirs", headers={"x-api-key": "alice"}, timeout=60).json()
        assert kept["tokens"] > 1000, "the memory of that name of the other is still there"

"""The Responses API, by OpenAI's own client and by what Codex sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from cli_support import write_model
from server_support import Running, serving

LOOK = {"type": "object", "properties": {"path": {"enum": ["a", "b"]}}, "required": ["path"]}
TOOLS: list[Any] = [
    {"type": "function", "name": "look", "strict": False, "parameters": LOOK},
    {"type": "namespace", "name": "files", "tools": [{"type": "function", "name": "list", "parameters": LOOK}]},
    {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}},
    {"type": "web_search"},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def events(text: str) -> list[Any]:
    lines = text.splitlines()
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    found = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert names == [event["type"] for event in found]
    return found


def test_events_come_in_order(server: Running) -> None:
    body = {"model": "tiny", "input": "hello", "stream": True, "max_output_tokens": 6, "temperature": 0}
    found = events(httpx.post(f"{server.url}/v1/responses", json=body, timeout=60).text)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    text = "".join(event["delta"] for event in found if event["type"].endswith("text.delta"))
    assert found[-1]["response"]["output"][0]["content"][0] == {
        "type": "output_text", "text": text, "annotations": [], "logprobs": []
    }  # fmt: skip
    assert found[-1]["response"]["usage"]["output_tokens"] == 6


def test_logprobs_are_those_of_a_chat(server: Running, client: openai.OpenAI) -> None:
    """Token by token in the events, together in the item, and only where they are asked for."""
    settings: dict[str, Any] = {"model": "tiny", "temperature": 0}
    asked = [{"role": "user", "content": "hello"}]
    chat: Any = client.chat.completions.create(**settings, messages=asked, max_tokens=8, logprobs=True, top_logprobs=2)
    expected = [token.model_dump() for token in chat.choices[0].logprobs.content]
    body = settings | {"input": "hello", "max_output_tokens": 8, "top_logprobs": 2, "stream": True}
    body["include"] = ["message.output_text.logprobs"]
    found = events(httpx.post(f"{server.url}/v1/responses", json=body, timeout=60).text)
    streamed = [token for event in found if event["type"].endswith("text.delta") for token in event["logprobs"]]
    whole = found[-1]["response"]
    done = next(event for event in found if event["type"].endswith("text.done"))
    assert whole["output"][0]["content"][0]["logprobs"] == done["logprobs"] == expected and whole["top_logprobs"] == 2
    assert streamed == expected[: len(streamed)] and streamed
    alone = client.responses.create(**settings, input="hello", max_output_tokens=8, include=body["include"])
    told: Any = alone.output[0]
    assert [t.logprob for t in told.content[0].logprobs] == [token["logprob"] for token in expected]
    assert all(token.top_logprobs == [] for token in told.content[0].logprobs)
    wrong = httpx.post(f"{server.url}/v1/responses", json=body | {"top_logprobs": 21}, timeout=60)
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "top_logprobs"


def test_a_stored_response_is_gone_on_from_as_a_fork(client: openai.OpenAI) -> None:
    first = client.responses.create(model="tiny", input="talk about " * 80, max_output_tokens=10)
    for question in ("why?", "how?"):
        next_ = client.responses.create(
            model="tiny", input=question, previous_response_id=first.id, max_output_tokens=4
        )
        assert next_.usage is not None and first.usage is not None
        assert next_.usage.input_tokens > first.usage.input_tokens
        assert next_.usage.input_tokens_details.cached_tokens > 100
    assert client.responses.retrieve(first.id).output_text == first.output_text
    assert client.responses.input_items.list(first.id).data[0].id
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="tiny", input="x", previous_response_id=first.id)


def test_what_is_not_stored_is_not_there(client: openai.OpenAI) -> None:
    made = client.responses.create(model="tiny", input="x", store=False, max_output_tokens=2)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_stored_responses_outlive_the_server(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", 4)
    with serving(tmp_path, model=model) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any")
        made = client.responses.create(model="tiny", input="talk about " * 300, max_output_tokens=10)
    with serving(tmp_path, model=model) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any")
        assert client.responses.retrieve(made.id).output_text == made.output_text
        after = client.responses.create(model="tiny", input="?", previous_response_id=made.id, max_output_tokens=2)
        assert after.usage is not None and made.usage is not None
        assert after.usage.input_tokens_details.cached_tokens >= made.usage.total_tokens - 1


@pytest.mark.parametrize(
    ("choice", "kind"),
    [
        ({"type": "function", "name": "look"}, "function_call"),
        ({"type": "function", "name": "list", "namespace": "files"}, "function_call"),
        ({"type": "custom", "name": "patch"}, "custom_tool_call"),
    ],
)
def test_tools_are_called_by_their_own_names(client: openai.OpenAI, choice: Any, kind: str) -> None:
    with client.responses.stream(
        model="tiny",
        input="hello",
        tools=TOOLS,
        tool_choice=choice,
        parallel_tool_calls=False,
        max_output_tokens=400,
        store=False,
    ) as stream:
        begun: list[Any] = [event.item for event in stream if event.type == "response.output_item.added"]
    call = begun[0]
    assert call.type == kind and call.name == choice["name"] and call.call_id and call.id
    assert getattr(call, "namespace", None) == choice.get("namespace")


def test_what_codex_sends(server: Running) -> None:
    items = [
        {"type": "message", "id": "m1", "role": "developer", "content": [{"type": "input_text", "text": "be brief"}]},
        {"type": "message", "id": "m2", "role": "user", "content": [{"type": "input_text", "text": "list " * 80}]},
        {
            "type": "reasoning",
            "id": "r1",
            "summary": [{"type": "summary_text", "text": "hm"}],
            "encrypted_content": "x",
        },
        {"type": "function_call", "id": "f1", "call_id": "c1", "name": "list", "namespace": "files", "arguments": "{}"},
        {"type": "function_call_output", "id": "o1", "call_id": "c1", "output": [{"type": "input_text", "text": "a"}]},
        {"type": "custom_tool_call", "id": "p1", "call_id": "c2", "name": "patch", "input": "x"},
        {"type": "custom_tool_call_output", "id": "o2", "call_id": "c2", "output": "done"},
        {"type": "web_search_call", "id": "w1", "status": "completed"},
    ]
    body = {
        "model": "tiny",
        "input": items,
        "stream": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "session",
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "reasoning": {"effort": "low", "summary": "auto"},
        "client_metadata": {"a": "b"},
        "tools": TOOLS,
        "max_output_tokens": 8,
        "temperature": 0,
    }
    found = events(httpx.post(f"{server.url}/v1/responses", json=body, timeout=60).text)
    assert found[-1]["type"] == "response.incomplete" and found[-1]["response"]["id"].startswith("resp_")
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done[0]["type"] == "reasoning" and done[0]["encrypted_content"]


def test_errors(server: Running) -> None:
    for body in (
        {"input": []},
        {"input": "x", "background": True},
        {"input": "x", "prompt": {"id": "pmpt_1"}},
        {"input": [{"role": "nobody", "content": "x"}]},
    ):
        answer = httpx.post(f"{server.url}/v1/responses", json={"model": "tiny"} | body, timeout=60)
        assert answer.status_code == 400 and answer.json()["error"]["message"]

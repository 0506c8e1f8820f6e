"""The Messages API, by Anthropic's own client and by what Claude Code sends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from server_support import Running, serving

GREEDY = {"temperature": 0}
USER = {"role": "user", "content": "hello"}
TOOL = {
    "name": "look",
    "description": "look",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"path": {"type": "string", "enum": ["a", "b"]}},
        "required": ["path"],
        "additionalProperties": False,
    },
    "cache_control": {"type": "ephemeral", "ttl": "1h"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("server"), context_length=4096) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0)


def create(client: anthropic.Anthropic, **settings: Any) -> Any:
    return client.messages.create(
        **{"model": "claude-opus-4-8", "max_tokens": 8, "messages": [USER], "extra_body": GREEDY, **settings}
    )


def test_a_message_and_its_usage(client: anthropic.Anthropic) -> None:
    messages = [{"role": "user", "content": "hello there " * 100}]
    first, second = create(client, messages=messages), create(client, messages=messages)
    assert first.stop_reason == "max_tokens" and first.content[0].type == "text"
    prompt = first.usage.input_tokens + first.usage.cache_read_input_tokens
    assert second.usage.cache_read_input_tokens == prompt - 1 and second.usage.input_tokens == 1
    assert client.messages.count_tokens(model="tiny", messages=messages).input_tokens == prompt


def test_a_stream_is_made_of_whole_blocks(server: Running) -> None:
    body = {"model": "tiny", "max_tokens": 40, "messages": [USER], "stream": True, "thinking": {"type": "adaptive"}}
    body |= GREEDY
    text = httpx.post(f"{server.url}/v1/messages?beta=true", json=body, timeout=60).text
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") >= 1
    assert '"signature_delta","signature":"' in text


def test_forced_tools_are_called(client: anthropic.Anthropic) -> None:
    for kind in ({"type": "any"}, {"type": "tool", "name": "look"}):
        choice = kind | {"disable_parallel_tool_use": True}
        reply = create(client, tools=[TOOL], tool_choice=choice, max_tokens=300)
        assert reply.stop_reason == "tool_use" and all(block.input["path"] in "ab" for block in reply.content)
    with client.messages.stream(
        model="tiny",
        max_tokens=300,
        messages=[USER],
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    ) as stream:  # type: ignore[arg-type]
        assert stream.get_final_message().content[0].input["path"] in "ab"  # type: ignore[union-attr, index]


def test_what_claude_code_sends(server: Running) -> None:
    """Blocks in every place, system messages in the middle, thinking that comes back; `cache_control` moves."""

    def body(billing: str, cached: int) -> dict[str, Any]:
        messages: list[Any] = [
            {"role": "user", "content": [{"type": "text", "text": "do it " * 100}]},
            {"role": "system", "content": "be careful"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                    {"type": "text", "text": "ok"},
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {"path": "a"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": "no such file"},
                    {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "x"}]},
                    {"type": "text", "text": "go on"},
                ],
            },
        ]
        messages[cached]["content"] = [
            block | {"cache_control": {"type": "ephemeral"}}
            for block in (
                messages[cached]["content"]
                if isinstance(messages[cached]["content"], list)
                else [{"type": "text", "text": messages[cached]["content"]}]
            )
        ]
        system = [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version={billing};"},
            {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
        ]
        return {
            "model": "claude-opus-4-8",
            "max_tokens": 4,
            "system": system,
            "messages": messages,
            "tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}],
            "thinking": {"type": "adaptive", "display": "updates"},
            "output_config": {"effort": "high"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
            "metadata": {"user_id": '{"a": 1}'},
        }

    first = httpx.post(f"{server.url}/v1/messages?beta=true", json=body("2.1.197.51a", 0), timeout=60).json()
    second = httpx.post(f"{server.url}/v1/messages?beta=true", json=body("2.1.197.247", 3), timeout=60).json()
    assert "usage" in first, first
    assert second["usage"]["input_tokens"] == 1, "neither the billing block nor cache_control is part of the prompt"


def test_structured_output(client: anthropic.Anthropic) -> None:
    form = {"type": "json_schema", "schema": {"type": "object", "properties": {"title": {"const": "x"}},
            "required": ["title"], "additionalProperties": False}}  # fmt: skip
    reply = create(client, max_tokens=400, extra_body=GREEDY | {"output_config": {"format": form}})
    assert reply.content[0].text.replace(" ", "").replace("\n", "").replace("\t", "") == '{"title":"x"}'


def test_stop_sequences(client: anthropic.Anthropic) -> None:
    whole = create(client, max_tokens=20, extra_body={"temperature": 0}).content[0].text
    cut = create(client, max_tokens=20, stop_sequences=[whole[5:7]], extra_body={"temperature": 0})
    assert cut.stop_reason == "stop_sequence" and cut.stop_sequence == whole[5:7]
    assert cut.content[0].text == whole[: whole.index(whole[5:7])]


def test_a_prefilled_reply_goes_on(client: anthropic.Anthropic) -> None:
    reply = create(client, messages=[USER, {"role": "assistant", "content": "The answer is"}])
    assert reply.usage.output_tokens == 8


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"model": "nope"}, 404, "not_found_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, 400, "invalid_request_error"),
    ],
)
def test_errors_have_anthropics_shape(server: Running, body: Any, status: int, kind: str) -> None:
    answer = httpx.post(
        f"{server.url}/v1/messages", json={"model": "tiny", "max_tokens": 1, "messages": [USER]} | body, timeout=60
    )
    told = answer.json()
    assert answer.status_code == status and told["type"] == "error" and told["error"]["type"] == kind
    assert told["request_id"] == answer.headers["request-id"]
    if "word" in str(body):
        assert (
            "prompt is too long: " in told["error"]["message"] and " tokens > 4095 maximum" in told["error"]["message"]
        )

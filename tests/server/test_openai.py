"""Chat completions, completions, models and tokens, by OpenAI's own client over a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_support import Running, serving

USER = {"role": "user", "content": "hello"}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "look at a file",
        "parameters": {
            "type": "object",
            "properties": {"path": {"enum": ["a", "b"]}, "line": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["path", "line"],
            "additionalProperties": False,
        },
    },
}


UNKNOWN = {"strict": True, "schema": {"not": {}}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("server"), context_length=4096) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def chat(client: openai.OpenAI, **settings: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": [USER], "max_tokens": 12, "seed": 1, **settings}
    )


def events(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_a_chat_is_the_same_streamed_and_whole(client: openai.OpenAI) -> None:
    whole = chat(client, seed=3).choices[0]
    chunks = list(chat(client, seed=3, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1


def test_usage_comes_only_when_asked_for(server: Running) -> None:
    body = {"model": "tiny", "messages": [USER], "max_tokens": 3, "stream": True, "seed": 1}
    plain = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert plain.text.endswith("data: [DONE]\n\n") and all(event["choices"] for event in events(plain))
    asked = events(
        httpx.post(
            f"{server.url}/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}}, timeout=60
        )
    )
    assert asked[-1]["choices"] == [] and asked[-1]["usage"]["completion_tokens"] == 3
    assert all(event["usage"] is None for event in asked[:-1])


def test_several_replies_have_their_own_seeds(client: openai.OpenAI) -> None:
    several = chat(client, n=3, seed=5)
    alone = [chat(client, seed=seed).choices[0].message.content for seed in (5, 6, 7)]
    assert [choice.message.content for choice in several.choices] == alone
    assert several.usage.completion_tokens == 36


def test_logprobs_are_those_of_the_content(client: openai.OpenAI) -> None:
    choice = chat(client, temperature=0, logprobs=True, top_logprobs=2).choices[0]
    assert all(token.logprob == token.top_logprobs[0].logprob for token in choice.logprobs.content)
    assert b"".join(bytes(t.bytes) for t in choice.logprobs.content).decode("utf-8", "replace")
    streamed = [
        token.logprob
        for chunk in chat(client, temperature=0, logprobs=True, top_logprobs=2, stream=True)
        for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert streamed == [token.logprob for token in choice.logprobs.content]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
@pytest.mark.parametrize("effort", [None, "low"])
def test_a_forced_tool_is_called(client: openai.OpenAI, choice: Any, effort: str | None) -> None:
    settings = {"reasoning_effort": effort} if effort else {}
    if effort:  # a random model never ends its reasoning: the reply is cut in it, and nothing leaks
        reply = chat(client, tools=[TOOL], tool_choice=choice, **settings).choices[0]
        assert reply.finish_reason == "length" and not reply.message.content and reply.message.reasoning_content
        return
    reply = chat(client, tools=[TOOL], tool_choice=choice, max_tokens=400).choices[0]
    assert reply.finish_reason == "tool_calls" and reply.message.content is None
    for call in reply.message.tool_calls:
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "look" and arguments["path"] in "ab" and 1 <= arguments["line"] <= 9


def test_a_streamed_call_begins_with_index_id_and_name(client: openai.OpenAI) -> None:
    said: dict[int, Any] = {}
    for chunk in chat(client, tools=[TOOL], tool_choice="required", max_tokens=400, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            if call.index not in said:
                assert call.id and call.type == "function" and call.function.name == "look"
                said[call.index] = ""
            else:
                assert call.id is None and call.function.name is None
            said[call.index] += call.function.arguments or ""
    assert said and all(json.loads(arguments)["path"] in "ab" for arguments in said.values())


def test_a_schema_is_followed_and_counts_for_the_limit(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 5}, "b": {"const": "x"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    reply = chat(client, response_format=form, max_tokens=500).choices[0]
    assert reply.finish_reason == "stop" and 1 <= json.loads(reply.message.content)["a"] <= 5
    cut = chat(client, response_format=form, max_tokens=3)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3


def test_bias_and_penalties_do_what_the_apis_say(server: Running, client: openai.OpenAI) -> None:
    prompt: Any = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0, "logprobs": 1}

    def ids(**settings: Any) -> list[str]:
        return client.completions.create(**prompt | settings).choices[0].logprobs.tokens

    wanted = server.engine.tokenizer.encode("again")[0]
    name = server.engine.tokenizer.decode([wanted])
    assert ids(logit_bias={str(wanted): 100}) == [name] * 8
    once = ids(logit_bias={str(wanted): 100}, presence_penalty=2, frequency_penalty=2)
    assert once == [name] * 8, "2 for each of 8 tokens is less than 100"
    plain = ids()
    said = ids(logit_bias={"9": 0}, extra_body={"repetition_penalty": 0.01})
    assert len(set(said)) < len(set(plain)), "what was said once is a hundred times as good"
    assert ids(frequency_penalty=0, presence_penalty=0, extra_body={"repetition_penalty": 1}) == plain
    answer = client.chat.completions.create(
        model="tiny", messages=[USER], max_tokens=3, temperature=0, logit_bias={str(wanted): 100}
    )
    assert answer.choices[0].message.content == name * 3
    bodies = ({"frequency_penalty": 2.0, "presence_penalty": -1.0}, {})
    said = [
        httpx.post(
            f"{server.url}/v1/responses",
            json={"input": "x", "max_output_tokens": 9, "temperature": 0} | body,
            timeout=60,
        )
        for body in bodies
    ]
    assert [(r.json()["frequency_penalty"], r.json()["presence_penalty"]) for r in said] == [(2.0, -1.0), (0.0, 0.0)]


def test_a_stop_string_that_the_last_token_completes_is_the_end(server: Running, client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": ")\n"}
    [token] = httpx.post(f"{server.url}/tokenize", json=asked, timeout=60).json()["tokens"]
    ended = chat(client, max_tokens=1, stop=")\n", logit_bias={str(token): 100}).choices[0]
    assert ended.finish_reason == "stop" and not ended.message.content


def test_a_stop_string_ends_the_text(client: openai.OpenAI) -> None:
    text = chat(client, seed=3, max_tokens=30).choices[0].message.content
    middle = text[8:11]
    cut = chat(client, seed=3, max_tokens=30, stop=[middle, "never"]).choices[0]
    assert cut.message.content == text[: text.index(middle)] and cut.finish_reason == "stop"


def test_every_field_of_the_clients_is_taken(server: Running) -> None:
    body = {
        "model": "tiny",
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "be nice"}]},
            {"role": "user", "content": "look"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "found"}]},
            {"role": "assistant", "content": None, "reasoning_content": "hm"},
            {"role": "user", "content": "go on", "name": "me"},
        ],
        "max_completion_tokens": 2,
        "tools": [TOOL],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "reasoning_effort": "medium",
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "store": False,
        "user": "me",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "verbosity": "low",
        "n": 1,
        "stop": None,
        "logprobs": False,
        "something_new": {"deep": [1]},
    }
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert "content" in answer.json()["choices"][0]["message"]
    assert answer.headers["x-request-id"] == answer.headers["request-id"]


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"messages": [USER], "model": "nope"}, 404, "model", "model_not_found"),
        ({"messages": []}, 400, "messages", "invalid_request"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content", None),
        ({"messages": [USER], "logit_bias": {"4096": 5}}, 400, "logit_bias", None),
        ({"messages": [USER], "logit_bias": {"a": 5}}, 400, "logit_bias", None),
        ({"messages": [USER], "logit_bias": {"3": 101}}, 400, "logit_bias.3", None),
        ({"messages": [USER], "logit_bias": [3]}, 400, "logit_bias", None),
        ({"messages": [USER], "presence_penalty": 2.1}, 400, "presence_penalty", None),
        ({"messages": [USER], "frequency_penalty": "x"}, 400, "frequency_penalty", None),
        ({"messages": [USER], "repetition_penalty": 0}, 400, "repetition_penalty", None),
        ({"messages": [USER], "temperature": 9}, 400, "temperature", None),
        ({"messages": [USER], "n": 99}, 400, None, None),
        ({"messages": [USER], "tool_choice": "required"}, 400, "tool_choice", None),
        ({"messages": [USER], "reasoning_effort": "odd"}, 400, "reasoning_effort", None),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, 400, None, "context_length_exceeded"),
        (
            {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": UNKNOWN}},
            400,
            None,
            None,
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_openais_shape(
    server: Running, body: Any, status: int, param: str | None, code: str | None, stream: bool
) -> None:
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json={"model": "tiny", "stream": stream} | body, timeout=60
    )
    error = answer.json()["error"]
    assert answer.status_code == status and set(error) == {"message", "type", "param", "code"}, answer.text
    assert param in (None, error["param"]) and code in (None, error["code"])


def test_what_is_no_json_is_a_bad_request(server: Running) -> None:
    headers = {"content-type": "application/json"}
    for content in (b"{no", b"[]", b"", b'"x"'):
        answer = httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers, timeout=60)
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_what_nobody_serves_is_not_found(server: Running) -> None:
    assert httpx.get(f"{server.url}/v1/nothing", timeout=60).json()["error"]["message"]
    assert httpx.get(f"{server.url}/v1/chat/completions", timeout=60).status_code == 405


# ---------------------------------------------------------------------- prefixes


def test_the_same_prompt_again_runs_one_token(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "again and " * 150}]
    first, second = (chat(client, messages=messages, temperature=0) for _ in range(2))
    assert second.choices[0].message.content == first.choices[0].message.content
    usage = second.usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1 and usage.cache_miss is None


def test_a_conversation_goes_on_from_what_was_sampled(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "talk about " * 60}]
    for turn in range(4):
        reply = chat(client, messages=messages, seed=turn, max_tokens=25)
        if turn:
            new = reply.usage.prompt_tokens - reply.usage.prompt_tokens_details.cached_tokens
            assert new <= 8, "only the end of the last reply and the new question are read"
        messages += [{"role": "assistant", "content": reply.choices[0].message.content}, USER]


def test_why_names_the_message_that_differs(server: Running, client: openai.OpenAI) -> None:
    system = {"role": "system", "content": "You are a careful reader. " * 60}
    for word in ("one", "two"):
        answer = chat(client, messages=[system, {"role": "user", "content": f"{word} thing"}])
    miss = answer.usage.cache_miss
    assert miss["reason"] == "first_difference" and miss["message"] == {"index": 1, "role": "user"}
    latest = httpx.get(f"{server.url}/v1/why", timeout=60).json()["data"][0]
    assert latest["reason"] == "first_difference" and latest["message"] == {"index": 1, "role": "user"}
    assert latest["text"].startswith("two") and latest["expected_text"] == "one"


# ---------------------------------------------------------------------- completions


def test_an_echoed_prompt_is_scored_as_the_engine_does(server: Running, client: openai.OpenAI) -> None:
    ids = server.engine.tokenizer.encode("def main():\n    return 3\n")
    scored = client.completions.create(
        model="tiny", prompt=ids, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1
    ).choices[0]
    told = scored.logprobs
    assert told is not None and told.token_logprobs is not None and told.top_logprobs is not None
    assert len(told.token_logprobs) == len(ids) + 1 and told.token_logprobs[0] is None
    for place in range(1, len(ids)):
        alone = server.engine.generate(ids[:place], max_tokens=1, logprobs=1, ignore_eos=True).logprobs[0]
        best = max(told.top_logprobs[place].values())
        assert best == alone.top[0][1]
        assert (told.token_logprobs[place] == best) == (alone.token == ids[place])
    assert scored.text.startswith("def main():\n    return 3\n") and len(told.tokens) == len(ids) + 1


def test_a_scored_prompt_is_run_once_and_kept(server: Running, client: openai.OpenAI) -> None:
    """Whatever of it was known already: the log-probabilities are the same."""
    ids = server.engine.tokenizer.encode("again and again, " * 100)
    settings: Any = {"model": "tiny", "prompt": ids, "echo": True, "temperature": 0}
    first, second = (client.completions.create(**settings, logprobs=2, max_tokens=1, n=2) for _ in range(2))
    assert [a.logprobs for a in first.choices] == [b.logprobs for b in second.choices]
    assert second.usage is not None and second.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.cache_miss == {"reason": "scored", "position": 0}
    read = client.completions.create(**(settings | {"echo": False}), max_tokens=1)
    assert read.usage is not None and read.usage.prompt_tokens_details.cached_tokens == len(ids) - 1
    chunks = list(client.completions.create(**settings, logprobs=2, max_tokens=1, stream=True))
    told = [
        value for chunk in chunks if chunk.choices[0].logprobs for value in chunk.choices[0].logprobs.token_logprobs
    ]
    assert told == first.choices[0].logprobs.token_logprobs


def test_a_prompt_can_be_scored_without_a_reply(client: openai.OpenAI) -> None:
    choice = client.completions.create(model="tiny", prompt="import os", echo=True, logprobs=0, max_tokens=0).choices[0]
    assert choice.text == "import os" and choice.logprobs is not None and choice.logprobs.token_logprobs[0] is None


def test_many_prompts_answer_in_their_order(client: openai.OpenAI) -> None:
    prompts = ["import os", "def f(", "class A"]
    several = client.completions.create(model="tiny", prompt=prompts, max_tokens=6, temperature=0, n=2)
    alone = [client.completions.create(model="tiny", prompt=p, max_tokens=6, temperature=0) for p in prompts]
    assert [choice.index for choice in several.choices] == list(range(6))
    assert [choice.text for choice in several.choices] == [a.choices[0].text for a in alone for _ in range(2)]
    streamed = [""] * 6
    for chunk in client.completions.create(model="tiny", prompt=prompts, max_tokens=6, temperature=0, n=2, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in several.choices]


def test_token_lists_are_prompts(server: Running, client: openai.OpenAI) -> None:
    ids = server.engine.tokenizer.encode("import os")
    one = client.completions.create(model="tiny", prompt=[ids, ids], max_tokens=4, temperature=0, echo=True)
    assert all(choice.text.startswith("import os") for choice in one.choices) and len(one.choices) == 2


# ---------------------------------------------------------------------- the rest


def test_tokens_and_back(server: Running) -> None:
    told = httpx.post(
        f"{server.url}/tokenize", json={"prompt": "héllo ~", "add_special_tokens": False}, timeout=60
    ).json()
    assert told["count"] == len(told["tokens"])
    assert httpx.post(f"{server.url}/detokenize", json={"tokens": told["tokens"]}, timeout=60).json() == {
        "prompt": "héllo ~"
    }
    chat_ids = httpx.post(f"{server.url}/tokenize", json={"messages": [USER]}, timeout=60).json()["tokens"]
    assert chat_ids[0] == server.engine.tokenizer.bos_id
    alone = {"messages": [USER], "add_generation_prompt": False}
    without = httpx.post(f"{server.url}/tokenize", json=alone, timeout=60).json()["tokens"]
    assert len(without) < len(chat_ids) and chat_ids[: len(without)] == without
    refused = httpx.post(f"{server.url}/detokenize", json={"tokens": [1 << 20]}, timeout=60)
    assert refused.status_code == 400 and "1048576" in refused.json()["error"]["message"]
    info = httpx.get(f"{server.url}/tokenizer_info", timeout=60).json()
    assert info["eos_token"] == "<｜end▁of▁sentence｜>"


def test_models_serve_both_vendors_clients(server: Running, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "gpt"]
    assert client.models.retrieve("claude-opus-4-8").id == "claude-opus-4-8"
    told = httpx.get(f"{server.url}/v1/models", timeout=60).json()
    assert told["has_more"] is False and told["first_id"] == "tiny" and told["data"][0]["created_at"].endswith("Z")


def test_operation(server: Running, client: openai.OpenAI) -> None:
    chat(client, max_tokens=2)
    assert (
        httpx.get(f"{server.url}/health", timeout=60).status_code
        == httpx.get(f"{server.url}/ready", timeout=60).status_code
        == 200
    )
    assert httpx.head(f"{server.url}/", timeout=60).status_code == 200
    numbers = httpx.get(f"{server.url}/metrics", timeout=60).text
    assert 'foveal_requests_total{path="/v1/chat/completions",status="200"}' in numbers
    assert "foveal_prompt_tokens_reused_total" in numbers


def test_metrics_tell_where_pages_and_time_go(server: Running, client: openai.OpenAI) -> None:
    chat(client, max_tokens=5)
    answer = httpx.get(f"{server.url}/metrics", timeout=60)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {
        (sample.name, *(value for _, value in sorted(sample.labels.items(), reverse=True))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert found["foveal_steps_total", "tiny"] >= 5
    whole = found["foveal_step_seconds_total", "(all)", "tiny"]
    parts = {
        key[1]: value for key, value in found.items() if key[0] == "foveal_step_seconds_total" and key[1] != "(all)"
    }
    assert {"attend", "index", "experts", "head"} <= set(parts) and 0 < sum(parts.values()) <= whole
    assert (found["foveal_cache_bytes", "tiny", "csa_entries"] > 0) == (found["foveal_pages", "tiny"] > 0)
    assert found["foveal_evicted_total", "tiny", "parked"] == 0 and found["foveal_evicted_total", "tiny", "kept"] >= 0
    assert found["foveal_output_tokens_total", "tiny"] >= 5 and found["foveal_requests_running",] >= 0


def test_all_pages_come_back(tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any")
        chat(client, n=3)
        engine = running.engine
    assert engine.pool.live == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_may_be_read_without_an_answer(client: openai.OpenAI, stream: bool) -> None:
    if stream:
        chunks = list(chat(client, max_tokens=0, stream=True))
        assert chunks[-1].choices[0].finish_reason == "length"
        return
    answer = chat(client, max_tokens=0)
    assert answer.choices[0].message.content == "" and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 0 and answer.usage.prompt_tokens > 0


def test_a_top_p_of_0_is_the_likeliest_token_in_every_api(client: openai.OpenAI, server: Running) -> None:
    settings = {"model": "tiny", "temperature": 1}

    def texts(top_p: float | None, temperature: float) -> list[str]:
        given: dict[str, Any] = settings | {"temperature": temperature} | ({} if top_p is None else {"top_p": top_p})
        url = f"{server.url}/v1"
        answers = [
            httpx.post(
                f"{url}/chat/completions", json={"messages": [USER], "max_tokens": 6, **given}, timeout=60
            ).json(),
            httpx.post(f"{url}/messages", json={"messages": [USER], "max_tokens": 6, **given}, timeout=60).json(),
            httpx.post(f"{url}/responses", json={"input": [USER], "max_output_tokens": 6, **given}, timeout=60).json(),
        ]
        chat_answer, message, response = answers
        return [
            chat_answer["choices"][0]["message"]["content"],
            "".join(block.get("text", "") for block in message["content"]),
            "".join(part["text"] for item in response["output"] for part in item.get("content", ())),
        ]

    assert texts(0, 1) == texts(None, 0)

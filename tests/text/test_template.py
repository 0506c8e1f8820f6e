"""Chat templates: what transformers renders, control strings in content, where turns stand, what is refused."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from chat_support import BOS, CHATML, FAMILIES, family_definition, family_encoding, family_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from foveal.text import Tokenizer
from foveal.text.chat import ChatError, ChatUnsupported, chat_encoding
from foveal.text.jinja import Template
from foveal.text.messages import (
    AssistantMessage,
    Conversation,
    Message,
    SystemMessage,
    Thinking,
    ToolCall,
    ToolDefinition,
    ToolMessage,
    UserMessage,
)
from foveal.text.template import TemplateEncoding
from foveal.text.template_files import Templates, read_templates

LOOK = ToolDefinition(name="look", description="é <b>", parameters={"type": "object", "properties": {"a": {}}})
CALL = AssistantMessage(content="so", reasoning="why", tool_calls=(ToolCall(id="abcdefghi", name="look"),))
RESULT = ToolMessage(call_id="abcdefghi", content='{"b": "<é>"}')


def theirs(family: str, conversation: Conversation) -> list[int]:
    """What transformers makes of a conversation."""
    messages, tools = as_json(conversation)
    text = wrapped(family).apply_chat_template(
        messages,
        tools=tools or None,
        chat_template=FAMILIES[family][0],
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=conversation.thinking is not Thinking.OFF,
    )
    return family_tokenizer(family).encode(text, special=True)


@cache
def wrapped(family: str) -> PreTrainedTokenizerFast:
    tokenizer = tokenizers.Tokenizer.from_str(family_definition(family))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=FAMILIES[family][2])


def as_json(conversation: Conversation) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    out: list[dict[str, Any]] = []
    for message in conversation.messages:
        match message:
            case SystemMessage(content):
                out.append({"role": "system", "content": content})
            case UserMessage(content):
                out.append({"role": "user", "content": content})
            case ToolMessage():
                out.append({"role": "tool", "content": message.content, "tool_call_id": message.call_id})
            case AssistantMessage():
                said: dict[str, Any] = {"role": "assistant", "content": message.content}
                said["reasoning_content"] = message.reasoning
                calls = [
                    {"id": c.id, "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
                    for c in message.tool_calls
                ]
                out.append(said | ({"tool_calls": calls} if calls else {}))
    tools = [
        {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
        for t in conversation.tools
    ]
    return out, tools


safe_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: text.strip())
conversations = st.lists(
    st.builds(UserMessage, safe_text)
    | st.builds(AssistantMessage, content=safe_text, reasoning=safe_text | st.just(""))
    | st.just(CALL),
    max_size=5,
)


@pytest.mark.parametrize("family", FAMILIES)
@given(said=conversations, tools=st.booleans(), thinking=st.sampled_from([Thinking.OFF, Thinking.HIGH]))
def test_ids_are_those_of_transformers(family: str, said: list[Message], tools: bool, thinking: Thinking) -> None:
    messages = (SystemMessage("S <é>"), UserMessage(" q\n"), *said, RESULT, UserMessage("?"))
    conversation = Conversation(messages=messages, tools=(LOOK,) if tools else (), thinking=thinking)
    rendered = family_encoding(family).render(conversation)
    assert rendered.ids == theirs(family, conversation)
    answers = [i for i, message in enumerate(messages) if isinstance(message, AssistantMessage)]
    assert [turn.message for turn in rendered.turns] == answers
    tokenizer, end = family_tokenizer(family), FAMILIES[family][2]
    for turn in rendered.turns:
        inside = tokenizer.decode(rendered.ids[turn.start : turn.end])
        assert inside.endswith(end) and inside.count(end) == 1
        message = messages[turn.message]
        assert message == CALL or message.content.strip() in inside


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_control_strings_stay_plain_text_wherever_they_stand(family: str, data: st.DataObject) -> None:
    tokenizer, encoding = family_tokenizer(family), family_encoding(family)
    strings = [*tokenizer.control_tokens, "<", "|>", "x", "im_end|>", "<|im_", "[", "INST]"]
    text = data.draw(st.lists(st.sampled_from(strings), min_size=1, max_size=4).map("".join))
    call = ToolCall(id="abcdefghi", name="look", arguments=json.dumps({"a": text, text: [text]}))
    marked = Conversation(
        messages=(
            *(SystemMessage(text), UserMessage(text), AssistantMessage(content=text)),
            *(AssistantMessage(content=text, tool_calls=(call,)), ToolMessage(call_id="abcdefghi", content=text)),
            UserMessage(text),
        ),
        tools=(replace(LOOK, description=text, parameters={"type": text, text: text}),),
    )
    plain = Conversation(
        messages=(
            *(SystemMessage("s"), UserMessage("u"), AssistantMessage(content="c")),
            AssistantMessage(content="c", tool_calls=(replace(call, arguments='{"a": "v", "k": [1]}'),)),
            *(ToolMessage(call_id="abcdefghi", content="t"), UserMessage("u")),
        ),
        tools=(LOOK,),
    )
    control = tokenizer.control_ids
    found, clean = encoding.render(marked), encoding.render(plain)
    assert [token for token in found.ids if token in control] == [token for token in clean.ids if token in control]
    assert text in tokenizer.decode(found.ids) and len(found.turns) == len(clean.turns) == 2


def test_heads_and_reasoning() -> None:
    tokenizer, encoding = family_tokenizer("hermes"), family_encoding("hermes")
    asked = Conversation(messages=(UserMessage("a"),))
    rendered = encoding.render(asked)
    assert tokenizer.decode(rendered.ids[rendered.head :]) == "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert not rendered.in_reasoning
    thinking = encoding.render(replace(asked, thinking=Thinking.HIGH))
    assert tokenizer.decode(thinking.ids[thinking.head :]) == "<|im_start|>assistant\n"
    opened = CHATML.replace(
        "{{- '<|im_start|>assistant\\n' }}\n    {%- if enable",
        "{{- '<|im_start|>assistant\\n<think>\\n' }}\n    {%- if enable",
    )
    assert opened != CHATML
    opening = TemplateEncoding(tokenizer, Templates(opened, opened, {}))
    assert opening.render(replace(asked, thinking=Thinking.HIGH)).in_reasoning


def test_a_message_that_is_continued() -> None:
    tokenizer = family_tokenizer("hermes")
    part = Conversation(messages=(UserMessage("a"), AssistantMessage(content=" par\n")), continue_last=True)
    rendered = family_encoding("hermes").render(part)
    assert tokenizer.decode(rendered.ids).endswith("<|im_start|>assistant\n par\n")
    assert tokenizer.decode(rendered.ids[rendered.head :]).startswith("<|im_start|>")
    with pytest.raises(ChatError, match="cannot be continued"):
        family_encoding("hermes").render(replace(part, messages=(UserMessage("a"), AssistantMessage())))


def test_stop_tokens_are_what_ends_a_turn() -> None:
    for family, (_, _, end) in FAMILIES.items():
        assert family_encoding(family).stop_tokens[0] == family_tokenizer(family).control_id(end)


def test_a_template_that_refuses_says_why() -> None:
    two = AssistantMessage(tool_calls=(ToolCall(id="a", name="look"), ToolCall(id="b", name="look")))
    with pytest.raises(ChatError, match="refuses this conversation: one call at a time"):
        family_encoding("llama3").render(Conversation(messages=(UserMessage("a"), two)))


def test_a_template_that_joins_arguments_gets_them_as_text() -> None:
    joins = (
        "{% for m in messages %}{% for c in m.tool_calls %}{{ 'say ' + c.function.arguments }}{% endfor %}{% endfor %}"
    )
    tokenizer = family_tokenizer("hermes")
    said = AssistantMessage(tool_calls=(ToolCall(id="a", name="look", arguments='{"a":"é"}'),))
    rendered = TemplateEncoding(tokenizer, Templates(joins, joins, {})).render(Conversation(messages=(said,)))
    assert tokenizer.decode(rendered.ids) == 'say {"a": "é"}'


def test_a_template_reaches_nothing_outside() -> None:
    for source in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% include 'x' %}"):
        with pytest.raises(ChatError, match="fails on this conversation"):
            Template(source)({"messages": []})


def test_the_names_of_transformers() -> None:
    day = datetime.datetime(2026, 1, 2)
    assert Template("{{ strftime_now('%d %b %Y') }}", now=lambda: day)({}) == "02 Jan 2026"
    assert Template("{{ x | tojson(indent=1) }}")({"x": {"a": "<é>'"}}) == '{\n "a": "<é>\'"\n}'
    assert Template("{% generation %}a{{ x }}{% endgeneration %}\n!")({"x": 1}) == "a1!"
    assert Template("{% for i in x %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}")({"x": [1, 2, 3]}) == "1"
    with pytest.raises(ChatUnsupported, match="cannot be compiled"):
        Template("{% if %}")


def test_tools_need_a_form() -> None:
    tokenizer = family_tokenizer("hermes")
    none = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    conversation = Conversation(messages=(UserMessage("a"),), tools=(LOOK,))
    with pytest.raises(ChatUnsupported, match="knows no tools"):
        TemplateEncoding(tokenizer, Templates(none, none, {})).render(conversation)
    some = none + "{{ tools }}"
    with pytest.raises(ChatUnsupported, match="known are hermes, llama3, mistral"):
        TemplateEncoding(tokenizer, Templates(some, some, {})).render(conversation)
    named = TemplateEncoding(tokenizer, Templates(some, some, {}), tool_format="hermes")
    assert named.name == "template (hermes)" and named.render(conversation).ids
    with pytest.raises(ChatUnsupported, match="'xml' is not known"):
        TemplateEncoding(tokenizer, Templates(some, some, {}), tool_format="xml")


# ------------------------------------------------------------------ the folder


def folder_of(tmp_path: Path, family: str = "hermes", **config: Any) -> Path:
    (tmp_path / "tokenizer.json").write_text(family_definition(family), encoding="utf-8")
    tokens = {"bos_token": {"content": BOS}, "eos_token": FAMILIES[family][2]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokens | config), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_tells_the_encoding(tmp_path: Path, family: str) -> None:
    folder = folder_of(tmp_path, family, chat_template=FAMILIES[family][0])
    tokenizer = Tokenizer.from_file(folder)
    assert tokenizer.token_bytes(tokenizer.eos_id).decode() == FAMILIES[family][2]
    encoding = chat_encoding(folder, tokenizer)
    assert encoding.name == f"template ({family})"
    assert encoding.render(Conversation(messages=(UserMessage("a"),))).ids[-1] != tokenizer.eos_id


def test_templates_in_files_of_their_own(tmp_path: Path) -> None:
    listed = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    folder = folder_of(tmp_path, chat_template=listed)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    found = read_templates(folder)
    assert (found.default, found.tools, found.stop_ids) == ("D", "T", (7, 8))
    assert found.tokens["bos_token"] == BOS
    (folder / "chat_template.jinja").write_text("J")
    assert read_templates(folder).default == "J"


def test_a_folder_without_a_template_cannot_chat(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with pytest.raises(ChatUnsupported, match="has no chat template; it can complete text"):
        chat_encoding(folder, Tokenizer.from_file(folder))
    (folder / "tokenizer_config.json").write_text("[")
    with pytest.raises(ChatUnsupported, match="cannot be read"):
        read_templates(folder)

"""DeepSeek's encoding: the official vectors, the library's own ids, plain control strings, where turns stand."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache

import deepseek_recipe
import pytest
from chat_support import NANO, TOKENIZER, official, official_file
from hypothesis import given
from hypothesis import strategies as st

from foveal.text.chat import ChatError, ChatUnsupported, chat_encoding
from foveal.text.deepseek import EFFORTS_0731, DeepSeekEncoding
from foveal.text.messages import (
    AssistantMessage,
    Conversation,
    Message,
    ResponseFormat,
    SystemMessage,
    Thinking,
    ToolCall,
    ToolChoice,
    ToolDefinition,
    ToolMessage,
    ToolMode,
    UserMessage,
)
from foveal.text.specials import ASSISTANT, BOS, EOS, LAST_SPECIALS, THINK_END, THINK_START, USER
from foveal.text.tokenizer import Tokenizer

U1, U2 = UserMessage("U1"), UserMessage("U2")
A1 = AssistantMessage(content="A1", reasoning="R1")
WEATHER = ToolDefinition(
    name="get_weather", description="d", parameters={"type": "object", "properties": {"b": {"type": "string"}}}
)


@cache
def encoding() -> DeepSeekEncoding:
    return DeepSeekEncoding(official())


def prompt(*messages: Message, **options: object) -> str:
    conversation = Conversation(messages=messages, **options)  # type: ignore[arg-type]
    return official().decode(encoding().render(conversation).ids)


def ids(*messages: Message, thinking: Thinking = Thinking.OFF) -> list[int]:
    return encoding().render(Conversation(messages=messages, thinking=thinking)).ids


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world!", [19923, 14, 2058, 3]),
        ("你好，世界", [30594, 303, 3427]),
        ("1234567 12345", [6895, 18009, 25, 223, 6895, 1883]),
        ("def f(x):\n    return x*2\n\n\n", [3465, 285, 4042, 3395, 361, 1354, 1527, 12, 20, 6328]),
        ("naïve café — “quotes” …", [2720, 91223, 57664, 2136, 811, 403, 7183, 430, 5532]),
    ],
)
def test_the_official_vocabulary(text: str, expected: list[int]) -> None:
    assert official().encode(text) == expected


def test_the_official_examples() -> None:
    assert ids(UserMessage("Hello")) == [0, 128803, 19923, 128804, 128822]
    assert ids(UserMessage("Hello"), thinking=Thinking.HIGH) == [0, 128803, 19923, 128804, 128821]
    system = SystemMessage("You are a helpful assistant.")
    expected = [0, 3476, 477, 260, 11502, 22896, 16, 128803, 3085, 344, 223, 20, 13, 20, 33, 128804, 128821]
    assert ids(system, UserMessage("What is 2+2?"), thinking=Thinking.HIGH) == expected


def test_old_reasoning_is_dropped_unless_it_is_to_be_kept() -> None:
    dropped = prompt(U1, A1, U2, thinking=Thinking.HIGH)
    assert dropped == f"{BOS}{USER}U1{ASSISTANT}{THINK_END}A1{EOS}{USER}U2{ASSISTANT}{THINK_START}"
    kept = prompt(U1, A1, U2, thinking=Thinking.HIGH, drop_reasoning=False)
    assert kept == f"{BOS}{USER}U1{ASSISTANT}{THINK_START}R1{THINK_END}A1{EOS}{USER}U2{ASSISTANT}{THINK_START}"
    assert "R1" not in prompt(U1, A1, U2, drop_reasoning=False)  # without thinking there is no place for it
    assert "R1" in prompt(U1, A1, U2, thinking=Thinking.HIGH, tools=(WEATHER,))


CALLS = """\
<｜User｜>U1<｜Assistant｜><think>R1</think>C1

<｜DSML｜tool_calls>
<｜DSML｜invoke name="get_weather">
<｜DSML｜parameter name="location" string="true">Paris</｜DSML｜parameter>
<｜DSML｜parameter name="n" string="false">5</｜DSML｜parameter>
<｜DSML｜parameter name="l" string="false">[1, "x"]</｜DSML｜parameter>
<｜DSML｜parameter name="b" string="false">true</｜DSML｜parameter>
<｜DSML｜parameter name="z" string="false">null</｜DSML｜parameter>
</｜DSML｜invoke>
<｜DSML｜invoke name="t2">

</｜DSML｜invoke>
</｜DSML｜tool_calls><｜end▁of▁sentence｜><｜User｜><tool_result>RA</tool_result>

<tool_result>RB</tool_result>

U2<｜Assistant｜><think>"""


def test_tool_calls_and_results_in_the_wrong_order() -> None:
    arguments = '{"location": "Paris", "n": 5, "l": [1, "x"], "b": true, "z": null}'
    calls = (ToolCall(id="a", name="get_weather", arguments=arguments), ToolCall(id="b", name="t2"))
    said = AssistantMessage(content="C1", reasoning="R1", tool_calls=calls)
    results = ToolMessage(call_id="b", content="RB"), ToolMessage(call_id="a", content="RA")
    text = prompt(U1, said, *results, U2, thinking=Thinking.HIGH, tools=(WEATHER,))
    assert text[text.index(USER) :] == CALLS
    schema = '{"name": "get_weather", "description": "d", "parameters": {"type": "object", "properties": {"b": '
    assert schema in text and text.startswith(f"{BOS}\n\n## Tools\n\nYou have access to a set of tools")


def test_arguments_that_are_no_json_are_one_string() -> None:
    said = AssistantMessage(tool_calls=(ToolCall(id="a", name="f", arguments="not json"),))
    assert '<｜DSML｜parameter name="arguments" string="true">not json</｜DSML｜parameter>' in prompt(U1, said, U2)


def test_levels_of_thinking() -> None:
    start = "Reasoning Effort: "
    for thinking in (Thinking.OFF, Thinking.LOW, Thinking.HIGH):
        assert start not in prompt(U1, thinking=thinking)
    assert prompt(SystemMessage("S"), U1, thinking=Thinking.MAX).startswith(f"{BOS}{start}Absolute maximum with no")
    newer = DeepSeekEncoding(official(), efforts=EFFORTS_0731)
    high = newer.render(Conversation(messages=(U1,), thinking=Thinking.HIGH)).ids
    assert high == ids(U1, thinking=Thinking.MAX)
    most = newer.render(Conversation(messages=(U1,), thinking=Thinking.MAX)).ids
    assert official().decode(most).startswith(f"{BOS}{start}Beyond maximum")


def test_system_messages_stand_where_they_were_said() -> None:
    text = prompt(SystemMessage("S"), SystemMessage("T"), U1, SystemMessage("mid"), A1, U2)
    reminder = "<system-reminder>\nmid\n</system-reminder>"
    assert text == f"{BOS}S\n\nT{USER}U1\n\n{reminder}{ASSISTANT}{THINK_END}A1{EOS}{USER}U2{ASSISTANT}{THINK_END}"


def test_response_formats_are_told_to_the_model() -> None:
    assert "Reply with JSON object ONLY." in prompt(U1, response_format=ResponseFormat())
    text = prompt(U1, response_format=ResponseFormat(schema={"type": "object"}))
    assert 'schema to reply:\n{"type": "object"}<｜User｜>' in text


def test_the_choice_of_tools_changes_nothing_in_the_prompt() -> None:
    prompts = {prompt(U1, tools=(WEATHER,), tool_choice=ToolChoice(mode=mode)) for mode in ToolMode}
    assert len(prompts) == 1


def test_a_message_that_is_continued() -> None:
    rendered = encoding().render(
        Conversation(messages=(U1, AssistantMessage(content="par")), thinking=Thinking.HIGH, continue_last=True)
    )
    assert official().decode(rendered.ids).endswith(f"{ASSISTANT}{THINK_END}par")
    assert not rendered.in_reasoning and not rendered.turns
    with pytest.raises(ChatError, match="only a message of the assistant"):
        encoding().render(Conversation(messages=(U1,), continue_last=True))


def test_without_a_generation_prompt_the_prompt_ends_with_the_last_message() -> None:
    assert prompt(U1, A1, add_generation_prompt=False).endswith(f"A1{EOS}")


messages = st.lists(
    st.builds(UserMessage, st.text(max_size=20))
    | st.builds(AssistantMessage, content=st.text(max_size=20), reasoning=st.text(max_size=9))
    | st.sampled_from(LAST_SPECIALS).map(UserMessage)
    | st.builds(SystemMessage, st.text(max_size=9)),
    min_size=1,
    max_size=6,
)


@given(messages, st.sampled_from([Thinking.OFF, Thinking.HIGH]), st.booleans())
def test_ids_are_those_of_deepseeks_own_encoder(said: list[Message], thinking: Thinking, tools: bool) -> None:
    conversation = Conversation(messages=tuple(said), thinking=thinking, tools=(WEATHER,) if tools else ())
    ours = encoding().render(conversation)
    assert ours.ids == _library().encode(encoding()._translated(conversation))
    answers = [i for i, message in enumerate(said) if isinstance(message, AssistantMessage)]
    assert [turn.message for turn in ours.turns] == answers
    for turn in ours.turns:
        inside = official().decode(ours.ids[turn.start : turn.end])
        assert inside.startswith(ASSISTANT) and inside.endswith(EOS)
    assert official().decode(ours.ids[ours.head :]).startswith(ASSISTANT)


@cache
def _library() -> deepseek_recipe.DeepseekV4Encoding:
    tokenizer = deepseek_recipe.Tokenizer.from_file(str(official_file()))
    return deepseek_recipe.DeepseekV4Encoding().with_tokenizer(tokenizer)


@given(st.lists(st.sampled_from([*LAST_SPECIALS, BOS, EOS, "x", "<"]), max_size=5).map("".join))
def test_control_strings_stay_plain_text_wherever_they_stand(text: str) -> None:
    call = ToolCall(id="a", name="f", arguments=json.dumps({"a": text, "b": [text]}))
    said = AssistantMessage(content=text, reasoning=text, tool_calls=(call,))
    tool = ToolDefinition(name="f", description=text, parameters={"type": "object", "properties": {text: {}}})
    marked = (SystemMessage(text), UserMessage(text), said, ToolMessage(call_id="a", content=text), UserMessage(text))
    plain = Conversation(messages=marked, tools=(tool,), thinking=Thinking.HIGH)
    control = official().control_ids
    found = [token for token in encoding().render(plain).ids if token in control]
    clean = replace(
        plain,
        messages=(
            *(SystemMessage("s"), UserMessage("u")),
            AssistantMessage(content="c", reasoning="r", tool_calls=(replace(call, arguments='{"a": "v", "b": [1]}'),)),
            *(ToolMessage(call_id="a", content="t"), UserMessage("u")),
        ),
        tools=(replace(tool, description="d"),),
    )
    expected = [token for token in encoding().render(clean).ids if token in control]
    assert found == expected if text else len(found) <= len(expected)


def test_lone_surrogates_do_not_break_a_prompt() -> None:
    assert "a\ufffdb" in prompt(UserMessage("a\ud800b"))


def test_the_nano_chats_in_deepseeks_form() -> None:
    nano = chat_encoding(NANO, TOKENIZER)
    assert nano.name == "deepseek-v4" and nano.stop_tokens == (1,)
    rendered = nano.render(Conversation(messages=(U1,)))
    assert rendered.ids[0] == 0 and rendered.ids[-1] == TOKENIZER.control_id(THINK_END)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepseek_recipe", None)
    with pytest.raises(ChatUnsupported, match=r"deepseek-recipe; install it with: pip install 'foveal\[serve\]'"):
        DeepSeekEncoding(TOKENIZER)


def test_calls_are_not_looked_for_where_they_are_forbidden() -> None:
    none = Conversation(messages=(U1,), tool_choice=ToolChoice(mode=ToolMode.NONE))
    parser = encoding().parser(none, encoding().render(none))
    for token in official().encode("a\n\n<｜DSML｜tool_calls>b", special=True):
        parser.push(token)
    parser.flush()
    assert parser.reply().message == AssistantMessage(content="a\n\n<tool_calls>b")


def test_a_tokenizer_names_its_own_ends() -> None:
    assert isinstance(official(), Tokenizer) and official().special_ids >= {0, 1, 2}


def test_a_tool_that_cannot_be_told_to_the_model_is_refused() -> None:
    deep: dict[str, object] = {}
    for _ in range(200):
        deep = {"properties": {"a": deep}}
    for parameters, why in ((deep, "nested too deeply"), ({"const": 10**30}, "a number")):
        tools = (ToolDefinition(name="f", parameters=parameters),)
        with pytest.raises(ChatError, match=why):
            chat_encoding(NANO, TOKENIZER).render(Conversation(messages=(UserMessage("x"),), tools=tools))

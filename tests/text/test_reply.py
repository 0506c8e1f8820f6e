"""Replies: the same however they are cut, no markup in the content, nothing lost."""

from __future__ import annotations

import json
from functools import cache
from random import Random
from typing import Any

import deepseek_recipe
import pytest
from chat_support import TOKENIZER, counted, cut_tokens, family_tokenizer, joined, official, read
from hypothesis import given
from hypothesis import strategies as st

from foveal.text import Tokenizer
from foveal.text.dsml import DsmlSyntax
from foveal.text.events import CallEnd, CallStart, ContentDelta, Problem, ReasoningDelta
from foveal.text.reply import Markup, Reply, ReplyParser
from foveal.text.reply_stream import ReplyStream
from foveal.text.source import Alphabet
from foveal.text.specials import DSML, EOS, THINK_END, THINK_START, USER
from foveal.text.tools import MARKS, SYNTAXES

D = DSML
TOOLS = ("look", "add")


@cache
def dsml() -> Markup:
    alphabet = Alphabet(TOKENIZER, TOKENIZER.control_ids)
    think = alphabet.tag(THINK_START), alphabet.tag(THINK_END)
    return Markup(alphabet=alphabet, think=think, tools=DsmlSyntax(alphabet), ends=frozenset([TOKENIZER.eos_id]))


def json_markup(family: str) -> tuple[Tokenizer, Markup]:
    """Made anew for each reply, as an encoding does."""
    tokenizer = family_tokenizer(family)
    control = tokenizer.control_tokens
    marks = [mark for mark in (*MARKS[family], THINK_START, THINK_END) if mark in control]
    alphabet = Alphabet(tokenizer, tokenizer.special_ids | {control[mark] for mark in marks})
    think = (alphabet.tag(THINK_START), alphabet.tag(THINK_END)) if family == "hermes" else None
    syntax = SYNTAXES[family](alphabet, TOOLS)
    return tokenizer, Markup(alphabet=alphabet, think=think, tools=syntax, ends=frozenset([tokenizer.eos_id]))


def markup_of(family: str) -> tuple[Tokenizer, Markup]:
    return (TOKENIZER, dsml()) if family == "dsml" else json_markup(family)


def parameter(name: str, value: str, is_string: bool = True) -> str:
    return f'<{D}parameter name="{name}" string="{str(is_string).lower()}">{value}</{D}parameter>'


def invoke(name: str, *parameters: str) -> str:
    return f'<{D}invoke name="{name}">\n' + "\n".join(parameters) + f"\n</{D}invoke>"


def block(*calls: str) -> str:
    return f"\n\n<{D}tool_calls>\n" + "\n".join(calls) + f"\n</{D}tool_calls>"


WHOLE = block(
    invoke("look", parameter("where", 'x "q" \\ </p> é\n<tool_result>'), parameter("n", "[1, 2]", False)), invoke("add")
)
HERMES = (
    '\n<tool_call>\n{"name": "look", "arguments": {"where": "}</tool_call> {\\"é", "n": [1, {"a": 2}]}}\n</tool_call>'
)
SWAPPED = '<tool_call>{"arguments": {"n": 1}, "name": "add"}</tool_call>'

REPLIES: dict[str, list[str]] = {
    "dsml": [
        "",
        "hello",
        "\n\nhello\n\n",
        f"hello{WHOLE}",
        f"hello{WHOLE}after\n\nmore{WHOLE}",
        f"think\n\nmore{THINK_END}\n\nhello 😀{WHOLE}",
        f"think without an end{WHOLE}",
        f"\n{THINK_START}twice{THINK_END}x",
        "hello\n\n<",
        f"hello\n\n<{D}",
        f"hello\n\n<{D}tool_calls>",
        WHOLE[:90],
        WHOLE[:-12],
        WHOLE[:-30],
        f"a{WHOLE.replace('invoke name', 'invoke nam', 1)}b",
        f"a{WHOLE.replace('[1, 2]', '[1, NaN]')}b",
        f"a{WHOLE.replace(chr(34) + 'n' + chr(34), chr(34) + 'where' + chr(34))}b",
        f"x {D}tool_calls> y {USER} z </{D}tool_calls> w",
        f"a{THINK_END}b{THINK_START}c",
        f'x <{D}invoke name="look">\n</{D}invoke> y',
        f'x <{D}invoke name="look">\n {D} y',
        f"STOP{WHOLE}",
        "say ST OP, ST",
        "a\n\nSTOP\n",
        f"literal: ｜D​SML｜ <|tool_calls> </p> {WHOLE}",
    ],
    "hermes": [
        "hello",
        f"hello{HERMES}{HERMES}",
        f"hello{SWAPPED} tail",
        f"<think>\nwhy\n</think>\n\nhello{HERMES}",
        f"hello{HERMES[:40]}",
        f"hello{HERMES[:-10]}",
        f"hello{HERMES[:-12]} x",
        "a<tool_call>no json</tool_call>b",
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>b',
        '<tool_call>{"name": "look", "arguments": {a: 1}}</tool_call>b',
        '<tool_call>{"name": "look", "arguments": "{\\"a\\": 1}"}</tool_call>b',
        '<tool_call>{"name": "look", "arguments": {}, "x": 1}</tool_call>b',
        "a</tool_call>b</think>c",
        "<tool_call",
        "a <tool_cal x",
        '<tool_call>{"name": "' + "n" * 600 + '", "arguments": {"a": 1}}</tool_call>b',
        '<tool_call>{"name": "look", "arguments": [1]}</tool_call>b',
    ],
    "llama3": [
        "hello",
        '{"name": "look", "parameters": {"where": "};{"}}',
        '<|python_tag|>{"name": "add", "parameters": {}}; {"name": "look", "parameters": {"n": 1}}',
        '{"name": "unknown", "parameters": {}}',
        '{"answer": 42}',
        ' {"name": "look", "parameters"',
        "{not json} at all",
        '{"name": "look", "parameters": {}} and more',
        "<|python_tag|>print(1)",
    ],
    "mistral": [
        "hello",
        '[TOOL_CALLS][{"name": "look", "arguments": {"a": "]"}, "id": "abcdefghi"}, {"name": "add", "arguments": {}}]',
        'x[TOOL_CALLS]look[ARGS]{"a": 1}[TOOL_CALLS]add[CALL_ID]abc[ARGS]{}',
        "[TOOL_CALLS]look",
        "[TOOL_CALLS][{]",
        'x[TOOL_CALLS]lo{ok[ARGS]{"a": 1}',
        "x[ARGS]y",
        "[TOOL_CALLS][1]",
        "[TOOL_CALLS]" + "n" * 600 + "[ARGS]{}b",
    ],
}
CASES = [(family, reply) for family, replies in REPLIES.items() for reply in replies]


@pytest.mark.parametrize(("family", "reply"), CASES)
@pytest.mark.parametrize("in_reasoning", [False, True])
def test_a_reply_is_the_same_however_it_is_cut(family: str, reply: str, in_reasoning: bool) -> None:
    if in_reasoning and family in ("llama3", "mistral"):
        in_reasoning = False
    options: dict[str, Any] = {"in_reasoning": in_reasoning, "stop": ("STOP", "ST OP,")}
    tokenizer, markup = markup_of(family)
    whole = read(tokenizer, markup, cut_tokens(tokenizer, reply, Random(0), 10**6), **options)
    for seed in range(12):
        ids = cut_tokens(tokenizer, reply, Random(seed), (1, 2, 3, 7)[seed % 4])
        assert read(tokenizer, markup_of(family)[1], ids, **options) == whole


@pytest.mark.parametrize(("family", "reply"), CASES)
def test_text_without_ids_is_the_same_at_every_cut(family: str, reply: str) -> None:
    options: dict[str, Any] = {"literal": True, "stop": ("STOP",)}
    tokenizer, markup = markup_of(family)
    whole = read(tokenizer, markup, [reply], **options)
    assert read(tokenizer, markup_of(family)[1], list(reply), **options) == whole
    for cut in range(1, min(len(reply), 400)):
        assert read(tokenizer, markup_of(family)[1], [reply[:cut], reply[cut:]], **options) == whole


@given(st.sampled_from(CASES), st.integers(0, 2**32), st.integers(1, 9))
def test_every_beginning_says_a_beginning_of_the_whole(case: tuple[str, str], seed: int, longest: int) -> None:
    """What has been said is never taken back."""
    tokenizer, markup = markup_of(case[0])
    ids = cut_tokens(tokenizer, case[1], Random(seed), longest)
    parser = ReplyParser(tokenizer, markup, new_id=counted())
    said = ""
    for token in ids:
        said += "".join(e.text for e in parser.push(token) if isinstance(e, ContentDelta))
        assert parser.reply().message.content == said
    parser.flush()
    assert parser.reply().message.content.startswith(said)


# ------------------------------------------------------------------ what replies say


def said(family: str, reply: str, **options: Any) -> Reply:
    tokenizer, markup = markup_of(family)
    return read(tokenizer, markup, cut_tokens(tokenizer, reply, Random(1), 3), **options)[1]


def test_reasoning_content_and_calls_are_told_apart() -> None:
    reply = said("dsml", f"why{THINK_END}hello{WHOLE}", in_reasoning=True)
    assert (reply.message.reasoning, reply.message.content) == ("why", "hello")
    first, second = reply.message.tool_calls
    assert (first.name, second.name, second.arguments) == ("look", "add", "{}")
    assert first.arguments == '{"where": "x \\"q\\" \\\\ </p> é\\n<tool_result>", "n": [1, 2]}'
    assert reply.problems == ()


def test_tokens_of_the_reasoning_are_counted() -> None:
    parser = ReplyParser(TOKENIZER, dsml(), in_reasoning=True)
    reasoning = TOKENIZER.encode("why is that so")
    for token in [*reasoning, TOKENIZER.control_id(THINK_END), *TOKENIZER.encode("because")]:
        parser.push(token)
    assert parser.reply().reasoning_tokens == len(reasoning) + 1


def test_control_strings_in_plain_tokens_are_content() -> None:
    ids = TOKENIZER.encode(f"use {WHOLE} or {THINK_END}")
    _, reply = read(TOKENIZER, dsml(), ids)
    assert reply.message.content == f"use {WHOLE} or {THINK_END}"
    assert reply.problems == ()


def test_a_value_may_hold_markup_in_plain_tokens_and_control_tokens() -> None:
    quoted = f"<{D}invoke> {USER}"
    reply = said("dsml", block(invoke("look", parameter("a", quoted))))
    assert json.loads(reply.message.tool_calls[0].arguments) == {"a": quoted}


@pytest.mark.parametrize(
    ("reply", "content", "names", "problem"),
    [
        (WHOLE[:90], "", [], "the reply ended"),
        (WHOLE.replace("[1, 2]", "[1, 2"), "", ["look", "add"], "is no JSON"),
        (WHOLE.replace('"n"', '"where"'), "", ["look", "add"], "came twice"),
        (WHOLE.replace("<｜DSML｜param", "<｜DSML｜pram", 1) + "x", "x", [], "something else stands"),
        (f"a{USER}b", "ab", [], "control token"),
        (f"a\n\n<{D}tool_calls>\n</{D}tool_calls>", "a", [], "no call"),
    ],
)
def test_what_is_broken_is_told(reply: str, content: str, names: list[str], problem: str) -> None:
    found = said("dsml", reply)
    assert found.message.content == content
    assert [call.name for call in found.message.tool_calls] == names
    assert len(found.problems) == 1 and problem in found.problems[0].message
    assert found.problems[0].raw


@pytest.mark.parametrize(
    ("family", "reply", "content", "calls"),
    [
        ("hermes", f"hello{HERMES}", "hello", [("look", {"where": '}</tool_call> {"é', "n": [1, {"a": 2}]})]),
        ("hermes", f"hello{SWAPPED} tail", "hellotail", [("add", {"n": 1})]),
        ("llama3", REPLIES["llama3"][1], "", [("look", {"where": "};{"})]),
        ("llama3", REPLIES["llama3"][2], "", [("add", {}), ("look", {"n": 1})]),
        ("llama3", '{"answer": 42}', '{"answer": 42}', []),
        ("mistral", REPLIES["mistral"][1], "", [("look", {"a": "]"}), ("add", {})]),
        ("mistral", REPLIES["mistral"][2], "x", [("look", {"a": 1}), ("add", {})]),
    ],
)
def test_other_families(family: str, reply: str, content: str, calls: list[tuple[str, Any]]) -> None:
    message = said(family, reply).message
    assert message.content == content
    assert [(call.name, json.loads(call.arguments)) for call in message.tool_calls] == calls


def test_markup_where_it_means_nothing_does_not_swallow_the_rest() -> None:
    reply = said("dsml", f"in <{D}x> thought{THINK_END}said </{D}invoke>all <{D} of it", in_reasoning=True)
    assert (reply.message.reasoning, reply.message.content) == ("in x> thought", "said all  of it")
    assert [problem.raw for problem in reply.problems] == [f"<{D}", f"</{D}invoke>", f"<{D}"]


def test_arguments_stream_as_they_come() -> None:
    for family, reply in (("dsml", WHOLE), ("hermes", HERMES)):
        tokenizer, markup = markup_of(family)
        parser = ReplyParser(tokenizer, markup)
        ids = cut_tokens(tokenizer, reply, Random(0), 1)
        events = [event for token in ids for event in parser.push(token)]
        assert len(events) > 20
        assert isinstance(events[0], CallStart)


def test_a_stop_string_ends_the_content_only() -> None:
    reply = said("dsml", f"STOP it{THINK_END}hello STOP it", in_reasoning=True, stop=("STOP",))
    assert reply.message.reasoning == "STOP it"
    assert (reply.message.content, reply.stopped_by) == ("hello ", "STOP")
    reply = said("dsml", block(invoke("look", parameter("a", "STOP"))), stop=("STOP",))
    assert reply.stopped_by is None and len(reply.message.tool_calls) == 1


def test_a_continued_reply_keeps_its_first_line_breaks() -> None:
    assert said("dsml", "\n\nb", continues=True).message.content == "\n\nb"
    assert said("dsml", "\n\nb").message.content == "b"


def test_the_end_token_is_no_part_of_the_reply() -> None:
    assert said("dsml", f"hello{EOS}").message.content == "hello"


# ------------------------------------------------------------------ nothing leaks, nothing is lost

FRAGMENTS = {
    "dsml": [
        *(f"<{D}tool_calls>", f"</{D}tool_calls>", f'<{D}invoke name="look">', f"</{D}invoke>", f"</{D}parameter>"),
        *(f'<{D}parameter name="a" string="true">', f'<{D}parameter name="n" string="false">', D, f"<{D}", USER),
        *(THINK_START, THINK_END, "\n\n", "<", ">"),
    ],
    "hermes": [
        "<tool_call>",
        "</tool_call>",
        '{"name": "look", "arguments": ',
        "{}",
        "}",
        "<think>",
        "</think>",
        "\n",
        '"',
    ],
    "llama3": ["<|python_tag|>", '{"name": "look", "parameters": ', "{}", "}", ";", "\n", '"'],
    "mistral": ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", '{"name": "look", "arguments": ', "[", "]", "{}", "}", "\n"],
}


@given(st.data())
def test_nothing_leaks_and_nothing_is_lost(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(sorted(FRAGMENTS)))
    parts = data.draw(st.lists(st.sampled_from(FRAGMENTS[family]) | st.integers(0, 9), max_size=16))
    reply = "".join(f"word{part}é" if isinstance(part, int) else part for part in parts)
    tokenizer, markup = markup_of(family)
    options = {"in_reasoning": data.draw(st.booleans()) and family in ("dsml", "hermes")}
    whole = read(tokenizer, markup, cut_tokens(tokenizer, reply, Random(0), 10**6), **options)
    seed, longest = data.draw(st.integers(0, 999)), data.draw(st.integers(1, 5))
    ids = cut_tokens(tokenizer, reply, Random(seed), longest)
    assert read(tokenizer, markup_of(family)[1], ids, **options) == whole
    message, problems = whole[1].message, whole[1].problems
    for mark in (D, USER, THINK_START, THINK_END, *MARKS.get(family, ())):
        assert mark not in message.content and mark not in message.reasoning
    everything = message.content + message.reasoning + "".join(problem.raw for problem in problems)
    everything += "".join(call.name + call.arguments for call in message.tool_calls)
    for part in parts:
        assert not isinstance(part, int) or f"word{part}" in everything
    for call in message.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)
    begun = {event.index for event in whole[0] if isinstance(event, CallStart)}
    ended = {event.index for event in whole[0] if isinstance(event, CallEnd)}
    assert begun - ended == {p.index for p in problems if p.index is not None}


# ------------------------------------------------------------------ beside DeepSeek's own parser

plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="｜<\n"), min_size=1, max_size=12)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | plain_text,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@st.composite
def sound_reply(draw: st.DrawFn) -> tuple[str, bool]:
    reasons = draw(st.booleans())
    reply = draw(plain_text) + THINK_END if reasons else ""
    reply += draw(plain_text | st.just(""))
    calls = []
    for name in draw(st.lists(st.sampled_from(TOOLS), max_size=3)):
        names = draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=3))
        values = [(key, draw(json_value)) for key in names]
        calls.append(
            invoke(
                name,
                *(
                    parameter(key, value if isinstance(value, str) else json.dumps(value), isinstance(value, str))
                    for key, value in values
                ),
            )
        )
    return reply + (block(*calls) if calls else ""), reasons


@given(sound_reply(), st.integers(0, 999))
def test_sound_replies_are_read_as_deepseeks_library_reads_them(reply: tuple[str, bool], seed: int) -> None:
    text, reasons = reply
    message = said("dsml", text, in_reasoning=reasons).message
    theirs = library_reads(text, reasons)
    assert (message.reasoning, message.content) == theirs[:2]
    ours = [(call.name, json.loads(call.arguments)) for call in message.tool_calls]
    assert ours == [(name, json.loads(arguments)) for name, arguments in theirs[2]]


def library_reads(text: str, reasons: bool) -> tuple[str, str, list[tuple[str, str]]]:
    conversation = deepseek_recipe.Conversation([deepseek_recipe.UserMessage("x")], thinking_mode=reasons)
    request = deepseek_recipe.ConversationRequest(conversation, deepseek_recipe.ModelVersion.DeepseekV4Pro)
    stage = deepseek_recipe.ThinkingInitialStage.ReasoningStart if reasons else None
    processor = deepseek_recipe.StreamProcessor(
        deepseek_recipe.ChatCompletionRequest.chunk_generator(request, "id", "m"),
        deepseek_recipe.ParsingOptions(thinking_initial_stage=stage),
    )
    chunks = processor.push(deepseek_recipe.InferenceChunk.ready())
    chunks += processor.push(deepseek_recipe.InferenceChunk.text(text, 1))
    chunks += processor.push(deepseek_recipe.InferenceChunk.finish(deepseek_recipe.InferenceFinishReason.Stop))
    reasoning, content, calls = "", "", {}
    for chunk in chunks + processor.finish():
        for choice in json.loads(chunk.to_json())["choices"]:
            delta = choice["delta"]
            reasoning += delta.get("reasoning_content") or ""
            content += delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                name, arguments = calls.get(call["index"], ("", ""))
                function = call["function"]
                calls[call["index"]] = name + function.get("name", ""), arguments + function.get("arguments", "")
    return reasoning, content, list(calls.values())


def test_the_official_vocabulary_reads_the_same() -> None:
    tokenizer = official()
    alphabet = Alphabet(tokenizer, tokenizer.control_ids)
    markup = Markup(alphabet=alphabet, think=None, tools=DsmlSyntax(alphabet), ends=frozenset([tokenizer.eos_id]))
    ids = tokenizer.encode(f"hello{WHOLE}", special=True)
    assert read(tokenizer, markup, ids)[1].message == said("dsml", f"hello{WHOLE}").message


def test_joined_events_keep_their_order() -> None:
    events = [ReasoningDelta("a"), ReasoningDelta("b"), Problem("p", "r"), ContentDelta("c")]
    assert joined(events) == [ReasoningDelta("ab"), Problem("p", "r"), ContentDelta("c")]


def test_a_reply_as_the_text_stream_of_a_request() -> None:
    stream = ReplyStream(ReplyParser(TOKENIZER, dsml(), stop=("STOP",), new_id=counted()))
    text = "".join(stream.push(token) for token in TOKENIZER.encode(f"hello{WHOLE}", special=True)) + stream.flush()
    assert text == "hello" and not stream.stopped
    assert joined(stream.take()) == read(TOKENIZER, dsml(), TOKENIZER.encode(f"hello{WHOLE}", special=True))[0]
    assert stream.take() == []
    stream = ReplyStream(ReplyParser(TOKENIZER, dsml(), stop=("STOP",)))
    assert "".join(stream.push(token) for token in TOKENIZER.encode("a STOP b")) == "a "
    assert stream.stopped

"""Replies held to a form: what comes out is valid, every beginning can go on, the end comes when it is whole."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest
from chat_support import CHATML, NANO, TOKENIZER, family_encoding, family_tokenizer, official
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.errors import ParameterError
from foveal.text import Tokenizer
from foveal.text.chat import ChatEncoding, ChatUnsupported, chat_encoding
from foveal.text.constraint import (
    Constraint,
    ConstraintError,
    GrammarConstraint,
    Vocabulary,
    constrained,
    json_grammar,
    lark_grammar,
    regex_grammar,
    reply_constraint,
    vocabulary,
)
from foveal.text.messages import (
    Conversation,
    ResponseFormat,
    Thinking,
    ToolChoice,
    ToolDefinition,
    ToolMode,
    UserMessage,
)
from foveal.text.reply import Reply
from foveal.text.specials import BOS, DSML, EOS, THINK_END, THINK_START
from foveal.text.template import TemplateEncoding
from foveal.text.template_files import Templates

ASKED = Conversation(messages=(UserMessage("x"),))
REQUIRED = ToolChoice(mode=ToolMode.REQUIRED)


@cache
def deepseek() -> ChatEncoding:
    return chat_encoding(NANO, TOKENIZER)


@cache
def encodings() -> dict[str, tuple[ChatEncoding, Tokenizer]]:
    found: dict[str, tuple[ChatEncoding, Tokenizer]] = {"deepseek": (deepseek(), TOKENIZER)}
    for family in ("hermes", "llama3", "mistral"):
        found[family] = (family_encoding(family), family_tokenizer(family))
    spelled = CHATML.replace("<|im_start|>", BOS).replace("<|im_end|>", EOS)
    found["spelled"] = (TemplateEncoding(TOKENIZER, Templates(spelled, spelled, {})), TOKENIZER)
    return found


def walk(
    constraint: Constraint, tokenizer: Tokenizer, random: Random, patience: int = 40, most: int = 2000
) -> list[int]:
    """A reply of random allowed tokens, checked at every step. After `patience` tokens it makes for the end."""
    ids: list[int] = []
    closing = _closers(tokenizer)
    while len(ids) < most:
        mask = constraint.allowed()
        allowed = np.flatnonzero(mask)
        assert len(allowed) and len(mask) == tokenizer.vocab_size
        may_end = tokenizer.eos_id in allowed
        assert may_end == constraint.complete
        if may_end and (len(ids) > patience or len(allowed) == 1 or random.random() < 0.3):
            return ids
        going = allowed[allowed != tokenizer.eos_id]
        if len(ids) > patience:
            ends = [token for token in going.tolist() if token in closing]
            going = np.array(ends) if ends and random.random() < 0.9 else going
        ids.append(int(random.choice(going.tolist())))
        constraint.accept(ids[-1])
    raise AssertionError(f"no end after {most} tokens: {tokenizer.decode(ids)[:300]!r}")


@cache
def _closers(tokenizer: Tokenizer) -> frozenset[int]:
    ends = {b'"', b"}", b"]", b"</", b"<", b"\n", b'"}', b'"]', b"0", b"1", b"]}"}
    tokens = range(tokenizer.vocab_size)
    return frozenset(i for i in tokens if tokenizer.token_bytes(i) in ends) | tokenizer.control_ids


def reply_of(encoding: ChatEncoding, conversation: Conversation, ids: list[int]) -> Reply:
    parser = encoding.parser(conversation, encoding.render(conversation))
    for token in ids:
        parser.push(token)
    parser.flush()
    return parser.reply()


def held(
    conversation: Conversation, encoding: ChatEncoding | None = None, tokenizer: Tokenizer = TOKENIZER
) -> Constraint:
    encoding = encoding or deepseek()
    found = reply_constraint(encoding, tokenizer, conversation, encoding.render(conversation))
    assert found is not None
    return found


# ------------------------------------------------------------------ JSON schemas

names = st.sampled_from(["a", "b", "é c", 'q"'])


def _object(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(properties: dict[str, Any], required: set[str]) -> dict[str, Any]:
        needed = sorted(required & set(properties))
        return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}

    return st.builds(build, st.dictionaries(names, inner, max_size=3), st.sets(names))


leaves = st.one_of(
    st.sampled_from(
        [
            *({"type": "null"}, {"type": "boolean"}, {"const": "x y"}, {"const": 3}, {"enum": ["r", "é", 5, None]}),
            *({"type": "string", "maxLength": 5}, {"type": "string", "minLength": 2, "maxLength": 4}),
            *({"type": "string", "pattern": "^[ab]{1,3}c?$"}, {"type": ["string", "null"], "maxLength": 3}),
            *({"$ref": "#/$defs/leaf"}, {"type": "number", "minimum": 0, "maximum": 1}),
        ]
    ),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-50, 50),
        st.integers(0, 99),
    ),
)


def _array(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    sizes = st.tuples(st.integers(0, 2), st.integers(0, 2))
    return st.builds(
        lambda i, s: {"type": "array", "items": i, "minItems": s[0], "maxItems": s[0] + s[1]}, inner, sizes
    )


def _any_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(lambda branches: {"anyOf": branches}, st.lists(inner, min_size=1, max_size=3))


schemas = st.recursive(leaves, lambda inner: _object(inner) | _array(inner) | _any_of(inner), max_leaves=6)
objects = _object(schemas)
SHARED = {"$defs": {"leaf": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "additionalProperties": False}}}


@given(schemas, st.integers(0, 999))
@settings(max_examples=60)
def test_whatever_is_written_is_valid(schema: dict[str, Any], seed: int) -> None:
    schema = {**schema, **SHARED}
    conversation = replace(ASKED, response_format=ResponseFormat(schema=schema))
    text = TOKENIZER.decode(walk(held(conversation), TOKENIZER, Random(seed)))
    assert jsonschema.validators.validator_for(schema)(schema).is_valid(json.loads(text)), text


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "minItems": 1, "items": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}},
    ],
)
def test_a_schema_whose_values_never_end_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="without an end"):
        held(replace(ASKED, response_format=ResponseFormat(schema=schema)))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False},
        {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["a"]},
        {"type": "array", "items": {"$ref": "#"}},
    ],
)
def test_a_schema_that_refers_to_itself_and_ends_is_followed(schema: dict[str, Any]) -> None:
    assert held(replace(ASKED, response_format=ResponseFormat(schema=schema))).allowed().any()


@pytest.mark.parametrize("strict", [True, False])
def test_parameters_may_refer_to_their_own_tool(strict: bool) -> None:
    schema = {
        "type": "object",
        "properties": {
            "v": {"type": "integer", "minimum": 1, "maximum": 3},
            "default": {"$ref": "#/properties/v"},
            "next": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
        },
        "required": ["v", "default", "next"],
        "additionalProperties": False,
    }
    tool = ToolDefinition(name="t", parameters=schema, strict=strict)
    asked = replace(ASKED, tools=(tool,), tool_choice=replace(REQUIRED, parallel=False))
    nested = 0
    for seed in range(20):
        reply = reply_of(deepseek(), asked, walk(held(asked), TOKENIZER, Random(seed), patience=200))
        for call in reply.message.tool_calls:
            arguments = json.loads(call.arguments)
            jsonschema.validate(arguments, schema)
            nested += len(arguments["next"])
    assert nested


def test_any_json_object() -> None:
    constraint = held(replace(ASKED, response_format=ResponseFormat()))
    for seed in range(3):
        text = TOKENIZER.decode(walk(held(replace(ASKED, response_format=ResponseFormat())), TOKENIZER, Random(seed)))
        assert isinstance(json.loads(text), dict)
    with pytest.raises(ConstraintError, match="cannot be followed any further") as caught:
        constraint.accept(TOKENIZER.encode("x")[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "foo"}}}}, "/properties/a/items"),
        ({"$defs": {"d": {"not": {}}}, "properties": {"a/b": {"$ref": "#/$defs/e"}}}, "/properties/a~1b"),
        ({"anyOf": [{"type": "string"}, {"uniqueItems": True, "type": "array"}]}, "/anyOf/1"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "schema cannot"),
        ({"type": "object", "properties": {"p": {"type": "string", "pattern": "(?=a)b"}}}, "/properties/p"),
        ({"type": "object", "properties": [1]}, "properties must be an object"),
        ({"enum": []}, "schema cannot"),
        ([1], "a schema is an object or true or false, not list"),
        ({"const": {1, 2}}, "not JSON serializable"),
        ({"type": "integer", "minimum": 10**30}, "integers are followed from"),
        ({"type": "array", "items": {"type": "integer", "maximum": -1e19}}, "/items cannot"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_by_its_place(schema: Any, place: str) -> None:
    with pytest.raises(ParameterError, match="cannot be followed") as caught:
        json_grammar(ResponseFormat(schema=schema))
    assert place in str(caught.value)
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    tool = ToolDefinition(name="t", parameters=parameters, strict=True)
    with pytest.raises(ParameterError, match="tools/t/parameters"):
        deepseek().calls_grammar([tool], REQUIRED, free=False)


def test_without_strict_what_cannot_be_followed_is_left_out() -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"type": "null"}, "type": "integer"}}, "required": ["a"]}
    constraint = held(replace(ASKED, response_format=ResponseFormat(schema=schema, strict=False)))
    assert isinstance(json.loads(TOKENIZER.decode(walk(constraint, TOKENIZER, Random(0))))["a"], int)


# ------------------------------------------------------------------ regular expressions and grammars


@pytest.mark.parametrize("regex", ["[a-c]{2,5}", "(yes|no)/[0-9]+", "a\n?b", r"\d{4}-\d\d", "é+😀?"])
def test_regular_expressions(regex: str) -> None:
    for seed in range(5):
        constraint = GrammarConstraint(vocabulary(TOKENIZER, (1,)), regex_grammar(regex))
        text = TOKENIZER.decode(walk(constraint, TOKENIZER, Random(seed)))
        assert re.fullmatch(regex, text)


def test_grammars() -> None:
    grammar = lark_grammar('start: "a" start "b" | "c"\n')
    text = TOKENIZER.decode(walk(GrammarConstraint(vocabulary(TOKENIZER, (1,)), grammar), TOKENIZER, Random(5)))
    assert re.fullmatch("a*cb*", text) and text.count("a") == text.count("b")
    with pytest.raises(ParameterError, match=r"the grammar cannot be followed: .*unknown name"):
        lark_grammar("start: nothing\n")
    with pytest.raises(ParameterError, match="look-around"):
        regex_grammar("(?=a)")


# ------------------------------------------------------------------ tools

LOOK = ToolDefinition(
    name="look",
    parameters={
        "type": "object",
        "properties": {
            "where": {"type": "string", "minLength": 1, "maxLength": 8},
            "how": {"enum": ["near", "far & <wide>", None]},
            "what": {"anyOf": [{"type": "string", "pattern": "^[x-z]+$", "maxLength": 4}, {"$ref": "#/$defs/n"}]},
            "deep": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 2},
            "day": {"type": "string", "format": "date"},
        },
        "required": ["where", "what"],
        "additionalProperties": False,
        "$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    },
    strict=True,
)
PING = ToolDefinition(name="ping", description="no arguments", strict=True)
SCHEMAS = {"look": LOOK.parameters, "ping": {"type": "object", "maxProperties": 0}}


def check_calls(reply: Reply, schemas: Any = SCHEMAS) -> int:
    assert reply.problems == ()
    for call in reply.message.tool_calls:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])
    return len(reply.message.tool_calls)


@pytest.mark.parametrize("family", ["deepseek", "hermes", "llama3", "mistral", "spelled"])
@pytest.mark.parametrize("seed", range(4))
def test_forced_tools_are_called(family: str, seed: int) -> None:
    encoding, tokenizer = encodings()[family]
    conversation = replace(ASKED, tools=(LOOK, PING), tool_choice=REQUIRED)
    ids = walk(held(conversation, encoding, tokenizer), tokenizer, Random(seed))
    reply = reply_of(encoding, conversation, ids)
    assert check_calls(reply) >= 1 and reply.message.content == ""


@pytest.mark.parametrize("family", ["deepseek", "hermes", "llama3", "mistral", "spelled"])
def test_one_named_tool_is_called_once(family: str) -> None:
    encoding, tokenizer = encodings()[family]
    choice = ToolChoice(mode=ToolMode.REQUIRED, name="ping", parallel=False)
    conversation = replace(ASKED, tools=(LOOK, PING), tool_choice=choice)
    reply = reply_of(encoding, conversation, walk(held(conversation, encoding, tokenizer), tokenizer, Random(0)))
    assert check_calls(reply) == 1 and reply.message.tool_calls[0].name == "ping"
    with pytest.raises(ParameterError, match="'pong', which is not among the tools"):
        held(replace(conversation, tool_choice=replace(choice, name="pong")), encoding, tokenizer)


@given(objects, st.integers(0, 999))
@settings(max_examples=60)
def test_calls_follow_any_schema(schema: dict[str, Any], seed: int) -> None:
    schema = {**schema, **SHARED}
    tool = ToolDefinition(name="f", parameters=schema, strict=True)
    conversation = replace(ASKED, tools=(tool,), tool_choice=REQUIRED)
    reply = reply_of(deepseek(), conversation, walk(held(conversation), TOKENIZER, Random(seed)))
    assert check_calls(reply, {"f": schema}) >= 1


@pytest.mark.parametrize("key", ["anyOf", "patternProperties", "minProperties"])
def test_what_has_no_form_in_deepseeks_calls_is_refused(key: str) -> None:
    values: dict[str, Any] = {"anyOf": [{"type": "object"}], "patternProperties": {"^a": {}}, "minProperties": 1}
    tool = ToolDefinition(name="f", parameters={"type": "object", key: values[key]}, strict=True)
    with pytest.raises(ParameterError, match=f"tools/f/parameters cannot be followed: {key} at its top"):
        held(replace(ASKED, tools=(tool,), tool_choice=REQUIRED))


def test_a_required_parameter_need_not_be_described() -> None:
    tool = ToolDefinition(name="f", parameters={"type": "object", "required": ["a"]}, strict=True)
    conversation = replace(ASKED, tools=(tool,), tool_choice=REQUIRED)
    reply = reply_of(deepseek(), conversation, walk(held(conversation), TOKENIZER, Random(2), patience=20))
    assert check_calls(reply, {"f": tool.parameters}) >= 1


def test_tools_that_are_not_strict_may_have_any_schema() -> None:
    odd = {
        "type": "object",
        "properties": {"a": {"type": "string", "format": "odd"}, "b": {"not": {}}},
        "oneOf": [{}, {}],
    }
    for parameters in (odd, {"type": "object"}, {"anyOf": [{"type": "object"}]}, {}):
        tool = ToolDefinition(name="f", parameters=parameters)
        conversation = replace(ASKED, tools=(tool,), tool_choice=REQUIRED)
        reply = reply_of(deepseek(), conversation, walk(held(conversation), TOKENIZER, Random(1), patience=20))
        assert reply.problems == () and reply.message.tool_calls


@pytest.mark.parametrize("family", ["deepseek", "hermes", "llama3", "mistral", "spelled"])
def test_strict_tools_may_be_left_alone(family: str) -> None:
    encoding, tokenizer = encodings()[family]
    conversation = replace(ASKED, tools=(LOOK, PING))
    for seed in range(6):
        ids = walk(held(conversation, encoding, tokenizer), tokenizer, Random(seed), patience=seed * 6)
        check_calls(reply_of(encoding, conversation, ids))
    constraint = held(conversation, encoding, tokenizer)
    for token in tokenizer.encode("Well, <tool> that is so."):
        constraint.accept(token)
    assert constraint.complete


def test_content_then_a_strict_call() -> None:
    constraint = held(replace(ASKED, tools=(LOOK, PING)))
    control = TOKENIZER.control_id(DSML)
    for token in TOKENIZER.encode("hello <"):
        constraint.accept(token)
    assert not constraint.allowed()[control]
    for token in TOKENIZER.encode("\n\n<"):
        constraint.accept(token)
    assert constraint.allowed()[control]
    constraint.accept(control)
    assert not constraint.complete and constraint.allowed().sum() == 1


def test_forbidden_tools_cannot_be_called() -> None:
    constraint = held(replace(ASKED, tools=(PING,), tool_choice=ToolChoice(mode=ToolMode.NONE)))
    assert set(np.flatnonzero(constraint.allowed())) & TOKENIZER.control_ids == {TOKENIZER.eos_id}
    assert constraint.complete


def test_a_form_and_tools_together() -> None:
    form = ResponseFormat(schema={"const": {"a": 1}})
    conversation = replace(ASKED, tools=(PING,), response_format=form)
    replies = [reply_of(deepseek(), conversation, walk(held(conversation), TOKENIZER, Random(s))) for s in range(8)]
    contents = {reply.message.content for reply in replies if not reply.message.tool_calls}
    assert any(reply.message.tool_calls for reply in replies)
    assert contents and all(json.loads(content) == {"a": 1} for content in contents)


def test_nothing_is_held_where_nothing_is_demanded() -> None:
    for conversation in (ASKED, replace(ASKED, tools=(replace(PING, strict=False),))):
        assert reply_constraint(deepseek(), TOKENIZER, conversation, deepseek().render(conversation)) is None


# ------------------------------------------------------------------ after the reasoning


def test_the_form_begins_after_the_reasoning() -> None:
    conversation = replace(ASKED, thinking=Thinking.HIGH, response_format=ResponseFormat(schema={"const": 7}))
    constraint = held(conversation)
    for token in TOKENIZER.encode("anything } at all"):
        assert constraint.allowed()[token] and not constraint.allowed()[TOKENIZER.eos_id]
        assert not constraint.complete
        constraint.accept(token)
    constraint.accept(TOKENIZER.control_id(THINK_END))
    assert json.loads(TOKENIZER.decode(walk(constraint, TOKENIZER, Random(0)))) == 7


def test_reasoning_that_the_reply_opens_itself() -> None:
    encoding, tokenizer = encodings()["hermes"]
    conversation = replace(ASKED, thinking=Thinking.HIGH, response_format=ResponseFormat(schema={"const": 7}))
    opens, closes = tokenizer.control_id(THINK_START), tokenizer.control_id(THINK_END)
    thinks, speaks = held(conversation, encoding, tokenizer), held(conversation, encoding, tokenizer)
    assert thinks.allowed()[opens]
    thinks.accept(opens)
    assert not thinks.allowed()[tokenizer.eos_id]
    for token in (*tokenizer.encode("hm"), closes, *tokenizer.encode("\n\n7")):
        thinks.accept(token)
    assert thinks.complete
    speaks.accept(tokenizer.encode("7")[0])
    assert speaks.complete and not speaks.allowed()[opens]


def test_reasoning_that_ends_in_plain_text_cannot_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = replace(ASKED, thinking=Thinking.HIGH)
    rendered = deepseek().render(conversation)
    monkeypatch.setattr(type(deepseek()), "think_end", "</thought>")
    with pytest.raises(ChatUnsupported, match="ends in plain text"):
        constrained(deepseek(), TOKENIZER, conversation, rendered, "start: /a/\n")


# ------------------------------------------------------------------ the vocabulary


def test_the_official_vocabulary_is_held_the_same() -> None:
    tokenizer = official()
    encoding = chat_encoding(NANO, tokenizer)
    conversation = replace(ASKED, tools=(LOOK, PING), tool_choice=REQUIRED)
    ids = walk(held(conversation, encoding, tokenizer), tokenizer, Random(0))
    assert check_calls(reply_of(encoding, conversation, ids)) >= 1


def test_masks_do_not_allow_ids_beyond_the_vocabulary() -> None:
    known = vocabulary(TOKENIZER, (1,))
    assert known.words * 32 >= known.size
    assert np.flatnonzero(known.all_but_ends).tolist() == [0, *range(2, TOKENIZER.vocab_size)]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    missing: list[Callable[[], object]] = [lambda: Vocabulary(TOKENIZER, (1,)), lambda: regex_grammar("a")]
    for call in missing:
        with pytest.raises(ChatUnsupported, match=r"llguidance; install it with: pip install 'foveal\[serve\]'"):
            call()

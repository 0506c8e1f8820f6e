"""Exact replay: what a client sends back hits to the last sampled token, and nothing else is taken for it."""

from __future__ import annotations

import json
from functools import cache
from random import Random
from typing import Any

import pytest
from chat_support import NANO, TOKENIZER, cut_tokens, family_encoding, family_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from foveal.text import Tokenizer
from foveal.text.chat import ChatEncoding, chat_encoding
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
from foveal.text.replay import TurnRecords, before_stop
from foveal.text.specials import DSML, EOS, THINK_END

LOOK = ToolDefinition(name="look", parameters={"type": "object", "properties": {"where": {}, "n": {}}})
D = DSML
DEEPSEEK = [
    f"\n\nwhy, ~ so{THINK_END}\n\nhello ~ 😀{EOS}",
    f"why{THINK_END} hello{EOS}",
    f"{THINK_END}ok{EOS}",
    f"why{THINK_END}hello\n\n<{D}tool_calls>\n"
    f'<{D}invoke name="look">\n<{D}parameter name="where" string="true">a "b"\n</{D}parameter>\n'
    f'<{D}parameter name="n" string="false">[1.0,  {{"b": 1e2, "a":2}}]</{D}parameter>\n</{D}invoke>\n'
    f'<{D}invoke name="look">\n</{D}invoke>\n</{D}tool_calls>{EOS}',
    f"why{THINK_END}cut short",
    "only reasoning",
]
HERMES = [
    "hello  ~ 😀<|im_end|>",
    "<think>\nwhy\n</think>\n\nok<|im_end|>",
    '<think>why</think>hi\n<tool_call>{"arguments":{"n":1.0,"where":"x"} , "name":"look"}</tool_call><|im_end|>',
    "cut short",
]


@cache
def deepseek() -> ChatEncoding:
    return chat_encoding(NANO, TOKENIZER)


class Client:
    """A conversation as a client keeps it, and the server's side of it."""

    def __init__(self, encoding: ChatEncoding, tokenizer: Tokenizer, **options: Any) -> None:
        self.encoding, self.tokenizer, self.options = encoding, tokenizer, options
        self.messages: list[Message] = [SystemMessage("S"), UserMessage("begin")]
        self.records = TurnRecords()
        self.read: list[int] = []
        self.replayed: tuple[bool, ...] = ()

    def ask(self) -> tuple[list[int], int, Conversation, Any]:
        conversation = Conversation(messages=tuple(self.messages), **self.options)
        rendered = self.encoding.render(conversation)
        prompt = self.records.replay(rendered, conversation, self.encoding.stop_tokens)
        self.replayed = prompt.turns
        return prompt.ids, prompt.head, conversation, rendered

    def answer(self, sampled: list[int]) -> AssistantMessage:
        """One turn: ask, sample, record. Returns the message as the client got it."""
        ids, head, conversation, rendered = self.ask()
        parser = self.encoding.parser(conversation, rendered)
        for token in sampled:
            parser.push(token)
        parser.flush()
        message = parser.reply().message
        self.records.add(ids, head, sampled, message)
        self.read = ids + sampled
        return message


def normalised(message: AssistantMessage, random: Random) -> AssistantMessage:
    """A message as some client sends it back."""
    calls = []
    for number, call in enumerate(message.tool_calls):
        value = json.loads(call.arguments)
        pairs = list(value.items())
        random.shuffle(pairs)
        indent = random.choice([None, 2])
        text = json.dumps(_as_javascript(dict(pairs)), ensure_ascii=random.random() < 0.5, indent=indent)
        calls.append(ToolCall(id=f"other-{number}", name=call.name, arguments=text))
    return AssistantMessage(
        content=message.content.strip() if random.random() < 0.5 else f"{message.content}\n",
        reasoning=message.reasoning if random.random() < 0.5 else "",
        tool_calls=tuple(calls),
    )


def _as_javascript(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _as_javascript(entry) for key, entry in value.items()}
    return [_as_javascript(entry) for entry in value] if isinstance(value, list) else value


FAMILIES = {
    "deepseek": (lambda: (deepseek(), TOKENIZER), DEEPSEEK),
    "hermes": (lambda: (family_encoding("hermes"), family_tokenizer("hermes")), HERMES),
}


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_every_request_begins_with_all_that_was_read_before(family: str, data: st.DataObject) -> None:
    make, replies = FAMILIES[family]
    encoding, tokenizer = make()
    tools = (LOOK,) if data.draw(st.booleans()) else ()
    client = Client(encoding, tokenizer, tools=tools, thinking=Thinking.HIGH)
    random = Random(data.draw(st.integers(0, 9999)))
    for turn, reply in enumerate(data.draw(st.lists(st.sampled_from(replies), min_size=1, max_size=5))):
        sampled = cut_tokens(tokenizer, reply, random, random.choice([1, 2, 5]))
        message = client.answer(sampled)
        client.messages.append(normalised(message, random))
        client.messages += [ToolMessage(call_id=f"other-{i}", content="r") for i in range(len(message.tool_calls))]
        if not message.tool_calls or random.random() < 0.5:
            client.messages.append(UserMessage(f"next {turn}"))
        client.records = TurnRecords.decode(client.records.encode())
        ids = client.ask()[0]
        assert ids[: len(client.read)] == client.read
        assert client.replayed == (True,) * (turn + 1)


def test_the_prompt_goes_on_as_the_encoding_renders_it() -> None:
    client = Client(deepseek(), TOKENIZER, thinking=Thinking.HIGH)
    sampled = cut_tokens(TOKENIZER, f"why{THINK_END}a ~ b{EOS}", Random(0), 1)
    client.messages += [client.answer(sampled), UserMessage("next")]
    ids, head, _, rendered = client.ask()
    rest = rendered.ids[rendered.turns[0].end :]
    assert ids == client.read + rest
    assert ids[head:] == rendered.ids[rendered.head :]


def test_a_turn_that_was_cut_short_gets_its_end() -> None:
    client = Client(deepseek(), TOKENIZER)
    message = client.answer(TOKENIZER.encode("half a sen"))
    client.messages += [message, UserMessage("next")]
    ids = client.ask()[0]
    assert ids[len(client.read)] == TOKENIZER.eos_id


@pytest.mark.parametrize(
    "change",
    [
        lambda m: AssistantMessage(content=m.content + "!", reasoning=m.reasoning, tool_calls=m.tool_calls),
        lambda m: AssistantMessage(content=m.content, reasoning="other", tool_calls=m.tool_calls),
        lambda m: AssistantMessage(content=m.content, reasoning=m.reasoning, tool_calls=m.tool_calls[:1]),
        lambda m: AssistantMessage(content=m.content, tool_calls=m.tool_calls[::-1]),
        lambda m: AssistantMessage(content=m.content, tool_calls=(ToolCall(id="a", name="look", arguments="{}"),) * 2),
        lambda m: AssistantMessage(content=m.content, tool_calls=(ToolCall(id="a", name="look", arguments="{"),) * 2),
    ],
)
def test_another_turn_is_rendered_from_its_text(change: Any) -> None:
    client = Client(deepseek(), TOKENIZER, tools=(LOOK,), thinking=Thinking.HIGH)
    message = client.answer(cut_tokens(TOKENIZER, DEEPSEEK[3], Random(0), 1))
    client.messages += [change(message), UserMessage("next")]
    ids, _, _, rendered = client.ask()
    assert client.replayed == (False,) and ids == rendered.ids


def test_the_same_message_after_other_ids_is_another_turn() -> None:
    client = Client(deepseek(), TOKENIZER)
    client.messages += [client.answer(cut_tokens(TOKENIZER, f"ok ~{EOS}", Random(0), 1)), UserMessage("next")]
    client.messages[1] = UserMessage("begin otherwise")
    ids, _, _, rendered = client.ask()
    assert client.replayed == (False,) and ids == rendered.ids


def test_branches_keep_their_own_ids() -> None:
    """Two replies of the same words, sampled in other tokens after the same prompt: the later one is replayed."""
    client = Client(deepseek(), TOKENIZER)
    one, two = TOKENIZER.encode("ab ~ cd"), cut_tokens(TOKENIZER, "ab ~ cd", Random(0), 1)
    assert one != two
    message = client.answer(one)
    assert client.answer(two) == message
    client.messages += [message, UserMessage("next")]
    assert client.ask()[0][: len(client.read)] == client.read
    assert len(client.records) == 2


def test_another_level_of_thinking_does_not_lose_what_was_read() -> None:
    client = Client(deepseek(), TOKENIZER, thinking=Thinking.HIGH)
    client.messages += [client.answer(cut_tokens(TOKENIZER, DEEPSEEK[0], Random(3), 2)), UserMessage("next")]
    client.options["thinking"] = Thinking.OFF
    assert client.ask()[0][: len(client.read)] == client.read


def test_records_that_are_none() -> None:
    with pytest.raises(ValueError, match="no records of turns"):
        TurnRecords.decode(b"\x93\x01\x02\x03")


@given(st.text("ab~ \n😀é", max_size=12), st.text("~ab\n😀", min_size=1, max_size=3), st.integers(0, 999))
def test_what_a_stop_string_cut_off_is_not_recorded(text: str, stop: str, seed: int) -> None:
    encoding = deepseek()
    conversation = Conversation(messages=(UserMessage("x"),), continue_last=False)
    parser = encoding.parser(conversation, encoding.render(conversation), stop=(stop,))
    sampled: list[int] = []
    for token in cut_tokens(TOKENIZER, "x" + text, Random(seed), 4):
        sampled.append(token)
        parser.push(token)
        if parser.stopped:
            break
    parser.flush()
    kept = before_stop(TOKENIZER, sampled, parser.reply().stopped_by)
    assert TOKENIZER.decode(kept) == parser.reply().message.content
    if not parser.stopped:
        assert kept == sampled

"""Conversations: turns that are only added, forks, what is saved, and what stopping does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import write_model

from foveal.batch import ContextLengthError, FinishReason
from foveal.engine import Engine
from foveal.errors import ParameterError
from foveal.memory import Conflict, Memory, ReadError, StoreError, open_store
from foveal.memory.conversation import Conversation, NotAConversation
from foveal.text.chat import ChatEncoding, chat_encoding
from foveal.text.events import ContentDelta
from foveal.text.messages import AssistantMessage, SystemMessage, Thinking, UserMessage
from foveal.text.messages import Conversation as Messages


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), 4)


@pytest.fixture
def engine(model: Path) -> Iterator[Engine]:
    with Engine.open(model, threads=1) as engine:
        yield engine
        assert engine.call(lambda: engine.pool.live) == 0, "pages were kept"


@pytest.fixture
def encoding(model: Path, engine: Engine) -> ChatEncoding:
    return chat_encoding(model, engine.tokenizer)


def say(chat: Conversation, text: str, tokens: int = 5) -> str:
    saying = chat.say(text, max_tokens=tokens)
    said = "".join(event.text for event in saying if isinstance(event, ContentDelta))
    assert saying.result.reply is not None and saying.result.reply.message.content == said
    return said


def test_the_context_is_what_the_encoding_writes(engine: Engine, encoding: ChatEncoding) -> None:
    with Conversation.begin(engine, encoding, system="Be short.") as chat:
        lengths = [chat.memory.length]
        for number in range(3):
            held = chat.memory.length
            saying = chat.say(f"message {number}\nof two lines", max_tokens=4 + number)
            list(saying)
            lengths.append(chat.memory.length)
            assert saying.result.held == held and saying.result.run + held == saying.result.prompt_tokens
            assert lengths[-1] == saying.result.prompt_tokens + saying.result.written + 1, "a turn costs its own tokens"
        messages: list[object] = [SystemMessage("Be short.")]
        for turn in chat.turns:
            messages += [UserMessage(turn.user), AssistantMessage(content=turn.assistant)]
        assert [turn.user for turn in chat.turns] == [f"message {n}\nof two lines" for n in range(3)]
        assert [turn.end for turn in chat.turns] == lengths[1:]
        rendered = encoding.render(Messages(messages=tuple(messages), add_generation_prompt=False))  # type: ignore[arg-type]
        ids = chat.memory.sequence.tokens.tolist()
        for turn in rendered.turns:  # what the model said was sampled; around it all is as it would be rendered
            assert ids[turn.start : turn.start + 2] == rendered.ids[turn.start : turn.start + 2]
            break
        assert ids[: rendered.turns[0].start] == rendered.ids[: rendered.turns[0].start]
        assert sum(token == engine.tokenizer.eos_id for token in ids) >= 3


def test_a_turn_goes_on_as_one_text_would(engine: Engine, encoding: ChatEncoding) -> None:
    """What a second turn says is what the network says behind all tokens before it."""
    with Conversation.begin(engine, encoding) as chat:
        say(chat, "one")
        before = chat.memory.sequence.tokens.tolist()
        said = say(chat, "two", 6)
        ids = chat.memory.sequence.tokens.tolist()
        head = ids.index(engine.tokenizer.control_id("<｜Assistant｜>"), len(before))
        again = engine.generate(ids[: head + 2], max_tokens=6)
        assert list(again.tokens) == ids[head + 2 : head + 2 + len(again.tokens)]
        assert said.strip() == chat.turns[1].assistant


def test_it_is_saved_and_goes_on(engine: Engine, encoding: ChatEncoding, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    with Conversation.begin(engine, encoding, store=store) as chat:
        say(chat, "one " * 900)
        chat.save("talk")
        say(chat, "two")
        chat.save("talk")
        turns = chat.turns
        expected = say(chat, "three")
    with Conversation.load(engine, encoding, "talk", root=store) as chat:
        assert chat.turns == turns and chat.behind == 0
        assert say(chat, "three") == expected
        with Conversation.load(engine, encoding, "talk", root=store) as other:
            say(other, "another")
            other.save("talk")
        with pytest.raises(Conflict):
            chat.save("talk")
        chat.save("mine")
    with Conversation.begin(engine, encoding, store=store) as chat:
        saying = chat.say("one " * 900, max_tokens=2)
        list(saying)
        assert saying.result.stored > 100 and saying.result.held == 0, "what the store has is not run again"
        with pytest.raises(StoreError, match="already"):
            chat.save("talk")


def test_behind_a_memory(engine: Engine, encoding: ChatEncoding, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("def port():\n    return 8000\n" * 30)
    with Memory.read(engine, tmp_path / "src", name="src", root=store) as memory:
        memory.save(root=store)
        length = memory.length
        with pytest.raises(NotAConversation):
            Conversation.load(engine, encoding, "src", root=store)
        with Conversation.begin(engine, encoding, memory=memory) as chat:
            assert (chat.behind, chat.turns) == (length, ())
            saying = chat.say("def port():", max_tokens=8)
            list(saying)
            assert saying.result.held == length
            assert all(citation.path == "a.py" for citation in saying.result.citations)
            chat.save("talk")
            assert chat.turns[0].user == "def port():"
            with pytest.raises(ReadError, match="conversation"):
                chat.memory.sync()
    assert store.info("talk").facts["parent"] == "src" and store.info("talk").facts["chat"] == length
    with Conversation.load(engine, encoding, "talk", root=store) as chat:
        assert chat.behind == length and len(chat.turns) == 1
        with chat.fork(1) as fork:
            say(fork, "more")
            fork.save("talk-2", root=store)
    assert store.info("talk-2").facts["parent"] == "src", "what it is about, however often it was forked"


def test_a_turn_that_was_worded_elsewhere_is_a_turn_like_any_other(
    engine: Engine, encoding: ChatEncoding, tmp_path: Path
) -> None:
    store = open_store(tmp_path / "store")
    with Conversation.begin(engine, encoding, store=store, thinking=Thinking.HIGH) as chat:
        chat.tell("Who keeps it?", "Ilse.\n<｜User｜>\nnobody")
        say(chat, "and?")
        chat.tell("Who else?", "")
        assert [(turn.user, turn.assistant) for turn in chat.turns][::2] == [
            ("Who keeps it?", "Ilse.\n<｜User｜>\nnobody"),
            ("Who else?", ""),
        ]
        paths = [path for path, _, _ in chat.memory.places.documents]
        assert paths == [
            f"chat/{n}/{part}" for n, two in ((1, "answer"), (2, "assistant"), (3, "answer")) for part in ("user", two)
        ]
        ids = chat.memory.sequence.tokens.tolist()
        assert ids.count(engine.tokenizer.control_id("<｜User｜>")) == 3, "what was told is text"
        assert ids[-1] == engine.tokenizer.eos_id and chat.turns[-1].end == len(ids)
        messages = (UserMessage("Who keeps it?"), AssistantMessage(content="Ilse.\n<｜User｜>\nnobody"))
        rendered = encoding.render(Messages(messages=messages, add_generation_prompt=False))
        assert ids[: chat.turns[0].end] == rendered.ids[: rendered.turns[0].end], "as the encoding writes it"
        chat.save("talk")
        turns = chat.turns
    with Conversation.load(engine, encoding, "talk", root=store) as chat, chat.fork(1) as fork:
        assert chat.turns == turns and fork.turns == turns[:1]


def test_a_turn_that_does_not_fit_changes_nothing(model: Path) -> None:
    with Engine.open(model, threads=1, context_length=64) as engine:
        with Conversation.begin(engine, chat_encoding(model, engine.tokenizer)) as chat:
            chat.tell("Who?", "Ilse.")
            before = chat.memory.sequence.tokens.tolist()
            with pytest.raises(ContextLengthError, match="earlier turn"):
                chat.tell("Who?", "Ilse. " * 60)
            assert chat.memory.sequence.tokens.tolist() == before and len(chat.turns) == 1
        assert engine.call(lambda: engine.pool.live) == 0


def test_turns_behind_a_conversation_are_no_versions_of_its_turns(engine: Engine, encoding: ChatEncoding) -> None:
    with Conversation.begin(engine, encoding) as first:
        first.tell("My pilot keeps a tortoise.", "Fine.")
        with Conversation.begin(engine, encoding, memory=first.memory) as second:
            second.tell("Hello.", "Hello.")
            assert [path for path, _, _ in second.memory.places.documents][::2] == ["chat/1/user", "chat/2/user"]
            assert [turn.user for turn in second.turns] == ["Hello."]


def test_forks(engine: Engine, encoding: ChatEncoding, tmp_path: Path) -> None:
    with Conversation.begin(engine, encoding) as chat:
        said = [say(chat, f"message {n} " * 40) for n in range(3)]
        with chat.fork(1) as fork, chat.fork(0) as empty, chat.fork() as whole:
            assert fork.turns == chat.turns[:1] and empty.turns == () and whole.turns == chat.turns
            assert say(fork, "message 1 " * 40) == said[1], "the same message after the same turn"
            assert say(empty, "message 0 " * 40) == said[0]
            assert len(chat.turns) == 3
        for wrong in (-1, 4):
            with pytest.raises(ParameterError, match="no turn"):
                chat.fork(wrong)


def test_stopping_keeps_what_was_said(engine: Engine, encoding: ChatEncoding) -> None:
    with Conversation.begin(engine, encoding) as chat:
        saying = chat.say("hello", max_tokens=50_000)
        for _ in saying:
            saying.stop()
        assert saying.result.finish is FinishReason.CANCELLED and saying.result.reply is not None
        assert len(chat.turns) == 1 and chat.turns[0].assistant == saying.result.reply.message.content.strip()
        say(chat, "again")
        assert len(chat.turns) == 2


def test_stopping_before_anything_was_said_changes_nothing(engine: Engine, encoding: ChatEncoding) -> None:
    with Conversation.begin(engine, encoding) as chat:
        say(chat, "hello")
        before = chat.memory.sequence.tokens.tolist()
        saying = chat.say("x " * 20_000, max_tokens=5)
        saying.stop()
        assert list(saying) == [] and saying.result.reply is None
        dropped = chat.say("x", max_tokens=50_000)
        next(iter(dropped))
        dropped.close()
        chat.say("never asked for", max_tokens=5).close()
        assert chat.memory.sequence.tokens.tolist() == before and len(chat.turns) == 1


def test_the_context_ends(model: Path) -> None:
    with Engine.open(model, threads=1, context_length=64) as engine:
        encoding = chat_encoding(model, engine.tokenizer)
        with Conversation.begin(engine, encoding) as chat:
            saying = chat.say("hello", max_tokens=50_000)
            list(saying)
            assert saying.result.finish in (FinishReason.LENGTH, FinishReason.STOP)
            with pytest.raises(ContextLengthError, match="earlier turn"):
                chat.say("x " * 70)
            assert len(chat.turns) == 1


def test_reasoning_is_part_of_the_context(engine: Engine, encoding: ChatEncoding) -> None:
    with Conversation.begin(engine, encoding, thinking=Thinking.HIGH) as chat:
        saying = chat.say("hello", max_tokens=6)
        list(saying)
        assert saying.result.reply is not None and saying.result.reply.reasoning_tokens
        saying = chat.say("and?", max_tokens=3)
        list(saying)
        assert saying.result.held == chat.turns[0].end

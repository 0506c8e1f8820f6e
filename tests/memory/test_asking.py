"""Questions: places from attention and search, what a model is shown, and which lines an answer rests on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_support import NANO, TINY, make_engine

from foveal.batch import ParameterError
from foveal.engine import Engine
from foveal.memory import Found, Memory, NoChatModel, open_store
from foveal.memory.asked_turn import AskedTurn
from foveal.memory.asking.answering import ANSWER_TOKENS, NOTHING, NoRoom
from foveal.memory.asking.attention import looked_at
from foveal.memory.asking.chat_model import ChatModel, default_chat_model, room
from foveal.memory.asking.index_place import index_path
from foveal.memory.asking.places import Finder
from foveal.memory.asking.prompt import asked, begun
from foveal.memory.asking.support import citations, closest
from foveal.memory.asking.telling import Telling
from foveal.memory.conversation import Conversation

HARBOUR = "The pilot of Bergen keeps a tortoise.\nHe fears thunder.\n"
TOWER = "The clock tower of Graz was repaired in 1998.\nThe keeper of the tower is Ilse Marchetti.\n"
FILLER = "".join(f"Line {number} speaks of nothing in particular.\n" for number in range(200))


@pytest.fixture
def engine() -> Iterator[Engine]:
    with make_engine() as made:
        yield made


@pytest.fixture
def chat(engine: Engine) -> ChatModel:
    return ChatModel.of(engine, NANO)


@pytest.fixture
def memory(engine: Engine, tmp_path: Path) -> Iterator[Memory]:
    folder = tmp_path / "src"
    folder.mkdir()
    for name, text in (("a.md", HARBOUR), ("b.md", FILLER), ("c.md", f"# Towers\n\n{TOWER}")):
        (folder / name).write_text(text)
    store = open_store(tmp_path / "store")
    with store.read(engine, folder, name="notes") as made:
        made.save(root=store)
        yield made


def test_the_places_that_fit_are_shown_with_their_lines_and_both_lists_are_told(memory: Memory) -> None:
    with Finder(memory) as finder:
        places = finder.find("Who is the keeper of the clock tower of Graz?", 2, 200, len)
    assert str(places[0]) == "c.md:1-4" or str(places[0]) == "c.md:3-4"
    assert "Ilse Marchetti" in places[0].text and places[0].ranks["search"] == 1
    assert sum(place.tokens for place in places) <= 200


def test_no_two_places_overlap_and_the_budget_holds(memory: Memory) -> None:
    with Finder(memory) as finder:
        for budget in (10, 60, 400, 5000):
            places = finder.find("which line speaks of nothing in particular, 17 or 170?", 5, budget, len)
            assert places and sum(place.tokens for place in places) <= budget
            lines = [(p.path, n) for p in places for n in range(p.first_line, p.last_line + 1) if p.tokens > 60]
            assert len(lines) == len(set(lines))


def test_a_place_that_would_widen_into_another_stays_as_narrow_as_it_was(engine: Engine, tmp_path: Path) -> None:
    """The class is short enough for a place, and its methods are found first."""
    methods = [
        f"    def {name}(self):\n        # the harbour pilot, part {name}\n        return 1\n" for name in "abcd"
    ]
    (tmp_path / "a.py").write_text("class Harbour:\n" + "\n".join(methods))
    with open_store(tmp_path / "store").read(engine, tmp_path / "a.py", name="m") as memory, Finder(memory) as finder:
        for most in (2, 3, 5):
            places = finder.find("harbour pilot part", most, 2000, len)
            lines = [(p.path, n) for p in places for n in range(p.first_line, p.last_line + 1)]
            assert places and len(lines) == len(set(lines)), [str(place) for place in places]


def test_a_memory_that_leaves_no_room_for_a_question_has_no_attention_to_ask(engine: Engine, memory: Memory) -> None:
    context = memory.length + 4
    narrow = make_engine(TINY.replace(max_position_embeddings=context))
    with narrow, Memory.load(narrow, "notes", root=memory.store) as full:
        assert looked_at(full, "Who is the keeper of the clock tower of Graz?") == []
    assert looked_at(memory, "Who is the keeper of the clock tower of Graz?")


def test_an_answer_has_its_places_its_steps_and_leaves_the_memory_as_it_was(memory: Memory, chat: ChatModel) -> None:
    before = memory.sequence.tokens.tolist()
    stream = memory.ask_stream("Which pilot keeps a tortoise?", with_=chat, max_tokens=8)
    assert next(str(place) for place in stream.places) == "a.md:1-2"
    with pytest.raises(ParameterError, match="not ended"):
        _ = stream.result
    text = "".join(stream)
    answer = stream.result
    assert answer.text == text.strip() and answer.found and answer.completion_tokens <= 8
    assert [step.name for step in answer.steps] == ["find", "read", "write"]
    assert answer.prompt_tokens > sum(place.tokens for place in answer.places)
    for citation in answer.citations:
        place = answer.places[citation.number - 1]
        assert place.first_line <= citation.first_line <= citation.last_line <= place.last_line
    assert memory.sequence.tokens.tolist() == before


def test_the_same_question_gets_the_same_answer(memory: Memory, chat: ChatModel) -> None:
    first, second = (memory.ask("Who fears thunder?", with_=chat, max_tokens=6) for _ in range(2))
    assert (first.text, first.places, first.citations) == (second.text, second.places, second.citations)


def test_a_question_that_no_place_fits_is_told_so_without_a_word_of_the_model(memory: Memory, chat: ChatModel) -> None:
    answer = memory.ask("Quagga zebra?", with_=chat)
    assert answer.text == NOTHING and not answer.found and not answer.citations and not answer.completion_tokens


def test_without_zoom_the_model_answers_behind_its_own_memory(memory: Memory, chat: ChatModel) -> None:
    answer = memory.ask("Who fears thunder?", with_=chat, zoom=0, max_tokens=4)
    assert not answer.places and answer.completion_tokens and [step.name for step in answer.steps] == ["read", "write"]


def test_closing_an_answer_early_ends_it(memory: Memory, chat: ChatModel) -> None:
    stream = memory.ask_stream("Who fears thunder?", with_=chat, max_tokens=90)
    next(iter(stream))
    stream.close()
    assert stream.result.completion_tokens < 90


@pytest.mark.parametrize("settings", [{"zoom": -1}, {"max_tokens": 0}, {"place_tokens": 0}])
def test_numbers_out_of_range_and_empty_questions_are_refused(
    memory: Memory, chat: ChatModel, settings: dict[str, int]
) -> None:
    with pytest.raises(ParameterError):
        memory.ask("Who?", with_=chat, **settings)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="empty"):
        memory.ask("  ", with_=chat)
    with pytest.raises(ParameterError, match="no room for a place"):
        memory.ask("Who?", with_=chat, max_tokens=chat.room - 4)


def test_who_has_no_chat_model_is_told_how_to_get_one(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for ask in (lambda: default_chat_model("nano"), lambda: ChatModel.open("nano"), lambda: ChatModel.open("smollm2")):
        with pytest.raises(NoChatModel, match="foveal convert smollm2"):
            ask()
    assert default_chat_model("mine") == "mine"


def test_a_model_sees_its_window_or_its_whole_context_where_it_looks_up_entries() -> None:
    assert room(TINY) == TINY.max_position_embeddings
    assert room(TINY.replace(compress_ratios=(0, 0, 128, 0), sliding_window=100)) == 100
    blind = make_engine(TINY.replace(compress_ratios=(0, 0, 0, 0), sliding_window=100))
    with blind, pytest.raises(NoChatModel, match="100 tokens"):
        ChatModel.of(blind, NANO)


def test_what_was_said_early_in_a_conversation_is_found_later_and_in_its_forks(engine: Engine, chat: ChatModel) -> None:
    with Conversation.begin(engine, chat.encoding) as talk:
        for number in range(1, 13):
            told = (
                "My pilot is from Bergen and keeps a tortoise." if number == 5 else f"Speak of number {number} again."
            )
            for _ in talk.say(told, max_tokens=2):
                pass
        answer = talk.memory.ask("What does my pilot from Bergen keep?", with_=chat, max_tokens=3)
        assert answer.places[0].path == "chat/5/user" and "tortoise" in answer.places[0].text
        with talk.fork(6) as branch:
            assert branch.memory.ask("Which pilot?", with_=chat, max_tokens=2).places[0].path == "chat/5/user"
        with talk.fork(4) as before:
            assert not before.memory.ask("Which pilot keeps a tortoise?", with_=chat, max_tokens=2).found


def test_lines_are_those_of_the_file_behind_empty_ones_and_in_a_notebook(
    engine: Engine, tmp_path: Path, chat: ChatModel
) -> None:
    said = ["What was said of harbours.\n", "The pilot of Bergen keeps a tortoise."]
    told = ["What was said of towers.\n", "The pilot of Graz keeps a heron."]
    cells = [{"cell_type": "markdown", "metadata": {}, "source": lines} for lines in (said, told)]
    folder = tmp_path / "odd"
    folder.mkdir()
    book = folder / "book.ipynb"
    book.write_text(json.dumps({"cells": cells, "nbformat": 4}, indent=1))
    (folder / "late.md").write_text("\n\n\nThe keeper of the lighthouse is Ilse.\n")
    with Memory.read(engine, folder, root=open_store(tmp_path / "other")) as memory:
        (place,) = memory.ask("Who is the keeper of the lighthouse?", with_=chat, max_tokens=2).places
        assert (str(place), place.shown(1, 9)) == ("late.md:4", [(4, "The keeper of the lighthouse is Ilse.")])
        answer = memory.ask("Which pilot of Graz keeps a heron?", with_=chat, max_tokens=2)
        (cited,) = closest("Which heron?", answer.places[:1])
        wanted = next(n for n, line in enumerate(book.read_text().split("\n"), start=1) if "heron" in line)
        assert (cited.path, cited.first_line, cited.last_line) == ("book.ipynb", wanted, wanted)
        assert answer.places[0].shown(wanted, wanted) == [(wanted, "The pilot of Graz keeps a heron.")]


def asked_turn(talk: Conversation, question: str, chat: ChatModel, **settings: int) -> AskedTurn:
    turn = talk.ask(question, with_=chat, max_tokens=4, **settings)
    assert "".join(turn).strip() == turn.result.text
    return turn


def test_a_question_in_a_conversation_is_a_turn_without_its_places(
    engine: Engine, chat: ChatModel, memory: Memory
) -> None:
    with Conversation.begin(engine, chat.encoding, memory=memory) as talk:
        turn = asked_turn(talk, "Who is the keeper of the tower of Graz?", chat)
        assert turn.kept and turn.places[0].path == "c.md"
        assert [(one.user, one.assistant) for one in talk.turns] == [
            ("Who is the keeper of the tower of Graz?", turn.result.text)
        ]
        assert talk.memory.length - talk.behind < turn.result.prompt_tokens, "the places are not read into it again"
        with talk.fork(0) as before:
            assert before.turns == ()


def test_what_fits_nothing_or_was_stopped_or_closed_is_no_turn(engine: Engine, chat: ChatModel, memory: Memory) -> None:
    with Conversation.begin(engine, chat.encoding, memory=memory) as talk:
        assert not asked_turn(talk, "Quagga zebra?", chat).kept
        stopped = talk.ask("Who fears thunder?", with_=chat)
        stopped.stop()
        assert list(stopped) == [] and not stopped.kept and stopped.result.text == "" and stopped.places == ()
        closed = talk.ask("Who fears thunder?", with_=chat, max_tokens=90)
        next(iter(closed))
        closed.close()
        talk.ask("Who fears thunder?", with_=chat).close()
        assert talk.turns == () and talk.memory.length == talk.behind
        bare = asked_turn(talk, "Quagga zebra?", chat, zoom=0)
        assert bare.kept and bare.places == () and len(talk.turns) == 1


def test_stopped_in_the_middle_what_was_told_stays(engine: Engine, chat: ChatModel, memory: Memory) -> None:
    with Conversation.begin(engine, chat.encoding, memory=memory) as talk:
        turn = talk.ask("Who fears thunder?", with_=chat, max_tokens=90)
        told = ""
        for piece in turn:
            told += piece
            turn.stop()
        assert turn.kept and turn.result.completion_tokens < 90
        assert talk.turns[0].assistant == told.strip() == turn.result.text


def test_earlier_questions_and_their_answers_do_not_crowd_out_what_they_asked_for(
    engine: Engine, chat: ChatModel, memory: Memory
) -> None:
    question = "Who is the keeper of the clock tower of Graz?"
    with Conversation.begin(engine, chat.encoding, memory=memory) as talk:
        for number in range(6):
            talk.tell(
                question if number % 2 else "when was the clock tower of Graz repaired",
                "The keeper of the tower of Graz.",
            )
        talk.tell("My own tower is in Trieste by the lighthouse.", "Fine.")
        turn = asked_turn(talk, question, chat)
        paths = [place.path for place in turn.places]
        assert paths[0] == "c.md", paths
        assert not any(path.endswith("/answer") or path == "chat/2/user" for path in paths), paths
        assert asked_turn(talk, "Is my own tower in Trieste by the lighthouse?", chat).places[0].path == "chat/7/user"
        found = asked_turn(talk, "What stands by my tower in Trieste?", chat)
        assert "chat/7/user" in [place.path for place in found.places]
        own = next(place for place in found.places if place.path == "chat/7/user")
        assert found.places[0] is own, "it holds more of the question's words than what was read"
        assert (own.text, own.first_line, own.last_line, own.ranks["turns"]) == (
            "My own tower is in Trieste by the lighthouse.",
            1,
            1,
            1,
        )


def test_a_conversation_uses_the_index_of_its_memory(engine: Engine, chat: ChatModel, memory: Memory) -> None:
    with Conversation.begin(engine, chat.encoding, memory=memory) as talk:
        asked_turn(talk, "Who fears thunder?", chat)
        assert memory.store is not None
        path = index_path(memory.store, "notes")
        assert path is not None
        made = path.stat().st_ino
        talk.save("talk")
        asked_turn(talk, "Who fears thunder?", chat)
        memory.ask("Who fears thunder?", with_=chat, max_tokens=2)
        assert [child.stat().st_ino for child in path.parent.iterdir()] == [made]


def test_more_places_than_there_is_room_for_are_as_many_as_there_is(memory: Memory, chat: ChatModel) -> None:
    question = "which line speaks of nothing in particular, 17 or 170?"
    for most, tokens in ((10**9, 2000), (32, 100), (32, 16)):
        places = memory.ask(question, with_=chat, zoom=most, place_tokens=tokens, max_tokens=2).places
        assert places and sum(place.tokens for place in places) <= tokens
        assert all(place.text.startswith("Line") and place.tokens > 8 for place in places), places
    with make_engine(TINY.replace(max_position_embeddings=400)) as narrow:
        shown = memory.ask(question, with_=ChatModel.of(narrow, NANO), zoom=32).places
        assert shown and sum(place.tokens for place in shown) < 400 - ANSWER_TOKENS


def test_a_question_without_room_for_a_place_says_so(engine: Engine, chat: ChatModel) -> None:
    with Conversation.begin(engine, chat.encoding) as talk, pytest.raises(NoRoom, match="shorter question"):
        talk.ask("x " * chat.room, with_=chat)


# ---------------------------------------------------------------------- what an answer rests on


def place(text: str, path: str = "a.md", first: int = 10) -> Found:
    return Found(path, first, first + text.count("\n"), text, 1.0)


def test_the_lines_that_hold_the_answers_own_words_are_cited() -> None:
    shown = [place(HARBOUR + FILLER[:200], "a.md", 1), place(TOWER, "b.md", 7)]
    found = citations("The clock tower of Graz was repaired in 1998.", "When was the tower of Graz repaired?", shown)
    assert [str(one) for one in found] == ["[2] b.md:7"]
    found = citations("The keeper is Ilse Marchetti.", "Who is the keeper?", shown)
    assert [str(one) for one in found] == ["[2] b.md:8"]


def test_marks_of_the_model_count_only_for_what_was_shown() -> None:
    shown = [place(HARBOUR), place(TOWER, "b.md")]
    marked = citations("He keeps a tortoise [1][7].", "What does the pilot keep?", shown)
    assert [(one.number, one.marked, one.first_line) for one in marked] == [(1, True, 10)]
    assert citations("He keeps a zebra [3].", "What does the pilot keep?", shown) == ()


def test_code_of_a_place_is_no_mark() -> None:
    shown = [place("rows = load()\nprint(rows[2])"), place(TOWER, "b.md")]
    assert citations("It prints rows[2].", "What is printed?", shown)[0].number == 1
    assert citations("He keeps a tortoise[2].", "What?", shown)[0].marked, "what stands nowhere is a mark"


def test_lines_in_scripts_without_spaces_are_cited() -> None:
    shown = [place("港の水先案内人は亀を飼っている。\n塔の時計は止まった。"), place(TOWER, "b.md")]
    assert [str(one) for one in citations("塔の時計は止まった", "塔はどうなった?", shown)] == ["[1] a.md:11"]


def test_names_out_of_code_begin_as_they_are_written() -> None:
    for name in ("raw_decode", "os.path", "parseAll", "x86", "main()"):
        assert begun(f" {name} does it.") == f"{name} does it."
        pieces = [f" {name} does it."[at : at + 2] for at in range(0, len(name) + 10, 2)]
        assert told(*pieces)[0] == f"{name} does it."
    assert begun(" it. So it is.") == "It. So it is." and begun(" ") == ""


def test_an_answer_that_no_shown_line_holds_rests_on_nothing() -> None:
    assert citations("It was Napoleon Bonaparte.", "Who keeps the tower?", [place(TOWER)]) == ()
    assert citations("", "Who?", []) == ()
    near = closest("Who keeps the tower?", [place(HARBOUR), place(TOWER, "b.md")])
    assert [str(one) for one in near] == ["[1] a.md:10", "[2] b.md:10"]


def test_the_best_place_stands_next_to_the_question_and_the_lead_is_not_told() -> None:
    conversation = asked("Who?", [place("best"), place("second", "b.md")])
    said = conversation.messages[1].content  # type: ignore[union-attr]
    assert said.startswith("Question: Who?") and said.index("second") < said.index("best") < said.rindex("Who?")
    assert conversation.continue_last and begun(", the keeper.") == "The keeper."


def told(*pieces: str) -> tuple[str, bool, list[str]]:
    telling = Telling()
    out = [piece for text in pieces for piece in telling.add(text)]
    out += telling.end()
    assert "".join(out) == telling.text
    return telling.text.strip(), telling.repeats, out


def test_an_answer_ends_where_the_model_repeats_itself_and_not_before() -> None:
    loop = " the key is here. The lock is there. The key is here. The lock is there."
    for cut in (1, 3, 7, 100):
        pieces = [loop[at : at + cut] for at in range(0, len(loop), cut)]
        assert told(*pieces)[:2] == ("The key is here. The lock is there.", True)
    assert told(" it is 3.5 m. It is", " 3.5 m high.")[:2] == ("It is 3.5 m. It is 3.5 m high.", False)
    assert told("", " a", " tortoise")[:2] == ("A tortoise", False)
    assert told(" a tortoise, and", " he")[2] == ["A tortoise, and", " he"]
    assert told("One way:\n\nOne way:\n\nmore") == ("One way:", True, ["One way:"])
    assert told("A key.", "\n\n", "\n", "A lock. ")[2] == ["A key.", "\n\n\nA lock."]
    assert told("A key.", "\n\n", "A", " key.")[2] == ["A key."], "white space in front of nothing is not told"

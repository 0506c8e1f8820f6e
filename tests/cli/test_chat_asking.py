"""`foveal chat` about a memory: messages are asked of it, here and at a server, through a pipe and at a terminal."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from cli_support import write_model
from click.testing import CliRunner
from server_support import serving
from talk_support import Chat, Terminal, sending

from foveal.cli.main import app
from foveal.memory import open_store
from foveal.memory.asking.answering import NOTHING

pytestmark = pytest.mark.slow

TOWER = "# Towers\n\nThe clock tower of Graz was repaired in 1998.\nIts keeper is\tIlse Marchetti.\n"
KEEPER = "Who is the keeper of the clock tower?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), 4)


@pytest.fixture
def chat(tmp_path: Path, model: Path) -> Chat:
    """With a memory `notes` of one file."""
    read(tmp_path, TOWER, "--model", str(model))
    return Chat(tmp_path, model)


def read(folder: Path, text: str, *options: str) -> None:
    (folder / "src").mkdir()
    (folder / "src" / "towers.md").write_text(text)
    command = ["read", str(folder / "src"), "--name", "notes", "--store", str(folder / "store"), *options]
    assert CliRunner().invoke(app, command).exit_code == 0


def test_a_message_about_a_memory_is_answered_from_places_and_is_a_turn(chat: Chat) -> None:
    (said,) = chat.json(f"{KEEPER}\n", "talk", "--memory", "notes")
    assert said["found"] and said["turn"] == 1 and said["tokens"] <= 4
    assert [(p["path"], p["first_line"], p["last_line"]) for p in said["places"]] == [("towers.md", 1, 4)]
    assert [step["name"] for step in said["steps"]] == ["find", "read", "write"]
    asked = ["ask", "notes", KEEPER, "--store", str(chat.folder / "store"), "--model", str(chat.model)]
    alone = json.loads(CliRunner().invoke(app, [*asked, "--max-tokens", "4", "--json"]).stdout)
    assert {key: said[key] for key in ("text", "citations", "places")} == {
        key: alone[key] for key in ("text", "citations", "places")
    }
    again, other = chat.json("/fork 0\n/say hello\n/fork 1\n" + f"{KEEPER}\n", "talk")
    assert "places" not in again and (again["conversation"], again["turn"]) == ("talk-2", 1)
    assert (other["conversation"], other["turn"], other["found"]) == ("talk-3", 2, True)
    assert "goes on behind turn 1" in chat.run("", "talk").stderr


def test_what_fits_no_place_is_a_message_like_any_other_and_only_ask_says_so(chat: Chat) -> None:
    message, nothing = chat.json("Quagga?\n/ask Quagga zebra?\n", "talk", "--memory", "notes")
    plain = chat.json("Quagga?\n", "other", "--memory", "notes", "--no-zoom")[0]
    assert (message["text"], message["found"], message["turn"]) == (plain["text"], False, 1)
    assert (nothing["text"], nothing["found"], nothing["turn"]) == (NOTHING, False, 1), "it is no turn"
    done = chat.run("/ask Quagga zebra?\n", "new", "--memory", "notes")
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{NOTHING}\n", "")


def test_commands_show_lines_and_places(chat: Chat) -> None:
    done = chat.run(
        f"/places\n/ask\n/say\n{KEEPER}\n/cite\n/places\n/help\n/say x\n/places\n", "talk", "--memory", "notes"
    )
    assert done.exit_code == 0
    for told in (
        "ask something: /ask QUESTION",
        "say something: /say MESSAGE",
        "/ask QUESTION ",
        "each message does so",
    ):
        assert told in done.stderr
    assert done.stderr.count("worded from no places") == 2 and "\\n" not in done.stderr
    assert "\n[1] towers.md:" in done.stdout and "\n     4  Its keeper is   Ilse Marchetti.\n" in done.stdout
    assert (
        "[1] towers.md:1-4  " in done.stdout and "search rank 1" in done.stdout and "\nfind: 1 place of" in done.stdout
    )
    plain = chat.run("/help\n", "talk", "--no-zoom").stderr
    assert "/ask QUESTION " in plain and "each message" not in plain


def test_without_a_memory_earlier_turns_are_asked_on_request(chat: Chat) -> None:
    lines = "My sister Ada keeps a heron.\nWho keeps a heron?\n/ask Who keeps a heron?\n"
    told, plain, asked = chat.json(lines, "talk")
    assert "places" not in told and "places" not in plain
    assert [place["path"] for place in asked["places"]] == ["chat/1/user"]
    told, asked = chat.json("My sister Ada keeps a heron.\nWho keeps a heron?\n", "other", "--zoom", "2")
    assert not told["found"] and [place["text"] for place in asked["places"]] == ["My sister Ada keeps a heron."]


def test_a_message_that_is_too_long_to_be_asked_is_a_message(chat: Chat) -> None:
    many = "the keeper of the tower " * 500
    small = write_model(chat.folder / "small", 5)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    (said,) = chat.json(f"{many}\n", "talk", "--memory", "notes", "--with", str(small))
    assert said["turn"] == 1 and not said["found"] and "places" not in said
    done = chat.run(f"/ask {many}\n", "other", "--memory", "notes", "--with", str(small))
    assert done.stdout == "" and "ask a shorter question" in done.stderr and len(done.stderr.splitlines()) == 1


def test_where_nobody_can_be_asked(chat: Chat, tmp_path: Path) -> None:
    narrow = write_model(tmp_path / "narrow", 6)
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    done = chat.run(f"{KEEPER}\nagain\n", "talk", "--memory", "notes", "--with", str(narrow))
    assert len(done.stdout.splitlines()) == 2 and done.stderr.count("without a look at the memory") == 1
    done = chat.run(f"{KEEPER}\nagain\n", "other", "--memory", "notes", "--with", str(narrow), "--zoom", "2")
    assert done.stdout == "" and done.stderr.count("256 tokens at once") == 2
    assert "256 tokens at once" in chat.run("/ask Who?\n", "third", "--no-zoom", "--with", str(narrow)).stderr


def test_a_memory_of_nano_is_worded_by_another_model_or_by_nano_as_before(tmp_path: Path, model: Path) -> None:
    read(tmp_path, TOWER)
    nano = NanoChat(tmp_path, model)
    said, unfit = nano.json(f"{KEEPER}\nQuagga?\n", "talk", "--memory", "notes", "--with", str(model))
    assert said["found"] and not unfit["found"] and unfit["places"] == [] and unfit["turn"] == 2
    done = nano.run("Quagga?\n", "talk", "--with", str(model))
    assert "means nothing" not in done.stderr, "what nano would say, and it does not say it"
    assert "means nothing" in nano.run("x\n", "other", "--memory", "notes").stderr, "nobody else is there"
    assert "foveal convert smollm2" in nano.run("/ask Who?\n", "other").stderr
    assert "means nothing" in nano.run("x\n", "third", "--memory", "notes", "--no-zoom", "--with", str(model)).stderr


class NanoChat(Chat):
    def run(self, lines: str, *arguments: str, **environment: str) -> Any:
        options = ["--store", str(self.folder / "store"), "--threads", "1", "--max-tokens", "4"]
        return CliRunner(env={"XDG_DATA_HOME": str(self.folder / "data"), **environment}).invoke(
            app, ["chat", *arguments, *options], input=lines
        )


def test_an_empty_memory(chat: Chat) -> None:
    (chat.folder / "void").mkdir()
    (chat.folder / "void" / "nothing.md").write_text(" \n")
    command = ["read", str(chat.folder / "void"), "--name", "void", "--store", str(chat.folder / "store")]
    assert CliRunner().invoke(app, [*command, "--model", str(chat.model)]).exit_code == 0
    message, nothing = chat.json("Who?\n/ask Who?\n", "talk", "--memory", "void")
    assert not message["found"] and message["turn"] == 1 and nothing["text"] == NOTHING


def test_zoom_and_no_zoom_together_are_refused(chat: Chat) -> None:
    done = chat.run("x\n", "--zoom", "2", "--no-zoom")
    assert done.exit_code == 2 and "give one of them" in done.stderr


# ---------------------------------------------------------------------- at a server


def test_a_server_is_asked(chat: Chat) -> None:
    with serving(chat.folder / "server", model=chat.model) as running:
        import httpx

        body = {"name": "notes", "files": [{"path": "towers.md", "text": TOWER}]}
        assert httpx.post(f"{running.url}/v1/memories", json=body, timeout=60).status_code == 201
        to = ("--server", running.url, "--memory", "notes")
        said, unfit, nothing, plain = chat.json(f"{KEEPER}\nQuagga?\n/ask Quagga?\n/say Quagga?\n", "talk", *to)
        assert said["found"] and said["places"][0]["path"] == "towers.md" and said["tokens"] <= 4
        assert [one["turn"] for one in (said, unfit, nothing, plain)] == [1, 2, 2, 3]
        assert not unfit["found"] and "places" not in unfit and nothing["text"] == NOTHING
        file = chat.folder / "data" / "foveal" / "chats" / "talk.json"
        contents = [message["content"] for message in json.loads(file.read_text())["messages"]]
        assert contents[:3] == [KEEPER, said["text"], "Quagga?"]
        done = chat.run(f"{KEEPER}\n/places\n/cite\n", "talk", "--server", running.url)
        assert "[1] towers.md:1-4  " in done.stdout and "     4  Its keeper is   Ilse" in done.stdout
        assert "towers.md" not in chat.run(f"{KEEPER}\n/places\n", "new", *to, "--no-zoom").stdout
        wrong = chat.run("hello\n/ask hello\n", "wrong", "--server", running.url, "--memory", "nothing")
        assert wrong.stdout == "" and wrong.stderr.count("there is no memory") == 2
        wrong = chat.run("hello\n", "wrong", *to, "--with", "nobody", "--zoom", "2")
        assert wrong.stdout == "" and "there is no model 'nobody'" in wrong.stderr
        assert "there is no memory to ask" in chat.run("/ask x\n", "none", "--server", running.url).stderr
        refused = chat.run("x\n", "none", "--server", running.url, "--zoom", "2")
        assert refused.exit_code == 1 and "give --memory NAME" in refused.stderr


SAID = b'data: {"choices": [{"delta": {"content": "plain"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


def event(**fields: Any) -> bytes:
    return b"event: x\ndata: " + json.dumps(fields).encode() + b"\n\n"


PLACES = event(type="places", places=["a.md:1"])


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_that_knows_no_questions_is_talked_to_without(chat: Chat, status: int) -> None:
    with sending(SAID, asked=(status, b"<html>")) as url:
        done = chat.run("hello\nagain\n", "--server", url, "--memory", "notes", "--no-save")
        assert done.stdout == "plain\nplain\n" and len(done.stderr.splitlines()) == 1
        assert "another program, or another version" in done.stderr
        sure = chat.run("hello\n", "--server", url, "--memory", "notes", "--no-save", "--zoom", "1")
        assert sure.stdout == "" and "another program" in sure.stderr


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        PLACES,
        PLACES + event(type="delta", text="half an answ"),
        PLACES + b'data: {"type": "del',
        PLACES + event(type="delta", text=5),
        PLACES + event(type="done"),
        PLACES + event(type="done", text="x", question="x", places=[{}], citations=[], steps=[], usage={}),
        event(type="places", places=5),
        event(type="delta", text="x"),
        event(type="error", error={"message": "it is broken", "type": "server_error"}),
        event(kind="places"),
        b"data: 5\n\n",
        b"data: " + b"[" * 200_000 + b"\n\n",
    ],
)
def test_a_server_that_breaks_off_or_sends_something_else(chat: Chat, sent: bytes) -> None:
    with sending(SAID, asked=(200, sent)) as url:
        done = chat.run("hello\n/say on\n", "talk", "--server", url, "--memory", "notes")
    assert done.exit_code == 1 and done.stdout.endswith("plain\n") and len(done.stderr.splitlines()) == 1
    assert "the server" in done.stderr
    saved = json.loads((chat.folder / "data" / "foveal" / "chats" / "talk.json").read_text())
    assert [message["content"] for message in saved["messages"]] == ["on", "plain"], "no turn is half a turn"


def test_a_server_that_refuses_this_question_only(chat: Chat) -> None:
    error = {"error": {"message": "it is too long", "type": "invalid_request_error", "param": "question"}}
    for asked in ((400, json.dumps(error).encode()), (200, event(type="error", **error))):
        with sending(SAID, asked=asked) as url:
            done = chat.run("hello\n/ask hello\n", "--server", url, "--memory", "notes", "--no-save")
        assert done.stdout == "plain\n" and "it is too long" in done.stderr and len(done.stderr.splitlines()) == 1
    error["error"]["param"] = "max_tokens"
    with sending(SAID, asked=(400, json.dumps(error).encode())) as url:
        done = chat.run("hello\n", "--server", url, "--memory", "notes", "--no-save")
    assert done.stdout == "" and "it is too long" in done.stderr, "what is no matter of the question is told"


@pytest.mark.parametrize("name", ["a/b", "../x", "", "notes?x=1"])
def test_a_name_that_no_memory_has_is_sent_to_nobody(chat: Chat, name: str) -> None:
    with sending(SAID) as url:
        done = chat.run("hello\n", "--server", url, "--memory", name)
    assert done.exit_code == 1 and "is not a name for a memory" in done.stderr and len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------------- a terminal


def test_ctrl_c_ends_an_answer_from_places_and_what_was_said_is_a_turn(chat: Chat) -> None:
    model = write_model(chat.folder / "endless", 4, ends=False)
    options = ["talk", "--memory", "notes", "--store", str(chat.folder / "store"), "--model", str(chat.model)]
    terminal = Terminal(*options, "--with", str(model), "--threads", "1", "--max-tokens", "200000", cwd=chat.folder)
    try:
        terminal.until("1> ")
        terminal.type(f"{KEEPER}\n")
        terminal.until(f"{KEEPER}\r\n")
        terminal.more(40)
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("[stopped]")
        terminal.until("2> ")
        terminal.type("/ask Quagga zebra?\n")
        terminal.until(NOTHING)
        terminal.until("2> ")
        terminal.type("/quit\n")
        assert terminal.end() == 0
    finally:
        terminal.process.kill()
    assert open_store(chat.folder / "store").info("talk").facts["tokens"] > 40


def test_ctrl_c_gives_up_a_server_that_does_not_answer(chat: Chat) -> None:
    came = threading.Event()
    with sending(b"", hangs=came) as url:
        terminal = Terminal("talk", "--server", url, "--memory", "notes", "--no-save", cwd=chat.folder)
        try:
            for message in (KEEPER, "/say hello"):
                terminal.until("1> ")
                terminal.type(f"{message}\n")
                assert came.wait(60)
                came.clear()
                terminal.process.send_signal(signal.SIGINT)
                terminal.until("stopped before anything was said")
            terminal.until("1> ")
            terminal.type("/quit\n")
            assert terminal.end() == 0
        finally:
            terminal.process.kill()

"""`foveal chat`: lines in and answers out, commands, a server, and a terminal."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from cli_support import write_model
from click.testing import CliRunner
from server_support import key, serving
from talk_support import Chat, Terminal, sending

from foveal.cli.main import app
from foveal.memory import open_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), 4)


@pytest.fixture
def chat(tmp_path: Path, model: Path) -> Chat:
    return Chat(tmp_path, model)


def test_every_line_is_a_message(chat: Chat) -> None:
    done = chat.run("hello\n\nagain\n//slash\n", "talk")
    assert (done.exit_code, done.stderr) == (0, ""), "a conversation that was named needs no note"
    first, second, third = chat.json("hello\nagain\n//slash\n", "other")
    assert done.stdout == "".join(f"{said['text']}\n" for said in (first, second, third))
    assert [said["turn"] for said in (first, second, third)] == [1, 2, 3]
    assert second["found_tokens"] > first["prompt_tokens"]
    assert {said["finish_reason"] for said in (first, second, third)} <= {"stop", "length"}


def test_it_goes_on_where_it_ended(chat: Chat) -> None:
    whole = chat.json("one\ntwo\nthree\n", "whole")
    chat.json("one\ntwo\n", "talk")
    (third,) = chat.json("three\n", "talk")
    assert third == whole[2] | {"conversation": "talk", "seconds": third["seconds"]}
    assert "goes on behind turn 3" in chat.run("", "talk").stderr


def test_a_name_is_made_up_and_told(chat: Chat) -> None:
    done = chat.run("hello\n")
    name = done.stderr.split("foveal chat ")[1].strip()
    assert name.startswith("chat-") and len(chat.json("again\n", name)) == 1
    count = len(open_store(chat.folder / "store").contexts())
    assert chat.run("hello\n", "--no-save").stderr == ""
    assert len(open_store(chat.folder / "store").contexts()) == count


def test_instructions_given_again_count_from_where_it_begins_anew(chat: Chat) -> None:
    long = chat.json("hello\n", "talk", "--system", "Be short. " * 30)[0]
    short = chat.json("hello\n", "other", "--system", "x")[0]
    done = chat.run("/new\nhello\n", "talk", "--system", "x", "--json")
    assert "goes on with the instructions that it began with" in done.stderr
    anew = json.loads(done.stdout)
    assert anew["turn"] == 1 and anew["prompt_tokens"] == short["prompt_tokens"] < long["prompt_tokens"]


def test_commands(chat: Chat) -> None:
    lines = "/help /cite one two /fork=1 two /new one /save=mine /nope /fork=x /save /quit x".split()
    done = chat.run("".join(line.replace("=", " ") + "\n" for line in lines), "talk", "--json")
    assert done.exit_code == 0
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["conversation"], one["turn"]) for one in said] == [
        *(("talk", 1), ("talk", 2), ("talk-2", 2), ("talk-3", 1))
    ]
    assert said[1]["text"] == said[2]["text"] and said[0]["text"] == said[3]["text"], "the same after the same turns"
    for told in (
        "/fork [TURN]",
        "talk-2 goes on behind turn 1; talk is saved",
        "talk-3 begins; talk-2 is saved",
        "saved as mine",
        "no command /nope",
        "x is no turn",
        "/save NAME",
    ):
        assert told in done.stderr
    store = open_store(chat.folder / "store")
    saved = {name: store.info(name).facts["tokens"] for name in ("talk", "talk-2", "talk-3", "mine")}
    assert saved["talk"] == saved["talk-2"] and saved["talk-3"] == saved["mine"] < saved["talk"]
    assert "in the context" in chat.run("one\n/why\n", "talk").stdout


def test_what_goes_wrong_is_one_line_and_the_chat_goes_on(chat: Chat) -> None:
    many = "9" * 5000
    done = chat.run(f"/fork 9\n/fork {many}\n/fork \u0662\n/save ../x\nhello\n", "talk")
    assert done.exit_code == 1 and done.stderr.count("there is no turn") == 3 and "not a name" in done.stderr
    assert chat.run("hello\n", "").exit_code == 1, "a variable that is not set is no name"
    assert len(done.stdout.splitlines()) == 1


def test_about_a_memory(chat: Chat) -> None:
    (chat.folder / "src").mkdir()
    (chat.folder / "src" / "a.py").write_text("def port():\n    return 8000\n" * 30)
    read = ["read", str(chat.folder / "src"), "--name", "src", "--store", str(chat.folder / "store")]
    assert CliRunner().invoke(app, [*read, "--model", str(chat.model)]).exit_code == 0
    said = chat.json("def port():\n", "talk", "--memory", "src", "--no-zoom")[0]
    assert said["found_tokens"] > 200 and "places" not in said
    for cited in said["citations"]:
        assert cited["path"] == "a.py" and 1 <= cited["first_line"] <= cited["last_line"] <= 60
    cited = chat.run("def port():\n/cite\n", "talk", "--memory", "src", "--no-zoom").stdout
    assert "a.py:" in cited or not said["citations"]
    listed = CliRunner().invoke(app, ["ls", *read[-2:]]).stdout
    assert "a conversation about src" in listed
    assert "no conversation; foveal chat --memory src" in chat.run("x\n", "src").stderr
    assert "is not about" in chat.run("x\n", "talk", "--memory", "talk").stderr
    assert "there is no memory" in chat.run("x\n", "new", "--memory", "nothing").stderr
    assert "conversation" in CliRunner().invoke(app, ["sync", "talk", *read[-2:], "--model", str(chat.model)]).stderr


def test_a_model_that_cannot_chat(chat: Chat, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "plain", 1)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("｜DSML｜", "｜XSML｜"), encoding="utf-8")
    chat.model = folder
    done = chat.run("hello\n")
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    assert "no chat template" in done.stderr and "foveal convert smollm2" in done.stderr


# ---------------------------------------------------------------------- at a server


def test_a_server(chat: Chat) -> None:
    with serving(chat.folder / "server", model=chat.model) as running:
        to = ("--server", running.url + "/v1")
        first, second = chat.json("one\ntwo\n", "talk", *to, "--system", "Be short. " * 30)
        assert second["found_tokens"] > first["prompt_tokens"] and second["turn"] == 2
        assert chat.json("three\n", "talk", *to)[0]["turn"] == 3
        done = chat.run("/fork 1\ntwo\n/why\n", "talk", *to)
        assert done.stdout.startswith(second["text"]) and "all was found" in done.stdout
        file = chat.folder / "data" / "foveal" / "chats" / "talk-2.json"
        assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
        assert [message["role"] for message in json.loads(file.read_text())["messages"]] == [
            *("system", "user", "assistant", "user", "assistant")
        ]
        assert not (chat.folder / "store").exists()
        wrong = chat.run("hello\n", "new", *to, "--memory", "nothing")
        assert wrong.exit_code == 1 and "there is no memory" in wrong.stderr and wrong.stdout == ""
    gone = chat.run("hello\n", *to)
    assert gone.exit_code == 1 and "cannot be asked" in gone.stderr and len(gone.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"data: 5\n\n",
        b'data: {"choices": 5}\n\n',
        b'data: {"choices": [5]}\n\n',
        b'data: {"choices": [{"delta": "x"}]}\n\n',
        b'data: {"choices": [{"delta": {"content": 5}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n',
        b'data: {"choices": [{"delta": {"citations": [{}]}}]}\n\n',
        b'data: {"usage": 5}\n\n',
        b'data: {"usage": {}}\n\ndata: {"usage": {"prompt_tokens": 1}}\n\n',
        b'data: {"error": "it is broken"}\n\n',
        b"data: nonsense\n\n",
        b"",
    ],
)
def test_a_server_that_sends_something_else(chat: Chat, sent: bytes) -> None:
    with sending(sent) as url:
        done = chat.run("hello\n", "--server", url, "--model", "m")
    assert done.exit_code == 1 and done.stdout.strip() == "" and "the server" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("listed", [b"5", b"[]", b'{"data": 5}', b'{"data": [5]}', b"nonsense"])
def test_a_server_that_has_no_list(chat: Chat, listed: bytes) -> None:
    with sending(b"", listed) as url:
        for arguments in (["chat", "--server", url], ["why", "--server", url]):
            done = CliRunner().invoke(app, arguments, input="hello\n")
            assert done.exit_code == 1 and "with no list" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "messages",
    [
        "5",
        '"text"',
        "[5]",
        '[{"role": "user"}]',
        '[{"role": "user", "content": "x"}]',
        '[{"role": "user", "content": 5}]',
        '[], "memory": 5',
    ],
)
def test_a_conversation_that_is_none(chat: Chat, messages: str) -> None:
    folder = chat.folder / "data" / "foveal" / "chats"
    folder.mkdir(parents=True)
    (folder / "talk.json").write_text(f'{{"messages": {messages}}}')
    with sending(b"") as url:
        done = chat.run("hello\n", "talk", "--server", url)
    assert done.exit_code == 1 and "is no saved conversation" in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:99999", "http://[::1", "ftp://x", "http://", "http://exa mple", "http://x:port", ""),
        *("http://127.0.0.1:1/\u00e4", f"http://{'a' * 300}:1", "http://127.0.0.1:1/a b", "http://127.0.0.1:1/\x7f"),
    ],
)
def test_an_address_that_is_none(chat: Chat, url: str) -> None:
    done = chat.run("hello\n", "--server", url)
    assert done.exit_code == 1 and "is no address of a server" in done.stderr and len(done.stderr.splitlines()) == 1


def test_secrets_are_not_shown(chat: Chat) -> None:
    with sending(b"") as url:
        for key in ("se\ncret", "secret\u20ac"):
            done = chat.run("hello\n", "--server", url, FOVEAL_API_KEY=key)
            assert done.exit_code == 1 and "FOVEAL_API_KEY" in done.stderr and "cret" not in done.stderr
        done = chat.run("hello\n", "--server", url.replace("//", "//me:secret@"))
        assert done.exit_code == 1 and "FOVEAL_API_KEY" in done.stderr and "cret" not in done.stderr


def test_a_server_that_wants_a_key(chat: Chat) -> None:
    with serving(chat.folder / "server", model=chat.model, keys=(key("alice"),)) as running:
        assert "refuses" in chat.run("hello\n", "--server", running.url).stderr
        assert chat.run("hello\n", "--server", running.url, FOVEAL_API_KEY="alice").exit_code == 0
    assert chat.run("hello\n", "--server", "nonsense").exit_code == 1


# ---------------------------------------------------------------------- a terminal


def test_ctrl_c_ends_the_answer_and_not_the_chat(chat: Chat) -> None:
    model = write_model(chat.folder / "endless", 4, ends=False)
    options = ["talk", "--store", str(chat.folder / "store"), "--model", str(model), "--threads", "1"]
    terminal = Terminal(*options, "--max-tokens", "900000", "--temperature", "0", cwd=chat.folder)
    try:
        terminal.until("1> ")
        terminal.type("hello\n")
        terminal.until("hello\r\n")
        terminal.more(200)
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("[stopped]")
        terminal.until("2> ")
        terminal.interrupt_until("once more to leave")
        terminal.until("2> ")
        terminal.type("/quit\n")
        assert terminal.end() == 0
    finally:
        terminal.process.kill()
    assert open_store(chat.folder / "store").info("talk").facts["tokens"] > 10

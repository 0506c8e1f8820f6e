"""An OpenAI-compatible endpoint, played by a small server that reads its prompt."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from evals_support import write_source

from foveal.cli.main import app
from foveal.evals.errors import EndpointError
from foveal.evals.systems import EndpointSystem
from foveal.evals.task import Question
from foveal.sources import Document


class Grep(BaseHTTPRequestHandler):
    """Continues a cue as the text in the prompt does; refuses what `refusals` says, first."""

    asked: list[tuple[str, dict[str, Any]]]
    refusals: list[int]
    raw: list[bytes]
    choices: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        if self.raw:
            self.wfile.write(self.raw.pop(0))
            self.close_connection = True
            return None
        if self.choices:
            return self._reply(200, {"choices": [self.choices.pop(0)]})
        if self.refusals:
            return self._reply(self.refusals.pop(0), {"error": "not now"})
        if self.path == "/v1/completions":
            text, _, cue = body["prompt"].rpartition("\n")
            choice: dict[str, Any] = {"text": text.partition(cue)[2][: 4 * body["max_tokens"]], "finish_reason": "stop"}
        else:
            choice = {"message": {"role": "assistant", "content": body["messages"][0]["content"][-60:]}}
        self._reply(200, {"choices": [choice], "usage": {"prompt_tokens": 1234}})

    def _reply(self, code: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[Grep]]]:
    handler = type("Handler", (Grep,), {"asked": [], "refusals": [], "raw": [], "choices": []})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}", handler
    http.shutdown()
    http.server_close()


QUESTION = Question(ask="What is 7?", cues=("seven is",), answers=("8",), max_tokens=5, stop=("\n",))
TEXT = (Document("a.txt", "one is 1\nseven is 8\n"),)


def test_completions_are_continued(server: tuple[str, type[Grep]]) -> None:
    url, handler = server
    with EndpointSystem(url + "/v1/", "m", "completion", seed=3).reading(TEXT) as reader:
        (answer,) = reader.ask(QUESTION)
    assert answer.text.startswith(" 8") and answer.prompt_tokens == 1234 and not answer.chat
    ((path, body),) = handler.asked
    assert path == "/v1/completions" and body["prompt"] == "# file: a.txt\none is 1\nseven is 8\n\nseven is"
    assert (body["model"], body["temperature"], body["seed"], body["stop"]) == ("m", 0, 3, ["\n"])


def test_chat_asks_behind_the_text(server: tuple[str, type[Grep]]) -> None:
    url, handler = server
    with EndpointSystem(url, "m", "chat", seed=0).reading(TEXT) as reader:
        (answer,) = reader.ask(QUESTION)
    assert answer.text.endswith("What is 7?") and answer.chat
    assert handler.asked[0][0] == "/v1/chat/completions"
    assert handler.asked[0][1]["messages"][0]["role"] == "user"


def test_what_may_pass_is_tried_again_and_what_may_not_is_said(server: tuple[str, type[Grep]]) -> None:
    url, handler = server
    system = EndpointSystem(url, "m", "completion", seed=0, pause=0.0)
    with system.reading(TEXT) as reader:
        handler.refusals += [503, 429]
        assert reader.ask(QUESTION)[0].text.startswith(" 8") and len(handler.asked) == 3
        handler.refusals += [400]
        with pytest.raises(EndpointError, match=r"refused with 400.*not now"):
            reader.ask(QUESTION)
    with pytest.raises(EndpointError, match="cannot be reached"):
        EndpointSystem("http://127.0.0.1:9", "m", "chat", seed=0, pause=0.0).chat("x", QUESTION)
    with pytest.raises(EndpointError, match="not the address"):
        EndpointSystem("localhost", "m", "chat", seed=0)


def test_the_command_asks_an_endpoint(server: tuple[str, type[Grep]], tmp_path: Path) -> None:
    url, handler = server
    source = str(write_source(tmp_path / "source"))
    base = ["eval", "single_2,multiquery,indexer", "--endpoint", url, "--source", source, "--length", "2k"]
    more = ["--samples", "2", "--form", "completion", "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, [*base, "--endpoint-model", "m", *more])
    assert result.exit_code == 0, result.output
    rows = {(row["task"], row["system"]): row for row in json.loads(result.stdout)["results"]}
    assert rows["single_2", "endpoint"]["accuracy"] == rows["multiquery", "endpoint"]["accuracy"] == 1
    assert not any(task == "indexer" for task, _ in rows)
    asked = len(handler.asked)
    assert CliRunner().invoke(app, [*base, "--endpoint-model", "m", *more]).stdout == result.stdout
    assert len(handler.asked) == asked
    lacking = CliRunner().invoke(app, base)
    assert lacking.exit_code == 1 and "--endpoint-model" in lacking.stderr


_CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"


def test_what_is_no_http_is_tried_again_and_then_said(server: tuple[str, type[Grep]]) -> None:
    url, handler = server
    system = EndpointSystem(url, "m", "completion", seed=0, pause=0.0)
    with system.reading(TEXT) as reader:
        handler.raw += [b"hello\r\n\r\n", _CUT]
        assert reader.ask(QUESTION)[0].text.startswith(" 8") and len(handler.asked) == 3
        handler.raw += [_CUT] * 4
        with pytest.raises(EndpointError, match="cannot be reached"):
            reader.ask(QUESTION)
        handler.raw += [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"]
        with pytest.raises(EndpointError, match="did not answer with JSON"):
            reader.ask(QUESTION)
    for wrong in ("http://localhost:port", "http://localhost:99999", "http://local host/v1"):
        with pytest.raises(EndpointError, match="not the address"):
            EndpointSystem(wrong, "m", "chat", seed=0).chat("x", QUESTION)


def test_keys_are_sent_without_the_line_end_of_their_file(server: tuple[str, type[Grep]]) -> None:
    url, _ = server
    assert EndpointSystem(url, "m", "chat", seed=0, key="secret\n").chat("x", QUESTION).text
    for wrong in ("two\nlines", "schl\u00fcssel"):
        with pytest.raises(EndpointError, match="OPENAI_API_KEY"):
            EndpointSystem(url, "m", "chat", seed=0, key=wrong)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"message": {"content": None}, "finish_reason": "length"}, "before any text"),
        ({"message": {"content": None}, "finish_reason": "tool_calls"}, "without a text .*tool_calls"),
        ({"message": {"content": 7}}, "without a text"),
        ({"message": None}, "something else than the OpenAI protocol"),
    ],
)
def test_an_answer_without_text_is_no_answer(server: tuple[str, type[Grep]], choice: dict[str, Any], said: str) -> None:
    url, handler = server
    handler.choices.append(choice)
    with pytest.raises(EndpointError, match=said):
        EndpointSystem(url, "m", "chat", seed=0).chat("x", QUESTION)
    handler.choices.append({"text": None})
    with pytest.raises(EndpointError, match="without a text"):
        EndpointSystem(url, "m", "completion", seed=0).complete("x", QUESTION)


def test_a_refusal_keeps_what_was_measured(server: tuple[str, type[Grep]], tmp_path: Path) -> None:
    url, handler = server
    source, out = str(write_source(tmp_path / "source")), tmp_path / "out"
    base = ["eval", "single_2", "--endpoint", url, "--endpoint-model", "m", "--source", source, "--length", "2k"]
    more = ["--samples", "2", "--form", "completion", "--out", str(out), "--json"]

    with pytest.MonkeyPatch.context() as patch:
        ask = handler.do_POST

        def first_only(self: Grep) -> None:
            if self.asked:
                self.refusals.append(400)
            ask(self)

        patch.setattr(handler, "do_POST", first_only)
        stopped = CliRunner().invoke(app, [*base, *more])
    document = json.loads(stopped.stdout)
    assert stopped.exit_code == 1 and not document["complete"] and document["n"] == 1
    assert "refused with 400" in document["problems"][0]["message"]
    assert "refused with 400" in stopped.stderr and "same command again" in stopped.stderr
    kept = [json.loads(line) for line in (out / "results.jsonl").read_bytes().splitlines()]
    assert kept[0]["detail"]["finish_reasons"] == ["stop"]
    handler.refusals.clear()
    whole = CliRunner().invoke(app, [*base, *more])
    assert whole.exit_code == 0 and json.loads(whole.stdout)["complete"] and not json.loads(whole.stdout)["problems"]

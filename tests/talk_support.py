"""`foveal chat` for tests: through a pipe, at a terminal, and at a server that says what it is told to."""

from __future__ import annotations

import http.server
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from foveal.cli.main import app


class Chat:
    """``foveal chat`` with one model, one store and one folder of data."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model

    def run(self, lines: str, *arguments: str, **environment: str) -> Result:
        options = ["--store", str(self.folder / "store"), "--threads", "1", "--max-tokens", "4", "--temperature", "0"]
        if "--server" not in arguments:
            options += ["--model", str(self.model)]
        return CliRunner(env={"XDG_DATA_HOME": str(self.folder / "data"), **environment}).invoke(
            app, ["chat", *arguments, *options], input=lines
        )

    def json(self, lines: str, *arguments: str) -> list[Any]:
        done = self.run(lines, *arguments, "--json")
        assert done.exit_code == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def sending(
    answer: bytes,
    listed: bytes = b'{"data": [{"id": "m"}]}',
    asked: tuple[int, bytes] = (404, b'{"detail": "Not Found"}'),
    hangs: threading.Event | None = None,
) -> Iterator[str]:
    """A server that answers chats with `answer`, questions to memories with `asked` (status and body), and all else
    with `listed`. If it `hangs` it answers the first two only when it ends, and sets that when one comes."""
    ends = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self, sent: bytes = listed, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            if hangs is not None:
                hangs.set()
                ends.wait()
            elif self.path.endswith("/ask"):
                self.do_GET(asked[1], asked[0])
            else:
                self.do_GET(answer)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            ends.set()
            server.shutdown()
            thread.join()


class Terminal:
    """``foveal chat`` at a terminal of its own."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self._mine, theirs = pty.openpty()
        heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's & ignores it
        code = f"{heard}; from foveal.cli.entry import main; main()"
        environment = {**os.environ, "TERM": "dumb"}
        command = [sys.executable, "-c", code, "chat", *arguments]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._mine, text.encode())

    def until(self, text: str) -> None:
        """Wait until it shows `text`, behind what was waited for before."""
        self._wait(lambda: text in self.shown)
        self.shown = self.shown.split(text, 1)[1]

    def interrupt_until(self, text: str) -> None:
        """`until`, after Ctrl-C: readline hears one only when it waits for a key, and does so a moment after it has
        shown its prompt."""
        while text not in self.shown:
            self.process.send_signal(signal.SIGINT)
            if select.select([self._mine], [], [], 5)[0]:
                self.until(text)
                return

    def more(self, count: int) -> None:
        """Wait until it shows so many more characters."""
        self._wait(lambda: len(self.shown) >= count)

    def _wait(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end, f"it does not come: {self.shown[-500:]!r}"
            if select.select([self._mine], [], [], 0.1)[0]:
                self.shown += os.read(self._mine, 4096).decode(errors="replace")

    def end(self) -> int:
        code = self.process.wait(60)
        os.close(self._mine)
        return code

"""What the measurements of a server share: a server of one's own, and one streamed completion with its times."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from foveal.engine import model_folder
from foveal.text import Tokenizer

READY_SECONDS = 120.0


@dataclass
class Stream:
    """One completion. Times are seconds of `time.perf_counter`; `times` has one for each event with tokens."""

    began: float
    times: list[float] = field(default_factory=list)
    ended: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    found: int = 0
    logprobs: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.began

    @property
    def gaps(self) -> list[float]:
        """Seconds between two events."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    @property
    def rate(self) -> float:
        """Tokens a second behind the first event."""
        return (self.tokens - 1) / (self.times[-1] - self.times[0]) if len(self.times) > 1 else 0.0


async def completion(url: str, body: dict[str, Any], key: str | None = None) -> Stream:
    """``/v1/completions``, streamed. HTTP/1.0, so that the events come as they are. Never raises for what the server or
    the connection does: that is `Stream.error`."""
    place = urlsplit(url)
    data = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    head = [
        f"POST {place.path.removesuffix('/').removesuffix('/v1')}/v1/completions HTTP/1.0",
        f"host: {place.netloc}",
        "content-type: application/json",
        f"content-length: {len(data)}",
        *([f"authorization: Bearer {key}"] if key else []),
    ]
    stream = Stream(time.perf_counter())
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_connection(place.hostname, place.port or 80, limit=1 << 26)
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + data)
        await _read(reader, stream)
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        stream.error = stream.error or f"{type(error).__name__}: {error}"
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    stream.ended = time.perf_counter()
    return stream


async def _read(reader: asyncio.StreamReader, stream: Stream) -> None:
    status = (await reader.readline()).split(b" ", 2)
    if status[1:2] != [b"200"]:
        body = (await reader.read()).split(b"\r\n\r\n", 1)[-1]
        stream.error = f"{b' '.join(status[1:]).decode().strip()}: {body[:200].decode(errors='replace')}"
        return
    done = False
    while line := await reader.readline():
        if line.startswith(b"data: [DONE]"):
            done = True
        elif line.startswith(b"data: "):
            _take(json.loads(line[6:]), stream)
    if not done:
        stream.error = stream.error or "the stream broke off"


def _take(chunk: dict[str, Any], stream: Stream) -> None:
    if "error" in chunk:
        stream.error = str(chunk["error"].get("message"))
        return
    usage = chunk.get("usage")
    if usage:
        stream.tokens, stream.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
        stream.found = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    for choice in chunk.get("choices", ()):
        told = choice.get("logprobs") or {}
        stream.logprobs += [value for value in told.get("token_logprobs") or [] if value is not None]
        if choice.get("text") or told.get("tokens"):
            stream.times.append(time.perf_counter())


def run(url: str, body: dict[str, Any], key: str | None = None) -> Stream:
    """`completion`, from outside of an event loop. Raises `RuntimeError` for what it did not answer."""
    stream = asyncio.run(completion(url, body, key))
    if stream.error:
        raise RuntimeError(stream.error)
    return stream


def percentiles(values: Sequence[float], *shares: float) -> list[float]:
    """The values below which such shares of all lie."""
    ordered = sorted(values)
    return [ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan") for share in shares]


def said(name: str, seconds: Sequence[float]) -> str:
    """A line about times."""
    p50, p90, p99 = (1000 * value for value in percentiles(seconds, 0.5, 0.9, 0.99))
    return f"{name}: p50 {p50:,.1f} ms, p90 {p90:,.1f}, p99 {p99:,.1f}  ({len(seconds)})"


def real_source(folder: Path, tokens: int, of: Path | None = None) -> Path:
    """A folder below `folder` with about so many of the nano's tokens of Python, copied from `of` (default: Python's
    own library, its tests left out)."""
    of = of or Path(sysconfig.get_path("stdlib"))
    tokenizer, place, count = Tokenizer.from_file(model_folder("nano")), folder / "source", 0
    for path in sorted(of.rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(path.parts) or count >= tokens:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        count += len(tokenizer.encode(text))
        to = place / path.relative_to(of)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text, encoding="utf-8")
    return place


# ---------------------------------------------------------------------- a server


@dataclass(frozen=True)
class Server:
    """A server in a process of its own. `ready`: seconds from its start to when it took requests."""

    url: str
    process: subprocess.Popen[bytes]
    ready: float

    def bytes_read(self) -> int:
        """Bytes that the process has had from storage so far (Linux)."""
        with open(f"/proc/{self.process.pid}/io") as file:
            return int(next(line.split()[1] for line in file if line.startswith("read_bytes")))

    def kill(self) -> None:
        """As a power cut would."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving(store: Path, *arguments: str) -> Iterator[Server]:
    """``foveal serve ARGUMENTS`` on a free port, with its store at `store`, until it is ready; stopped in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from foveal.cli.entry import main; main()", "serve"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, *arguments, "--store", str(store), "--port", str(port)], env=environment, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        yield Server(url, process, _until_ready(url, process, began))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _until_ready(url: str, process: subprocess.Popen[bytes], began: float) -> float:
    while time.perf_counter() - began < READY_SECONDS and process.poll() is None:
        with contextlib.suppress(OSError), urlopen(f"{url}/ready", timeout=5) as answer:
            if answer.status == 200:
                return time.perf_counter() - began
        time.sleep(0.005)
    raise RuntimeError(f"the server at {url} does not become ready (exit code {process.poll()})")

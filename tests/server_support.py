"""A server on a real socket: a tiny random model with the nano's tokenizer, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from cli_support import write_model

from foveal.engine import Engine
from foveal.server.auth import Key, Keys, digest_of
from foveal.server.opening import listen, make_server, registry_of
from foveal.server.service import Service
from foveal.server.settings import Settings
from foveal.server.tracing import Tracing

T = TypeVar("T")


class Running:
    """A server that runs. `url` has no path."""

    def __init__(
        self, url: str, service: Service, loop: asyncio.AbstractEventLoop, interrupt: Callable[[], None]
    ) -> None:
        """`interrupt`: what Ctrl-C does."""
        self.url, self.service, self._loop, self.interrupt = url, service, loop, interrupt

    @property
    def engine(self) -> Engine:
        return next(iter(self.service.registry.models.values())).engine.engine

    def call(self, function: Callable[[], Any]) -> Any:
        """In the server's event loop."""
        return self.run(_call(function))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)


async def _call(function: Callable[[], Any]) -> Any:
    return function()


def key(name: str, **settings: Any) -> Key:
    """A key whose secret is its name."""
    return Key(name=name, digest=digest_of(name), tenant=settings.pop("tenant", name), **settings)


@contextlib.contextmanager
def serving(
    folder: Path,
    model: Path | None = None,
    keys: tuple[Key, ...] = (),
    tracing: Tracing | None = None,
    name: str = "tiny",
    **settings: Any,
) -> Iterator[Running]:
    """Serve a tiny model, or another one, as `name`; its store lies in `folder`."""
    model = model or write_model(folder / "model", 4)
    engine = Engine.open(model, threads=1, context_length=settings.pop("context_length", None))
    chosen = replace(
        Settings(port=0, store=folder / "store", drain_seconds=2, aliases={"claude-*": name, "gpt": name}),
        **settings,
    )
    registry = registry_of({name: (engine, model)}, chosen)
    server = make_server(registry, Keys(keys), chosen, tracing=tracing)
    socket = listen(chosen)
    ready, loops = threading.Event(), []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        ready.set()
        await server.serve(sockets=[socket])

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    ready.wait()
    try:
        host, port = socket.getsockname()[:2]
        service: Service = server.config.app.state.service  # type: ignore[union-attr]
        yield Running(f"http://{host}:{port}", service, loops[0], lambda: server.handle_exit(signal.SIGINT, None))
    finally:
        server.should_exit = True
        thread.join()
        engine.close()


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``foveal serve ARGUMENTS`` as a process: its address, and the process."""
    command = [sys.executable, "-m", "foveal", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "FOVEAL_API_KEY": ""})
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, line + process.stderr.read()
        yield found[0], process
    finally:
        process.kill()
        process.communicate()

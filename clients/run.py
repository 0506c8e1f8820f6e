"""Real clients, unmodified, against `foveal serve` with the nano: what each does is written in its script here.

python clients/run.py [NAME...]          make clients does it; each client is installed once, below build/clients

The nano was not trained to chat, so the protocol is checked: streams parse, runs end in order, forced tools and schemas
give valid values, errors are those that the client knows. Versions are what the registries give unless they are named.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "clients"
KEY, MODEL = "secret-of-the-clients", "nano"
LIMIT = 900
"""Seconds that one client may take. Some take a minute only to start."""
NPM = BUILD / "npm"
NODE_PACKAGES = (
    "openai @anthropic-ai/sdk ai @ai-sdk/openai-compatible @ai-sdk/openai @ai-sdk/anthropic @modelcontextprotocol/sdk "
    "@anthropic-ai/claude-code@2.1.197 @openai/codex@0.171.0 opencode-ai@1.18.33 "
    "@mariozechner/pi-coding-agent@0.73.1 cline@3.0.65 @qwen-code/qwen-code@0.15.10"
).split()


@dataclass(frozen=True)
class Client:
    """A client: its script below this folder; what pip installs for it, or the npm package that tells its version."""

    script: str
    packages: tuple[str, ...] = ()
    npm: str = ""

    @property
    def of_python(self) -> bool:
        return self.script.startswith("python/")


CLIENTS = {
    "openai": Client("python/openai_sdk.py", ("openai", "pydantic")),
    "anthropic": Client("python/anthropic_sdk.py", ("anthropic",)),
    "mcp": Client("python/mcp_sdk.py", ("mcp", "httpx")),
    "fastmcp": Client("python/fastmcp_sdk.py", ("fastmcp",)),
    "litellm": Client("python/litellm_sdk.py", ("litellm",)),
    "langchain": Client("python/langchain_sdk.py", ("langchain-openai", "langchain-anthropic")),
    "pydantic_ai": Client("python/pydantic_ai_sdk.py", ("pydantic-ai-slim[openai,anthropic]", "anthropic<2")),
    "openai_agents": Client("python/openai_agents_sdk.py", ("openai-agents",)),
    "instructor": Client("python/instructor_sdk.py", ("instructor",)),
    "smolagents": Client("python/smolagents_sdk.py", ("smolagents[openai]",)),
    "dspy": Client("python/dspy_sdk.py", ("dspy",)),
    "llama_index": Client("python/llama_index_sdk.py", ("llama-index-llms-openai-like",)),
    "lm_eval": Client("python/lm_eval_sdk.py", ("lm-eval[api]",)),
    "claude_agent": Client("python/claude_agent.py", ("claude-agent-sdk",)),
    "schemathesis": Client("python/schemathesis_run.py", ("schemathesis",)),
    "openai (npm)": Client("node/openai.mjs", npm="openai"),
    "anthropic (npm)": Client("node/anthropic.mjs", npm="@anthropic-ai/sdk"),
    "ai (npm)": Client("node/ai.mjs", npm="ai"),
    "mcp (npm)": Client("node/mcp.mjs", npm="@modelcontextprotocol/sdk"),
    "claude-code": Client("agents/claude_code.py", npm="@anthropic-ai/claude-code"),
    "codex": Client("agents/codex.py", npm="@openai/codex"),
    "opencode": Client("agents/opencode.py", npm="opencode-ai"),
    "pi": Client("agents/pi.py", npm="@mariozechner/pi-coding-agent"),
    "cline": Client("agents/cline.py", npm="cline"),
    "qwen-code": Client("agents/qwen_code.py", npm="@qwen-code/qwen-code"),
    "mini_swe": Client("python/mini_swe.py", ("mini-swe-agent",)),
    "aider": Client("python/aider_run.py", ("aider-chat==0.86.2",)),
}


@dataclass(frozen=True)
class Outcome:
    """How a client fared. `went`: what went well, in order. `problem`: the last line where something did not."""

    name: str
    version: str
    went: tuple[str, ...]
    problem: str
    seconds: float


def main() -> int:
    """Run all clients, or those that are named; 1 if any failed."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="*", metavar="NAME", help=f"which; default all of: {', '.join(CLIENTS)}")
    names = arguments.parse_args().names or list(CLIENTS)
    unknown = [name for name in names if name not in CLIENTS]
    if unknown:
        arguments.error(f"there is no client {unknown[0]!r}")
    BUILD.mkdir(parents=True, exist_ok=True)
    with server() as url:
        outcomes = [tried(name, url) for name in names]
    print(f"\n{'client':<18}{'version':<12}{'result':<8}{'seconds':>8}  what went well, or what did not")
    for each in outcomes:
        result = "failed" if each.problem else "passed"
        told = each.problem or "; ".join(each.went)
        print(f"{each.name:<18}{each.version:<12}{result:<8}{each.seconds:>8.0f}  {told}")
    return 1 if any(each.problem for each in outcomes) else 0


def tried(name: str, url: str) -> Outcome:
    """Install a client if it is not there, and run its script."""
    client, start = CLIENTS[name], time.monotonic()
    print(f"{name} ...", flush=True)
    try:
        folder = installed(name, client)
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout or str(error)).strip().splitlines()[-1]
        return Outcome(name, "", (), f"cannot be installed: {last}", time.monotonic() - start)
    home = BUILD / "homes" / re.sub(r"\W+", "-", name)
    home.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "FOVEAL_URL": url,
        "FOVEAL_KEY": KEY,
        "FOVEAL_MODEL": MODEL,
        "CLIENT_BIN": str(NPM / "node_modules" / ".bin"),
        "CLIENT_HOME": str(home),
    }
    log = BUILD / f"{home.name}.log"
    try:
        done = subprocess.run(
            command_of(client, folder),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
        said, problem = done.stdout, "" if done.returncode == 0 else f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        out = error.stdout or b""
        said, problem = out.decode(errors="replace") if isinstance(out, bytes) else out, f"no end after {LIMIT} s"
    log.write_text(said)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    went = tuple(line.removeprefix("ok ") for line in lines if line.startswith("ok "))
    if problem:
        rest = [line for line in lines if not line.startswith("ok ")]
        problem = f"{problem}: {rest[-1][:200] if rest else 'it said nothing'} ({log.relative_to(ROOT)})"
    return Outcome(name, version_of(client, folder), went, problem, time.monotonic() - start)


def command_of(client: Client, folder: Path) -> list[str]:
    """How its script is run."""
    script = HERE / client.script
    if client.of_python:
        return [str(folder / "bin" / "python"), str(script)]
    if script.suffix == ".py":
        return [sys.executable, str(script)]
    beside = NPM / "scripts"  # node looks for packages above the script
    shutil.copytree(script.parent, beside, dirs_exist_ok=True)
    return ["node", str(beside / script.name)]


# ---------------------------------------------------------------------- installing


def installed(name: str, client: Client) -> Path:
    """Where a client is, installed once for the same packages. Raises `CalledProcessError`."""
    folder = BUILD / "python" / name if client.of_python else NPM
    packages = client.packages if client.of_python else NODE_PACKAGES
    marker, wanted = folder / ".installed", "\n".join(packages)
    if marker.exists() and marker.read_text() == wanted:
        return folder
    if client.of_python:
        quietly([sys.executable, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        quietly([*pip, *packages])
    else:
        folder.mkdir(parents=True, exist_ok=True)
        quietly(["npm", "init", "--yes"], cwd=folder)
        quietly(["npm", "install", "--silent", "--no-audit", "--no-fund", *packages], cwd=folder)
    marker.write_text(wanted)
    return folder


def quietly(command: list[str], cwd: Path | None = None) -> None:
    """Run a command. Raises `CalledProcessError`, with what it said."""
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)


def version_of(client: Client, folder: Path) -> str:
    """The version of a client's first package."""
    if client.npm:
        import json

        return str(json.loads((NPM / "node_modules" / client.npm / "package.json").read_text())["version"])
    package = re.split(r"[\[<=>]", client.packages[0])[0]
    ask = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([str(folder / "bin" / "python"), "-c", ask], capture_output=True, text=True, check=False)
    return done.stdout.strip()


# ---------------------------------------------------------------------- the server


@contextmanager
def server() -> Iterator[str]:
    """`foveal serve` with the nano, on a free port; its address."""
    command = [sys.executable, "-m", "foveal", "serve", "--port", "0", "--store", str(BUILD / "store")]
    command += ["--output", "200", "--max-output", "1500", "--alias", f"claude-*={MODEL}", "--log-requests"]
    environment = os.environ | {"FOVEAL_API_KEY": KEY}
    log = BUILD / "server.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=errors, stderr=subprocess.STDOUT, cwd=ROOT
        )
        try:
            yield address(process, log)
            assert process.poll() is None, f"the server has ended: {log}"
        finally:
            process.terminate()
            process.wait(60)


def address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where the server says that it is."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"http://\S+:\d+", log.read_text())
        if found:
            return found[0]
        time.sleep(0.1)
    raise SystemExit(f"the server does not start: {log.read_text()[-500:]}")


if __name__ == "__main__":
    sys.exit(main())

"""Every example runs as it stands, on the model in the box and a store of its own."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FOLDER = Path(sys.executable).parent
SOURCE = '''"""Settings."""


def parse_config(path, strict=True):
    """The settings in a file."""
    with open(path, encoding="utf-8") as file:
        return dict(line.split("=", 1) for line in file if line.strip())


class Parser:
    """Reads tokens, one after the other."""

    def __init__(self, text):
        self.text = text
'''
CUE = "def parse_config(path, strict=True):"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOVEAL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PATH", f"{FOLDER}:{os.environ['PATH']}")
    return tmp_path / "store"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "config.py").write_text(SOURCE)
    return folder


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command: str, **variables: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_read_and_recall(store: Path, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("read_and_recall").main(str(project), CUE)
    said = capsys.readouterr().out
    assert '"""The settings in a file."""' in said and "config.py:" in said


def test_agents_on_one_memory(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("agents_on_one_memory").main()
    assert "shared with" in capsys.readouterr().out


def test_fork_and_explore(store: Path, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("foveal", "read", str(project), "--name", "project")
    example("fork_and_explore").main("project", "class Parser:")
    said = capsys.readouterr().out
    assert said.count("--- branch") == 3 and "['project', 'project-half']" in said


def test_pydantic_ai_over_mcp(store: Path, project: Path) -> None:
    pytest.importorskip("pydantic_ai")
    pytest.importorskip("fastmcp")
    from pydantic_ai.models.test import TestModel

    run("foveal", "read", str(project), "--name", "project")
    module = example("pydantic_ai_over_mcp")
    said = asyncio.run(module.answer(TestModel(call_tools=["memories"]), "Where is the configuration parsed?"))
    assert '"name":"project"' in said


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_claude_code(store: Path, tmp_path: Path) -> None:
    """In the place of Claude Code stands a call of what it calls."""
    claude = tmp_path / "bin" / "claude"
    claude.parent.mkdir()
    body = '{"model": "claude-x", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}'
    call = f"""curl --silent --fail-with-body "$ANTHROPIC_BASE_URL/v1/messages" -H "content-type: application/json" \\
        -H "authorization: Bearer $ANTHROPIC_AUTH_TOKEN" -d '{body}'"""
    claude.write_text(f"#!/bin/sh\n{call}\n")
    claude.chmod(0o700)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = f"{claude.parent}:{os.environ['PATH']}"
    said = run("sh", str(EXAMPLES / "claude_code.sh"), "nano", "hello", PATH=path, PORT=port)
    assert '"type":"message"' in said.replace(" ", "")


def test_move_a_memory(store: Path, project: Path, tmp_path: Path) -> None:
    run("foveal", "read", str(project), "--name", "project")
    target = tmp_path / "other"
    said = run("sh", str(EXAMPLES / "move_a_memory.sh"), "project", str(store), str(target), str(project))
    assert "project" in said
    assert "config.py:" in run("foveal", "recall", "project", CUE, "--store", str(target))


def test_watch_and_sync(store: Path, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("watch_and_sync")

    def turns():  # type: ignore[no-untyped-def]
        (project / "more.py").write_text("def another(thing):\n    return thing\n")
        yield 0
        yield 1

    module.follow(str(project), 0.0, turns())
    assert capsys.readouterr().out.count("more.py") == 1


def test_the_list_is_whole() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    there = sorted(each.name for each in EXAMPLES.iterdir() if each.suffix in (".py", ".sh"))
    assert sorted(re.findall(r"\]\((\w+\.(?:py|sh))\)", listed)) == there

"""What the README says can be done: its Python block runs, its commands parse, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cli_support import write_model
from typer.testing import CliRunner

from foveal.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    source = tmp_path / "project"
    source.mkdir()
    (source / "config.py").write_text("def parse_config(path):\n    return open(path).read()\n")
    monkeypatch.setenv("FOVEAL_STORE", str(tmp_path / "store"))
    model = write_model(tmp_path / "model", seed=1)
    for shown, real in (('"nano"', repr(str(model))), ('"path/to/project"', repr(str(source)))):
        assert shown in code
        code = code.replace(shown, real)
    exec(compile(code, "README.md", "exec"), {})
    assert "config.py:" in capsys.readouterr().out
    assert (tmp_path / "store" / "index.sqlite").is_file()


def commands() -> list[list[str]]:
    block = README.split("## The command line")[1].split("## From Python")[0]
    lines = re.findall(r"^    (?:.*\| )?(foveal .*)$", block, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_commands_parse(command: list[str]) -> None:
    """Wrong usage exits with 2; that there is no such memory or model here is another matter."""
    result = CliRunner().invoke(app, [command[0], "--help"])
    assert result.exit_code == 0
    for word in command[1:]:
        if word.startswith("--"):
            assert word in result.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/design.md", "docs/cli.md", "docs/status.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    missing = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not ((ROOT / page).parent / link).exists()]
    assert not missing

"""What the README and the first pages say can be done: targets exist, the Python block runs, commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cli_support import write_model
from click.testing import CliRunner

from foveal.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
PAGES = ["README.md", "docs/index.md", *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/[th]*/*.md")))]


def test_the_python_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PYTHON, re.DOTALL)
    source = tmp_path / "project"
    source.mkdir()
    (source / "config.py").write_text("def parse_config(path):\n    return open(path).read()\n")
    monkeypatch.setenv("FOVEAL_STORE", str(tmp_path / "store"))
    model = write_model(tmp_path / "model", seed=1)
    for shown, real in (('"nano"', repr(str(model))), ('"path/to/project"', repr(str(source)))):
        assert shown in code
        code = code.replace(shown, real)
    exec(compile(code, "python.md", "exec"), {})
    assert "config.py:" in capsys.readouterr().out
    assert (tmp_path / "store" / "index.sqlite").is_file()


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"^    make (\w+)", README, re.MULTILINE)
    assert {"demo", "test"} <= set(named) <= set(targets)


def commands() -> list[list[str]]:
    found = []
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", (ROOT / page).read_text(encoding="utf-8"))
        lines = re.findall(r"^    (?:.*\| )?(foveal .*)$", text, re.MULTILINE) + re.findall(
            r"`(foveal [a-z][^`]*)`", text
        )
        found += [shlex.split(line, comments=True)[1:] for line in lines]
    return [command for command in found if command[0].islower()]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_commands_parse(command: list[str]) -> None:
    """Wrong usage exits with 2; that there is no such memory or model here is another matter."""
    result = CliRunner().invoke(app, [command[0], "--help"])
    assert result.exit_code == 0
    for word in command[1:]:
        if word in ("|", "&&"):
            break
        if word.startswith("--"):
            assert word in result.stdout

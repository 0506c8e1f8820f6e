"""The table of commands, what a command imports, completion, and logs."""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from cli_support import Foveal, write_model
from click.testing import CliRunner, Result

from foveal import cli
from foveal.cli import entry
from foveal.cli.group import Commands
from foveal.cli.main import COMMANDS, app
from foveal.config import PRESETS

FOLDER = Path(cli.__file__).parent
SHELLS = ("bash", "zsh", "fish")


def command(name: str) -> click.Command:
    found = app.get_command(click.Context(app), name)
    assert found is not None
    return found


# ---------------------------------------------------------------------- the table


def test_every_file_is_a_command() -> None:
    files = {path.stem for path in (FOLDER / "commands").glob("*.py")} - {"__init__"}
    assert files == {module for module, _ in COMMANDS.values()}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_in_the_table_is_the_commands_own(name: str) -> None:
    assert command(name).name == name
    assert command(name).get_short_help_str(limit=200) == COMMANDS[name][1]


def test_the_lines_are_shown_whole() -> None:
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["--help"]).stdout
    assert "..." not in shown.split("Commands:")[1]
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_readable(name: str) -> None:
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, [name, "--help"])
    assert shown.exit_code == 0 and max(map(len, shown.stdout.splitlines())) <= 80
    for parameter in command(name).params:
        assert isinstance(parameter, click.Option | click.Argument) and parameter.help, parameter.name


def test_functions_are_short() -> None:
    long = []
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                long += [f"{path.name}: {node.name} has {lines} lines"] if lines > 40 else []
    assert not long


_IMPORTED = """
import sys
from foveal.cli.main import app
app(sys.argv[1:], standalone_mode=False)
print("IMPORTED", *sorted(name for name in sys.modules if name.startswith("foveal.cli.commands.") or name == "rich"))
"""


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("--help", ""),
        ("--version", ""),
        ("nope", ""),
        ("ls", " foveal.cli.commands.ls"),
        ("ls --json", " foveal.cli.commands.ls"),
        ("gc --help", " foveal.cli.commands.gc"),
    ],
)
def test_a_command_imports_no_other_and_draws_only_what_it_shows(tmp_path: Path, line: str, imported: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1]), "FOVEAL_STORE": str(tmp_path / "none")}
    done = subprocess.run([sys.executable, "-c", _IMPORTED, *line.split()], env=environment, capture_output=True)
    assert done.stdout.decode().splitlines()[-1] == f"IMPORTED{imported}"


# ---------------------------------------------------------------------- how a command ends


def raising(error: BaseException) -> Result:
    group = Commands("foveal")

    @group.command()
    def fail() -> None:
        raise error

    return CliRunner().invoke(group, ["fail"])


def test_ctrl_c_ends_with_130() -> None:
    assert (raising(KeyboardInterrupt()).exit_code, raising(KeyboardInterrupt()).stderr) == (130, "")


def test_what_a_command_asks_for_is_its_exit_code() -> None:
    assert raising(click.exceptions.Exit(7)).exit_code == 7
    assert (raising(click.Abort()).exit_code, raising(click.Abort()).stderr) == (1, "foveal: aborted\n")


def test_wrong_usage_is_no_failure_whatever_it_says() -> None:
    result = CliRunner().invoke(app, ["ls", "out of memory"])
    assert result.exit_code == 2 and "Usage: foveal ls" in result.stderr and "out of memory" in result.stderr


def test_a_misspelt_command_is_found() -> None:
    result = CliRunner().invoke(app, ["recal"])
    assert result.exit_code == 2 and "'recall'" in result.stderr


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("read x -n y", "read"),
        ("--log-level debug read x", "read"),
        ("--log-level=debug sync x", "sync"),
        ("--log-level", None),
        ("--version", None),
        ("", None),
    ],
)
def test_the_command_is_known_before_anything_is_imported(line: str, named: str | None) -> None:
    assert entry._command(line.split()) == named


# ---------------------------------------------------------------------- completion


@pytest.fixture(scope="module")
def foveal(tmp_path_factory: pytest.TempPathFactory) -> Foveal:
    """A store with two memories."""
    folder = tmp_path_factory.mktemp("completed")
    (folder / "a.py").write_text("def alpha(x):\n    return x + 1\n")
    made = Foveal(folder / "store", write_model(folder / "model", seed=1))
    made.json("read", str(folder / "a.py"), "-n", "first")
    made.json("fork", "first", "second")
    return made


def offered(line: str, store: Path) -> list[str]:
    """What bash is offered at the end of a line."""
    words = line.split(" ")
    asked = {"_FOVEAL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner(env={**asked, "FOVEAL_STORE": str(store)}).invoke(app, [])
    assert result.exit_code == 0 and not result.stderr
    return [shown.partition(",")[2] for shown in result.stdout.splitlines() if shown.startswith("plain,")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("foveal rec", ["recall"]),
        ("foveal show ", ["first", "second"]),
        ("foveal show --json s", ["second"]),
        ("foveal rm first ", ["second"]),
        ("foveal fork first ", []),
        ("foveal show --ver", ["--verify"]),
        ("foveal completion f", ["fish"]),
        ("foveal --log-level w", ["warning"]),
        ("foveal plan --model nano", [name for name in PRESETS if name.startswith("nano")]),
        ("foveal init --preset ", list(PRESETS)),
    ],
)
def test_what_is_completed(foveal: Foveal, line: str, expected: list[str]) -> None:
    assert offered(line, foveal.store) == expected


def test_names_of_the_store_on_the_line_are_completed(foveal: Foveal, tmp_path: Path) -> None:
    assert offered("foveal show ", tmp_path / "none") == []
    assert offered(f"foveal show --store {foveal.store} f", tmp_path / "none") == ["first"]


def test_a_store_that_cannot_be_read_offers_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert offered("foveal show ", tmp_path / "file") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell(shell: str) -> None:
    result = CliRunner().invoke(app, ["completion", shell])
    assert result.exit_code == 0 and "_FOVEAL_COMPLETE" in result.stdout and f"{shell}_complete" in result.stdout


# ---------------------------------------------------------------------- logs


@pytest.fixture
def logging_command() -> Iterator[Commands]:
    """`foveal` with a command that logs."""

    @app.command("say")
    def say() -> None:
        logger = logging.getLogger("foveal.store.test")
        logger.debug("small")
        logger.error("large \x1b[31m")

    yield app
    del app.commands["say"]
    logger = logging.getLogger("foveal")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_logs_are_silent_unless_asked_for(logging_command: Commands) -> None:
    run = CliRunner().invoke
    assert run(logging_command, ["say"]).stderr == ""
    assert run(logging_command, ["--log-level", "error", "say"]).stderr.endswith("foveal.store.test: large \\x1b[31m\n")
    told = run(logging_command, ["say"], env={"FOVEAL_LOG": "debug"})
    assert "DEBUG foveal.store.test: small\n" in told.stderr and told.stdout == ""
    assert run(logging_command, ["say"]).stderr == ""
    assert run(logging_command, ["--log-level", "loud", "say"]).exit_code == 2

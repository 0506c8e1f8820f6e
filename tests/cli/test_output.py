"""How the command line speaks: numbers, errors, streams."""

from __future__ import annotations

import json
import os
import signal
import sys

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from foveal.cli import main
from foveal.cli.commands.read import summarise_skipped
from foveal.cli.group import Commands
from foveal.cli.output import UserError, note, parse_count, print_json, show_bytes, show_seconds, tell
from foveal.cli.progress import Interruption, LiveBar, ReadingBar, describe
from foveal.cli.render import notes, results, table
from foveal.config import ConfigError
from foveal.memory import Progress
from foveal.sources import Skipped


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096),
        ("128k", 131072),
        ("1M", 1048576),
        ("1_000", 1000),
        ("1.5k", 1536),
        ("2MiB", 2 << 20),
        ("3GB", 3 << 30),
    ],
)
def test_counts_are_read(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "k", "-1", "1x", "one", "1 2", "0x10", "9" * 400, "9" * 19])
def test_what_is_no_count_is_a_usage_error(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_count(text)


@given(st.integers(0, 10**15))
def test_a_count_is_read_back(count: int) -> None:
    assert parse_count(str(count)) == count


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (584, "584 B"),
        (1024, "1 KiB"),
        (159609485896, "149 GiB"),
        (10326376448, "9.62 GiB"),
        (2**41, "2.00 TiB"),
    ],
)
def test_bytes_are_shown(size: int, text: str) -> None:
    assert show_bytes(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(7.42, "7.4 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_times_are_shown(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


def app_raising(error: BaseException) -> Commands:
    app = Commands("foveal")

    @app.command()
    def fail() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("it is\n  wrong"), "foveal: it is wrong"),
        (ConfigError("field x"), "foveal: field x"),
        (FileNotFoundError(2, "No such file or directory", "a/b"), "foveal: a/b: No such file or directory"),
        (PermissionError(13, "Permission denied"), "foveal: Permission denied"),
    ],
)
def test_an_expected_failure_is_one_line_and_exit_code_1(error: Exception, line: str) -> None:
    result = CliRunner().invoke(app_raising(error), ["fail"])
    assert (result.exit_code, result.stderr, result.stdout) == (1, line + "\n", "")


def test_a_fault_of_ours_goes_up() -> None:
    """`foveal.process.life.run` tells of it; in a test it is seen whole."""
    result = CliRunner().invoke(app_raising(ZeroDivisionError("ours")), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


ODD = "a\x1b[31mRED\n[bold].py"
SHOWN = "a\\x1b[31mRED\\n[bold].py"


def test_no_name_reaches_a_terminal_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = table("name", ODD, title=None, rows=[(ODD, "1")])
    shown.add_row(ODD, "2")
    results().print(shown)
    results().print(ODD.replace("\n", ""))
    tell(ODD)
    note(ODD)
    notes().print(shown)
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err and printed.out.count("[bold]") == 5
    assert SHOWN + "\n" in printed.out and SHOWN + "\n" in printed.err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = LiveBar(ODD)
    bar.show(ODD, 1, 2, ODD, ODD)
    assert bar._bar is not None
    (task,) = bar._bar.progress.tasks
    assert (task.description, task.fields["count"], task.fields["file"]) == (SHOWN, SHOWN, SHOWN)


def test_wrong_usage_is_escaped() -> None:
    result = CliRunner().invoke(main.app, ["ls", "--\x1b[31m"])
    assert result.exit_code == 2 and "\\x1b[31m" in result.stderr and "\x1b" not in result.stderr


@pytest.mark.parametrize(
    "command", ["ls --store", "read", "sync a --source", "tokenize x --out", "init --preset nano --out"]
)
def test_an_empty_path_is_not_the_current_folder(command: str) -> None:
    result = CliRunner().invoke(main.app, [*command.split(), "", *(["-n", "a"] if command == "read" else [])])
    assert result.exit_code == 2 and "it is empty" in result.stderr


def test_json_is_ascii_and_strict(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "na\u00efve \U0001f441"})
    out = capsys.readouterr().out
    assert out.isascii() and json.loads(out) == {"text": "na\u00efve \U0001f441"}
    with pytest.raises(ValueError):
        print_json(float("nan"))


def test_progress_is_described() -> None:
    looking = Progress(0, 1234, exact=False)
    reading = Progress(512, 2048, exact=True, tokens_per_second=800.4, seconds_left=1.92, file="a.py")
    window = Progress(128, 640, exact=True, again=True)
    assert describe(looking) == "about 1,234 tokens"
    assert describe(window) == "128 of 640 tokens again"
    assert describe(reading) == "512 of 2,048 tokens, 800 tok/s, 1.9 s left"


def test_the_first_interrupt_while_reading_waits_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    bar = ReadingBar()
    with Interruption(bar).watch() as stop:
        for looking in (Progress(0, 1024, exact=False), Progress(128, 640, exact=True, again=True)):
            bar(looking)
            with pytest.raises(KeyboardInterrupt):  # nothing is read yet: nothing to keep
                os.kill(os.getpid(), signal.SIGINT)
        bar(Progress(512, 1024, exact=True))
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_skipped_files_are_summed_up_by_reason() -> None:
    skipped = [Skipped(f"{i}.png", "binary") for i in range(5)] + [Skipped("x", "empty file")]
    assert summarise_skipped(skipped) == [
        "skipped 5: binary (0.png, 1.png, 2.png, ...)",
        "skipped 1: empty file (x)",
    ]
    many = [Skipped(str(i), f"reason {i}") for i in range(10)]
    assert summarise_skipped(many, most=2)[-1] == "skipped 8 for other reasons; --json lists all"

"""Every command, under everything that can cut it short: no traceback, no abort, at most one line, the store whole.

A command that is new must be entered in `COMMANDS`. With ``FOVEAL_SOAK=1`` every command line goes through all
conditions, those that take seconds too, and signals come at many more moments: half an hour instead of a minute.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cli_support import write_model
from click.testing import CliRunner
from helpers.stores import TINY, TOKENIZER, write_lines
from helpers.warm import Conditions, Ended, Warm

from foveal.cli import main
from foveal.cli.main import app
from foveal.memory import open_store
from foveal.store.verify import verify

pytestmark = pytest.mark.slow

SOAK = bool(os.environ.get("FOVEAL_SOAK"))

COMMANDS: dict[str, tuple[str, ...]] = {
    "read": ("{source} --name new --model {model}", "{source} --name a --model {model} --json"),
    "sync": ("a --model {model}", "a --model {model} --dry-run --json"),
    "recall": ("a def --model {model} --max-tokens 4 --lines", "a def --model {model} --max-tokens 4 --json"),
    "ask": ("a return --model {model} --max-tokens 4 --show-steps", "a return --model {model} --max-tokens 4 --json"),
    "ls": ("", "--json"),
    "show": ("a", "a --verify --json"),
    "rm": ("b", "nope --json"),
    "fork": ("a c", "a c --at 20 --json"),
    "log": ("a", "a --json"),
    "pin": ("a", "a --off --json"),
    "verify": ("", "--json"),
    "export": ("a -", "a {out}/a.foveal"),
    "import": ("{exported} --name c", "- --name c --json"),
    "gc": ("", "--limit 1k --json"),
    "du": ("", "--json"),
    "inspect": ("{model}", "nano --json"),
    "init": ("--preset nope --out {out}/new", "--preset nano --out {out}/new --json"),
    "plan": ("--model nano", "--json"),
    "bench": ("--model {model} --plot {out}/nowhere/a.png", "--model {model} --depths 16 --threads 1 --repetitions 1"),
    "eval": (
        "nonsense --model {model} --source {source} --out {out}",
        "recall --model {model} --source {source} --samples 1 --length 256 --threads 1 --json",
    ),
    "convert": ("{model} --out {out}/v4", "{model} --out {out}/v4 --json"),
    "chat": ("x --model {model} --json", "--model {model} --no-save"),
    "serve": ("nowhere", "--host 0.0.0.0 nano"),
    "look": ("nope --no-browser", "a --server http://127.0.0.1:1 --no-browser"),
    "doctor": ("", "--json"),
    "why": ("--server http://127.0.0.1:1", "--server http://127.0.0.1:1 --json"),
    "check-hits": ("http://127.0.0.1:1", "http://127.0.0.1:1 --json"),
    "mcp": ("--model nowhere", "--model {model}"),
    "train": ("{run}", "{run} --json --export-start {out}/start"),
    "completion": ("bash", "fish"),
    "tokenize": ("{source} --out {out}/tokens", "{source} --out {out}/tokens --json"),
}
"""For each command two command lines; the second is for `SOAK`."""
QUICK = ("out-gone out-closed out-full both-gone all-closed file-size-0 descriptors-8 memory-256k").split()
"""Conditions that are tried without `SOAK`."""

CONDITIONS = {
    "well": Conditions(),
    "out-gone": Conditions(out="gone"),
    "out-gone-after-a-byte": Conditions(out="byte"),
    "out-closed": Conditions(out="closed"),
    "out-full": Conditions(out="full"),
    "errors-gone": Conditions(errors="gone"),
    "errors-full": Conditions(errors="full"),
    "errors-closed": Conditions(errors="closed"),
    "both-gone": Conditions(out="gone", errors="gone"),
    "input-closed": Conditions(input="closed"),
    "all-closed": Conditions(out="closed", errors="closed", input="closed"),
    "file-size-0": Conditions(file_size=0),
    "file-size-8k": Conditions(file_size=8192),
    **{f"descriptors-{n}": Conditions(descriptors=n) for n in (3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32)},
    **{f"memory-{n}k": Conditions(memory=n << 10) for n in (0, 256, 1024, 4096, 16384, 65536)},
}
MOMENTS = ((2, signal.SIGINT), (60, signal.SIGHUP), (100, signal.SIGTERM), (3000, signal.SIGINT))
if SOAK:
    MOMENTS += tuple((m, n) for m in (*range(2, 60), *range(60, 30000, 500)) for n in (signal.SIGINT, signal.SIGTERM))
KEEP = {"read", "sync", "train", "eval", "bench", "convert"}

FORBIDDEN = (
    "Traceback",
    "Aborted",
    "core dumped",
    "Exception ignored",
    "terminate called",
    "Fatal Python",
    "rror in sys",
)


class Place:
    """A store with two memories, and what else commands are given. A case gets a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = write_model(folder / "model", seed=1)
        self.source = folder / "source"
        self.source.mkdir()
        for name in "ab":
            text = "".join(f"def {name}{n}(x):\n    return x + {n}\n\n\n" for n in range(12))
            (self.source / f"{name}.py").write_text(text)
        self.whole, self.store, self.out = folder / "whole", folder / "store", folder / "out"
        self.exported, self.run = folder / "a.foveal", folder / "run.yaml"
        for name in "ab":
            self._do("read", str(self.source), "--name", name, "--model", str(self.model), "--threads", "1")
        self._do("export", "a", str(self.exported))
        write_lines(folder, 300)
        settings = dict(
            out=str(self.out / "run"), train=str(folder / "train"), tokenizer=str(TOKENIZER), tokens=64, start="random",
            precision="fp32", device="cpu", threads=1, model=TINY, stages=[{"length": 64}],
        )  # fmt: skip
        self.run.write_text(yaml.safe_dump(settings))

    def _do(self, *command: str) -> None:
        done = CliRunner().invoke(app, [*command, "--store", str(self.whole)])
        assert done.exit_code == 0, done.stderr

    def fresh(self) -> None:
        """The store as it was, and nothing in `out`."""
        for folder in (self.store, self.out):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.whole, self.store)
        self.out.mkdir()

    def line(self, name: str, arguments: str) -> list[str]:
        filled = [word.format(**vars(self)) for word in arguments.split()]
        return [name, *filled]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("ways_out"))


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with Warm(tmp_path_factory.mktemp("warm")) as process:
        yield process


def run(warm: Warm, place: Place, name: str, arguments: str, conditions: Conditions) -> Ended:
    """Run it on a fresh store, and check what holds under all conditions."""
    place.fresh()
    there = {"FOVEAL_STORE": str(place.store), "OMP_NUM_THREADS": "1", "TMPDIR": str(place.out)}
    conditions = Conditions(**{**vars(conditions), "environment": there})
    ended = warm.run(place.line(name, arguments), conditions, place.out)
    words = ended.errors + ended.out.decode(errors="replace")
    assert not [word for word in FORBIDDEN if word in words], ended
    assert sum(line.startswith("foveal:") for line in ended.errors.splitlines()) <= 1, ended
    assert ended.code >= 0, ended
    report = verify(open_store(place.store))
    assert report.sound, (ended, report.problems)
    return ended


def command_lines() -> Iterator[tuple[str, str]]:
    for name, lines in COMMANDS.items():
        for arguments in lines if SOAK else lines[:1]:
            yield name, arguments


def test_every_command_is_here() -> None:
    assert set(COMMANDS) == set(main.COMMANDS)


@pytest.mark.parametrize("condition", CONDITIONS if SOAK else QUICK)
@pytest.mark.parametrize(("name", "arguments"), [pytest.param(*line, id=" ".join(line)) for line in command_lines()])
def test_a_way_out(warm: Warm, place: Place, name: str, arguments: str, condition: str) -> None:
    conditions = CONDITIONS[condition]
    ended = run(warm, place, name, arguments, conditions)
    assert ended.code in (0, 1), ended
    told = [line for line in ended.errors.splitlines() if line.startswith("foveal:")]
    if ended.code == 1 and conditions.errors == "kept" and conditions.out not in ("gone", "byte"):
        assert len(told) == 1, ended
    if ended.code == 0:
        assert not told, ended


@pytest.mark.parametrize("command", ["ls", "log a --json"])
@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("closed", "foveal: cannot write the output: standard output is closed\n"),
        ("full", "foveal: cannot write the output: No space left on device\n"),
        ("gone", ""),
    ],
)
def test_what_cannot_be_printed_fails(warm: Warm, place: Place, command: str, out: str, said: str) -> None:
    name, _, arguments = command.partition(" ")
    ended = run(warm, place, name, arguments, Conditions(out=out))
    assert ended.code == 1 and ended.errors.endswith(said) and "foveal:" not in ended.errors.replace(said, ""), ended


def test_a_closed_stream_is_nobody_elses(warm: Warm, place: Place) -> None:
    """A number that is free would go to a file of the store, and the output into that."""
    for name, arguments in (("fork", "a c"), ("ls", ""), ("gc", ""), ("rm", "b")):
        ended = run(warm, place, name, arguments, Conditions(out="closed", errors="closed", input="closed"))
        assert ended.code in (0, 1) and not ended.out and not ended.errors, (name, ended)


@pytest.mark.parametrize(("name", "arguments"), [pytest.param(*line, id=" ".join(line)) for line in command_lines()])
def test_a_signal_at_any_moment(warm: Warm, place: Place, name: str, arguments: str) -> None:
    seen = 0
    for moment, number in MOMENTS:
        asked = 130 if name in KEEP else 128 + number
        conditions = Conditions(signals=((number, moment),))
        ended = run(warm, place, name, arguments, conditions)
        seen += ended.code == asked
        assert ended.code in (asked, 0, 1), (moment, ended)
        if ended.code == asked and "foveal:" in ended.errors:  # it came after the command had said what was wrong
            assert ended.errors == run(warm, place, name, arguments, Conditions()).errors, (moment, ended)
    assert seen >= 2

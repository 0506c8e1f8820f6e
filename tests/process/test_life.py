"""How a process of ours begins and ends: signals in its first moments, faults, limits, and whose code it runs."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.measure import run as measuring
from foveal.process.failures import reason
from foveal.process.signals import held_back, shielded
from foveal.process.text import one_line, printable
from foveal.train.prefetch import Prefetch

Done = subprocess.CompletedProcess[str]


def python(code: str, *arguments: str, **options: object) -> Done:
    """Run `code` with the arguments of ``foveal``."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, **options)  # type: ignore[call-overload, no-any-return]


# ---------------------------------------------------------------------- signals

_AT_CALL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
from foveal.cli.entry import main
number, call = int(sys.argv.pop(1)), int(sys.argv.pop(1))
def count(frame, event, argument):
    global call
    call -= event == "call"
    if not call:
        sys.setprofile(None)
        os.kill(os.getpid(), number)
sys.setprofile(count)
main()
"""


@pytest.mark.parametrize("call", [2, 30, 100, 1000, 20000])
@pytest.mark.parametrize(
    ("number", "command", "code"),
    [
        (signal.SIGINT, "ls", 130),
        (signal.SIGTERM, "ls", 143),
        (signal.SIGHUP, "ls", 129),
        (signal.SIGTERM, "train", 130),
    ],
)
def test_a_signal_while_modules_are_imported(number: int, command: str, code: int, call: int) -> None:
    done = python(_AT_CALL, str(number), str(call), command, "--help")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_what_was_ignored_stays_so() -> None:
    """As under nohup, and in a shell's background."""
    ignoring = _AT_CALL.replace("signal.default_int_handler", "signal.SIG_IGN")
    done = python(ignoring, str(int(signal.SIGINT)), "100", "--version")
    assert (done.returncode, done.stderr) == (0, "")


_LATER = """
import os, signal, sys, time, warnings
from foveal.process.life import run
class Loud:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000): pass
def work():
    thing = Loud()
    del thing
    for _ in range(3000): time.sleep(0.01)
    return 0
run(lambda: work)
"""


def test_a_signal_that_cannot_be_raised_is_raised_again() -> None:
    done = python(_LATER)
    assert (done.returncode, done.stderr) == (143, "")


def test_a_shielded_block_ends_though_another_thread_gets_the_signal() -> None:
    shield, sent = threading.Event(), threading.Event()

    def send() -> None:
        shield.wait(60)
        signal.raise_signal(signal.SIGINT)  # to this thread, and there when the call returns
        sent.set()

    other = threading.Thread(target=send)
    other.start()
    done = []
    try:
        with pytest.raises(KeyboardInterrupt), shielded():
            shield.set()
            assert sent.wait(60)
            done.append("all of it")
    finally:
        shield.set()
        other.join()
    assert done == ["all of it"]


def test_a_signal_is_heard_after_a_block_that_holds_it_back() -> None:
    before, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), held_back():
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is before


def test_handlers_are_back_though_one_of_them_raises_on_the_way() -> None:
    def stop(number: int, frame: object) -> None:
        raise KeyError(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(KeyError), held_back():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        assert {signal.getsignal(number) for number in before} == {stop}
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_shielded_process_does_not_hear_ctrl_c() -> None:
    told = "import os, signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with shielded():
        assert python(told).stdout == "True\n"
    assert python(told).stdout == "False\n"


# ---------------------------------------------------------------------- the end


@pytest.mark.parametrize(
    ("work", "code", "line"),
    [
        ("{}['no']", 70, "foveal: this is a fault of Foveal, please report it: KeyError: 'no' (FOVEAL_TRACEBACK=1 "),
        ("(_ for _ in ()).throw(MemoryError)", 1, "foveal: not enough memory\n"),
        ("(_ for _ in ()).throw(SystemError('x')) if 0 else sys.exit(3)", 3, ""),
        ("open('no\\x1bthing')", 1, "foveal: no\\x1bthing: No such file or directory\n"),
        ("print('done') or 0", 0, ""),
    ],
)
def test_how_it_ended(work: str, code: int, line: str) -> None:
    program = f"import sys; from foveal.process.life import run; run(lambda: lambda: {work})"
    done = python(program)
    assert done.returncode == code and done.stderr.startswith(line) and done.stderr.count("\n") == bool(line)
    if code == 70:
        shown = python(program, env=os.environ | {"FOVEAL_TRACEBACK": "1"}).stderr
        assert "Traceback" in shown and line in shown


def test_a_fault_of_another_package_says_what_ran_out() -> None:
    assert reason(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")) is not None
    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert reason(type("SafetensorError", (Exception,), {})(full)) == full
    assert "ulimit -n" in str(reason(RuntimeError("unable to open file <x>: Too many open files (24)")))
    assert "ulimit -u" in str(reason(RuntimeError("can't start new thread")))
    assert reason(RuntimeError("another")) is None and reason(KeyError("x")) is None


def limited(kind: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (most, most))


@pytest.mark.parametrize(
    ("kind", "most"),
    [(resource.RLIMIT_NOFILE, most) for most in (4, 5, 6)]
    + [(resource.RLIMIT_AS, most << 20) for most in (24, 32, 40, 48)],
)
def test_little_from_the_beginning(kind: int, most: int, tmp_path: Path) -> None:
    """As ``ulimit -n`` and ``-v`` set it: what is too little for Python itself is Python's to say."""
    limit = limited(kind, most)
    bare = subprocess.run([sys.executable, "-c", "pass"], preexec_fn=limit, capture_output=True)
    if bare.returncode:
        pytest.skip("Python cannot start")
    command = [sys.executable, "-m", "foveal", "ls", "--store", str(tmp_path)]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode in (0, 1) and done.stderr.count("\n") == 1, done
    if done.returncode:
        assert done.stderr.startswith("foveal: "), done


# ---------------------------------------------------------------------- whose code runs


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder holds modules that tell when they are run; returns what they would write."""
    ran = tmp_path / "ran"
    folder = tmp_path / "trap"
    (folder / "foveal").mkdir(parents=True)
    names = "numpy json re torch pickle socket typing multiprocessing dataclasses struct foveal/__init__".split()
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r} + '\\n')\nraise SystemExit(9)\n")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return ran


def test_the_measuring_process_runs_nothing_of_the_current_folder(trap: Path) -> None:
    child = measuring._start()
    out, _ = child.communicate("{}")
    assert not trap.exists() and '"error"' in out and child.returncode == 1


def test_workers_run_nothing_of_the_current_folder(trap: Path) -> None:
    with Prefetch(cast("Any", None), 1) as prefetch:
        (composing,) = prefetch._begin((0, (0,), 64, None))
        with pytest.raises(AssertionError):  # it has no feed to compose from
            composing.result()
    assert not trap.exists()


def test_run_as_a_module_it_leaves_the_current_folder(trap: Path) -> None:
    """The folder ``foveal`` is Python's to find; all else is ours."""
    (trap.parent / "trap" / "foveal" / "__init__.py").unlink()
    (trap.parent / "trap" / "foveal").rmdir()
    for early in ("typing", "re", "dataclasses"):  # runpy's own
        (trap.parent / "trap" / f"{early}.py").unlink()
    done = subprocess.run([sys.executable, "-m", "foveal", "--version"], capture_output=True, text=True)
    assert not trap.exists() and done.returncode == 0, done.stderr


# ---------------------------------------------------------------------- text for a terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mRED.py", "a\\x1b[31mRED.py"),
        ("new\nline.py", "new\\nline.py"),
        ("a\tb\r\x7f\x9b", "a\\tb\\r\\x7f\\x9b"),
        ("\u202egpj.exe\u2066\u200f\u061c", "\\u202egpj.exe\\u2066\\u200f\\u061c"),
        ("pay\u200bpal\ufeff\u2060\u00ad", "pay\\u200bpal\\ufeff\\u2060\\xad"),
        ("pay\u200dpal", "pay\\u200dpal"),
        ("b\udcff.py", "b\\udcff.py"),
        ("x\u2028y\U000e0041", "x\\u2028y\\U000e0041"),
        (
            "na\u00efve \u4e2d\u6587\u3000 \u0645\u06cc\u200c\u062e\u0648\u0627 \U0001f469\u200d\U0001f680 [red]\\",
            None,
        ),
    ],
)
def test_what_steers_a_terminal_is_escaped(text: str, shown: str | None) -> None:
    assert printable(text) == (text if shown is None else shown)


@given(st.text())
def test_nothing_hidden_is_left(text: str) -> None:
    shown = printable(text)
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in shown)
    assert printable(shown) == shown and "\n" not in one_line(text)
    assert printable("a\n\tb\x1b", "\n\t") == "a\n\tb\\x1b"


# ---------------------------------------------------------------------- little address space

_NEEDING = """
from foveal.process import space
from foveal.process.life import run
def work():
    {}
    return 0
run(lambda: work)
"""


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("import torch", "foveal: not enough memory: torch needs 576 MiB of address space more (ulimit -v)\n"),
        (
            "space.require(1 << 30, 'this')",
            "foveal: not enough memory: this needs 1,024 MiB of address space more (uli",
        ),
        ("space.require(1 << 20, 'this')", ""),
        ("space.require(1 << 99, 'this')", "foveal: not enough memory: this needs"),
    ],
)
def test_room_is_asked_for_where_address_space_is_limited(work: str, said: str) -> None:
    done = python(_NEEDING.format(work), preexec_fn=limited(resource.RLIMIT_AS, 300 << 20))
    assert (done.returncode, done.stderr[: len(said)]) == (int(bool(said)), said), done
    assert done.stderr.count("\n") == bool(said)


def test_without_a_limit_no_room_is_asked_for() -> None:
    done = python(_NEEDING.format("space.require(1 << 99, 'this')"))
    assert (done.returncode, done.stderr) == (0, ""), done

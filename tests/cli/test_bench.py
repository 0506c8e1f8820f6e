"""`foveal bench`, through its own measuring processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_support import write_model
from click.testing import CliRunner, Result

from foveal.cli.main import app
from foveal.cli.output import parse_counts

pytestmark = pytest.mark.slow

FAST = ("--threads", "1", "--repetitions", "1", "--decode-tokens", "2")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("benched") / "model", seed=0)


def test_json_after_a_jump(model: Path, tmp_path: Path) -> None:
    picture = tmp_path / "speed.png"
    result = run("--model", str(model), "--depths", "1k,512", "--jump", "--json", "--plot", str(picture), *FAST)
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    assert [row["depth"] for row in document["rows"]] == [512, 1024]
    for row in document["rows"]:
        assert row["prefill_tok_s"] > 0 and row["decode_tok_s"] > 0
        assert row["peak_bytes"] > document["model"]["weight_bytes"] > 0
        assert row["cache_bytes"] > 0 and row["read_seconds"] is None
    assert document["threads"] == 1 and document["machine"]["cores"] >= 1
    assert document["model"]["config"]["hidden_size"] == 64 and "+" in document["cache"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "at 1,024 tokens" in result.stderr


def test_a_table_along_one_reading(model: Path) -> None:
    result = run("--model", str(model), "--depths", "512,1k", "--kv", "bf16", *FAST)
    assert result.exit_code == 0, result.stderr
    assert "cache bf16+bf16; read from nothing" in result.stdout and "read in" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines() if line.strip().startswith(("512", "1,024"))] == [
        "512",
        "1,024",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "a model or a preset"),
        (("--preset", "nano-bench", "--model", "x"), 2, "a model or a preset"),
        (("--preset", "huge"), 1, "no preset 'huge'"),
        (("--model", "/nowhere/at/all"), 1, "no model at"),
        (("--model", "nano", "--depths", "many"), 2, "many"),
        (("--model", "nano", "--depths", "0"), 1, "depths"),
        (("--model", "nano", "--kv", "int3"), 1, "int3"),
        (("--model", "nano", "--plot", "speed.doc"), 1, "speed.doc"),
        (("--model", "nano", "--plot", "/nowhere/speed.png"), 1, "there is no folder"),
        (("--model", "nano", "--depths", "2M", "--jump"), 1, "beyond the model's context"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments: tuple[str, ...], code: int, said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code and said in result.stderr and "Traceback" not in result.stderr
    assert not result.stdout and (code == 2 or result.stderr.count("\n") == 1)


def test_depths_are_sorted_and_counted_once() -> None:
    assert parse_counts("128k, 4096,4k,1M") == (4096, 131072, 1 << 20)


def test_an_interrupted_measurement_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "foveal.cli.main",
        "bench",
        "--preset",
        "nano",
        "--threads",
        "1",
        "--depths",
        "512k",
    ]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    child = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background of a shell have inherited that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not _measuring(child.pid) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    (grandchild,) = _measuring(child.pid)
    child.send_signal(signal.SIGINT)  # to the command alone: it has to stop what it started
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert not out and "Traceback" not in err
    assert not list(tmp_path.iterdir())
    assert not Path(f"/proc/{grandchild}").exists()


def _measuring(parent: int) -> list[int]:
    """Measuring processes that `parent` started, once they run (not the copies of it that are about to become one)."""
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [int(pid) for pid in children if "foveal.measure" in Path(f"/proc/{pid}/cmdline").read_text()]
    except OSError:
        return []

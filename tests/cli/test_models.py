"""`foveal plan`, `inspect` and `init`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from foveal.cli.main import app
from foveal.config import preset

GIB = 1 << 30


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def run_json(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


# ---------------------------------------------------------------------- plan


def test_plan_gives_the_published_figures() -> None:
    pro = run_json("plan", "--model", "pro", "--context", "1M", "--machine", "8xB200")
    assert pro["tokens"] == 1 << 20
    assert round(pro["context"]["entries"] / GIB, 2) == 9.62
    assert round(pro["rivals"][0]["nbytes"] / GIB, 1) == 83.9
    flash = run_json("plan", "--model", "flash", "--kv", "fp4")
    assert flash["bytes_per_token"] == pytest.approx(3514, abs=1)


def test_plan_says_whether_it_fits() -> None:
    fits = run("plan", "--model", "flash", "--context", "1M", "--machine", "mac-256", "--agents", "10")
    assert fits.exit_code == 0 and "\nfits: " in fits.stdout and "own part of 10 agents" in fits.stdout
    small = run("plan", "--model", "pro", "--machine", "rtx-5090")
    assert small.exit_code == 0 and "does not fit" in small.stdout


def test_plan_takes_a_model_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(preset("nano-bench").to_dict()))
    by_folder = run_json("plan", "--model", str(tmp_path), "--context", "64k")
    by_name = run_json("plan", "--model", "nano-bench", "--context", "64k")
    assert by_folder["context"] == by_name["context"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "gpt"), "neither a preset"),
        (("--context", "much"), "much"),
        (("--machine", "abacus"), "abacus"),
        (("--kv", "int3"), "int3"),
    ],
)
def test_plan_refuses_what_it_does_not_know(arguments: tuple[str, ...], said: str) -> None:
    result = run("plan", *arguments)
    assert result.exit_code == 1 and said in result.stderr and result.stderr.count("\n") == 1 and not result.stdout


# ---------------------------------------------------------------------- inspect and init


def test_inspect_of_a_preset_gives_the_published_counts() -> None:
    flash = run_json("inspect", "flash")
    assert (flash["tensors"], flash["bytes"]) == (69_187, 159_609_485_896)
    assert [layer["kind"] for layer in flash["layers"][:4]] == ["sliding", "sliding", "csa", "hca"]
    assert sum(flash["bytes_by_format"].values()) == flash["bytes"]


@pytest.mark.parametrize("dtype", ["bf16", "fp4"])
def test_init_writes_what_inspect_reads(tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "model"
    made = run_json("init", "--preset", "nano", "--out", str(out), "--dtype", dtype)
    seen = run_json("inspect", str(out))
    assert made == seen
    assert seen["config"]["expert_dtype"] == dtype
    assert ("FP4" in seen["bytes_by_format"]) == (dtype == "fp4")
    table = run("inspect", str(out)).stdout
    assert f"{seen['parameters']:,} parameters" in table and "layers.3" in table


def test_init_depends_on_the_seed_only(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_json("init", "--preset", "nano", "--out", str(tmp_path / name), "--seed", str(seed))
    files = {name: [p.read_bytes() for p in sorted((tmp_path / name).glob("*.safetensors"))] for name in "abc"}
    assert files["a"] == files["b"] != files["c"]


def test_init_never_writes_over_something(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("1")
    result = run("init", "--preset", "nano", "--out", str(tmp_path))
    assert result.exit_code == 1 and "is there already" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("inspect", "/nowhere/at/all"), 1),
        (("init", "--preset", "huge", "--out", "x"), 1),
        (("init", "--preset", "nano", "--dtype", "int3", "--out", "x"), 2),
        (("init", "--preset", "nano"), 2),
        (("inspect",), 2),
        (("frobnicate",), 2),
    ],
)
def test_wrong_use_is_told_apart_from_failure(arguments: tuple[str, ...], code: int) -> None:
    result = run(*arguments)
    assert result.exit_code == code and result.stderr and "Traceback" not in result.stderr


def test_a_broken_checkpoint_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    result = run("inspect", str(tmp_path))
    assert result.exit_code == 1 and result.stderr.count("\n") == 1

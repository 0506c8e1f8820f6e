"""`foveal convert` from the command line."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from convert_support import random_source, save_gguf, some_text

from foveal.cli.main import app
from foveal.convert import packaged
from foveal.convert.opening import is_packaged
from foveal.engine import model_folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_it_converts_and_says_how_near_it_came(tmp_path: Path) -> None:
    random_source(tmp_path / "model")
    text, out = some_text(tmp_path / "text"), tmp_path / "out"
    options = ("--text", text, "--tokens", 2048, "--rows", 2)
    result = run("convert", tmp_path / "model", "--out", out, *options, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["model"] == str(out) and found["form"] == "bf16" and 0 <= found["inside"]["bf16"]["kl"] < 10
    assert "reading: " in result.stderr
    again = run("convert", tmp_path / "model", "--out", out, *options)
    assert again.exit_code == 1 and "holds a converted model already" in again.stderr
    opened = run("inspect", out)
    assert opened.exit_code == 0, opened.stderr


def test_a_table_for_a_person(tmp_path: Path) -> None:
    random_source(tmp_path / "model")
    text = some_text(tmp_path / "text")
    result = run(
        "convert", tmp_path / "model", "--out", tmp_path / "out", "--text", text, "--tokens", 512, "--rows", 1,
        "--form", "fp8", "--window", 40,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "fp8, 1 x 41" in result.stdout and "bf16, 1 x 41" in result.stdout and "fp8, 3 x 164" in result.stdout


def test_a_packaged_model_goes_where_its_name_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    theirs, _ = random_source(tmp_path / "model")
    path = save_gguf(theirs, tmp_path / "tiny.gguf")
    known = {"tiny": packaged.PACKAGED["smollm2"]}
    monkeypatch.setattr(packaged, "PACKAGED", known)
    monkeypatch.setattr("foveal.convert.opening.PACKAGED", known)
    monkeypatch.setattr("foveal.convert.opening.find_packaged", lambda name, work, tell: path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    result = run("convert", "tiny", "--rows", 0, "--tokens", 512, "--text", some_text(tmp_path / "text"))
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "data" / "foveal" / "models" / "tiny"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.parent.stat().st_mode) == 0o700
    assert model_folder("tiny") == folder and (folder / "config.json").is_file()
    assert run("inspect", "tiny").exit_code == 0 and run("plan", "--model", "tiny").exit_code == 0
    (tmp_path / "a.py").write_text("def add(a, b):\n    return a + b\n")
    store = ("--store", tmp_path / "data" / "foveal")  # where it is by default: beside the models
    for arguments in (("read", tmp_path / "a.py", "--name", "t", "--model", "tiny"), ("recall", "t", "def"), ("ls",)):
        result = run(*arguments, *store)
        assert result.exit_code == 0, result.stderr
    assert run("verify", *store).exit_code == 0 and run("gc", *store).exit_code == 0
    assert (folder / "config.json").is_file()


def test_a_folder_that_is_in_use_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(name: str, work: Path, tell: object) -> Path:
        raise AssertionError("it was fetched")

    monkeypatch.setattr("foveal.convert.opening.find_packaged", fetched)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "mine.txt").write_text("x")
    result = run("convert", "smollm2", "--out", tmp_path / "project")
    assert result.exit_code == 1 and "is there already" in result.stderr
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["mine.txt"]


def test_a_folder_that_a_packaged_model_is_written_into_is_not_taken_for_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_packaged("smollm2") and not is_packaged("other")
    (tmp_path / "smollm2" / ".converting").mkdir(parents=True)
    assert is_packaged("smollm2")
    (tmp_path / "smollm2" / "config.json").write_text("{}")
    assert is_packaged("smollm2"), "it is being measured"
    (tmp_path / "smollm2" / ".converting").rmdir()
    assert not is_packaged("smollm2")


def test_one_line_for_what_cannot_be_converted(tmp_path: Path) -> None:
    for arguments, said in (
        (("nothing-there", "--out", tmp_path / "out"), "no model at nothing-there"),
        (("nothing-there",), "--out DIR"),
        ((tmp_path, "--out", tmp_path / "out"), "cannot read"),
    ):
        result = run("convert", *arguments)
        assert result.exit_code == 1 and said in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1

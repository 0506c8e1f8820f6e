"""`foveal doctor`: what it finds, what it says to do, and when it exits with 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from foveal.cli import doctoring
from foveal.cli.main import app
from foveal.memory import open_store


def told(store: Path) -> tuple[int, dict[str, dict[str, str | None]]]:
    result = CliRunner().invoke(app, ["doctor", "--json", "--store", str(store)])
    document = json.loads(result.stdout)
    assert document["sound"] is (result.exit_code == 0)
    return result.exit_code, {each["name"]: each for each in document["checks"]}


def test_an_empty_machine_is_sound(tmp_path: Path) -> None:
    code, found = told(tmp_path / "none")
    assert code == 0
    assert found["store"]["state"] == "ok" and "foveal read" in str(found["store"]["mend"])
    assert found["kernels"]["state"] != "broken" and "nano" in str(found["models"]["found"])
    assert not (tmp_path / "none").exists()


def test_a_store_that_is_there_is_counted(tmp_path: Path) -> None:
    open_store(tmp_path / "store")
    code, found = told(tmp_path / "store")
    assert code == 0 and "0 memories" in str(found["store"]["found"])


def test_a_store_that_cannot_be_opened_is_broken(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder")
    code, found = told(tmp_path / "store")
    assert code == 1 and found["store"]["state"] == "broken"


def test_a_model_that_is_missing_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.engine.models._WEIGHTS", tmp_path)
    code, found = told(tmp_path / "none")
    assert code == 1 and found["models"]["state"] == "broken"


def test_a_missing_extra_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=1", "no-such-package>=1; extra == 'encrypt'", "foveal[encrypt]; extra == 'serve'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    assert doctoring.requirements() == {"serve": ["no-such-package"], "encrypt": ["no-such-package"]}
    code, found = told(tmp_path / "none")
    assert code == 0
    assert found["extra serve"]["mend"] == "pip install 'foveal[serve]'"
    assert found["extra serve"]["found"] == "not installed: no-such-package"


def test_a_person_reads_a_table(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path / "none")])
    assert result.exit_code == 0 and "kernels" in result.stdout and "ok" in result.stdout

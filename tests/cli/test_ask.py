"""`foveal ask`: places, an answer and its lines, as text and as JSON; and what is said where no model can answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import write_model
from click.testing import CliRunner, Result

from foveal.cli.main import app

pytestmark = pytest.mark.slow

TOWER = "# Towers\n\nThe clock tower of Graz was repaired in 1998.\nIts keeper is Ilse Marchetti.\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a source, and a store in which the source is memory `notes`."""
    folder = tmp_path_factory.mktemp("ask")
    write_model(folder / "model", seed=1)
    (folder / "src").mkdir()
    (folder / "src" / "towers.md").write_text(TOWER)
    (folder / "src" / "other.md").write_text("Nothing of note stands here.\n" * 40)
    made = run(folder, "read", str(folder / "src"), "--name", "notes")
    assert made.exit_code == 0, made.output
    return folder


def run(folder: Path, *words: str) -> Result:
    more = ["--store", str(folder / "store"), "--model", str(folder / "model"), "--threads", "1"]
    return CliRunner().invoke(app, [*words, *more])


def test_an_answer_comes_with_its_places_and_steps(place: Path) -> None:
    result = run(place, "ask", "notes", "Who is the keeper of the tower of Graz?", "--max-tokens", "4", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["found"] and answer["memory"] == "notes" and answer["with"] == "model"
    assert [(p["path"], p["first_line"], p["last_line"]) for p in answer["places"]] == [("towers.md", 1, 4)]
    assert [step["name"] for step in answer["steps"]] == ["find", "read", "write"]
    assert answer["usage"]["completion_tokens"] <= 4


def test_where_no_line_says_what_the_answer_says_the_closest_ones_are_shown(place: Path) -> None:
    result = run(place, "ask", "notes", "Who is the keeper of Graz?", "--max-tokens", "3", "--show-steps")
    assert result.exit_code == 0 and "[1] towers.md:1-4" in result.stderr and "search rank 1" in result.stderr
    assert "No line that was shown says this" in result.stdout and "[1] towers.md:3" in result.stdout
    assert "     3  The clock tower of Graz" in result.stdout


def test_lines_are_set_out_and_cannot_steer_a_terminal(place: Path) -> None:
    (place / "odd").mkdir()
    (place / "odd" / "evil.md").write_bytes(b"\n\n\tThe keeper of Trieste\r\n\tis \x1b[31mred\x1b[0m.\r\n")
    assert run(place, "read", str(place / "odd"), "--name", "odd").exit_code == 0
    result = run(place, "ask", "odd", "Who is the keeper of Trieste?", "--max-tokens", "3", "--show-steps")
    assert result.exit_code == 0 and "[1] evil.md:3-4" in result.stderr
    assert "     3      The keeper of Trieste\n" in result.stdout
    assert "      " + "    is \\x1b[31mred\\x1b[0m.\n" in result.stderr and "\x1b" not in result.stdout + result.stderr


def test_what_stands_nowhere_is_said_to_stand_nowhere(place: Path) -> None:
    result = run(place, "ask", "notes", "Quagga?")
    assert result.exit_code == 0 and result.stdout.strip() == "Nothing in this memory fits the question."


def test_who_has_no_model_that_can_answer_is_told_how_to_get_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(place / "empty"))
    for name in ("nano", "smollm2"):
        result = run(place, "ask", "notes", "Who?", "--with", name)
        assert result.exit_code == 1 and "foveal convert smollm2" in result.stderr and "\n" not in result.stderr.strip()

"""What is made of the command line and the routes: manual pages and the pages of the reference."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from foveal.cli.main import COMMANDS
from tools import http_reference, manual
from tools.commands import pages
from tools.openapi import document


def test_every_command_has_a_manual_page(tmp_path: Path) -> None:
    manual.main(tmp_path)
    assert {page.stem for page in tmp_path.iterdir()} == {"foveal", *(f"foveal-{name}" for name in COMMANDS)}
    read = (tmp_path / "foveal-read.1").read_text(encoding="utf-8")
    assert read.startswith('.TH "FOVEAL\\-READ" 1') and "\\-\\-max\\-file\\-size" in read and ".SH EXIT STATUS" in read


def test_no_line_is_taken_for_a_request(tmp_path: Path) -> None:
    manual.main(tmp_path)
    known = (".TH", ".SH", ".PP", ".TP", ".B ", ".BR")
    for page in tmp_path.iterdir():
        lines = page.read_text(encoding="utf-8").splitlines()
        assert all(line.startswith(known) for line in lines if line.startswith((".", "'"))), page.name


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man")
def test_man_has_nothing_to_say_about_a_page(tmp_path: Path) -> None:
    manual.main(tmp_path)
    command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(tmp_path / "foveal-read.1")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


def test_a_page_tells_arguments_and_options() -> None:
    (read,) = [page for page in pages() if page.name == "foveal read"]
    assert any(written.startswith("PATH") for written, _ in read.arguments)
    assert any("--name" in written and "Name of the memory" in meaning for written, meaning in read.options)
    told = dict(read.options)
    assert told["--durability LEVEL"].endswith("[default: full]") and "-h, --help" in told


def test_no_option_is_shown_by_the_name_of_a_type() -> None:
    """`N` says as much as click's own `INTEGER RANGE`, and leaves room for the help."""
    shown = [(page.name, written) for page in pages() for written, _ in page.options]
    assert not [each for each in shown if each[1].rpartition(" ")[2] in ("INTEGER", "RANGE", "FLOAT")]


def test_the_reference_has_every_route() -> None:
    page, whole = http_reference.page(), document()
    routes = [f"## {method.upper()} {path}" for path, each in whole["paths"].items() for method in each]
    assert len(routes) > 20 and not [route for route in routes if route not in page]
    assert "| `messages` | body, needed |" in page
    assert "| `zoom` | body | integer, 0 to 32 |" in page and "Default: 3. |" in page
    links = set(re.findall(r"\]\(#(\w+)\)", page))
    assert links and links <= {heading.lower() for heading in re.findall(r"^### (\w+)$", page, re.MULTILINE)}

"""The page that is served was built from the sources as they are, and nobody touched it since. Needs no Node.js."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES, SERVED = ROOT / "page", ROOT / "foveal" / "server" / "page"
ALONE = ("index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts")
MADE = "src/openapi.d.ts"
"""Types of the routes, which `make page` makes first. No code comes of them."""

AGAIN = "run `make page`, and commit foveal/server/page and page/built.json"


def digests(folder: Path, paths: list[Path]) -> dict[str, str]:
    """Path below `folder` -> SHA-256."""
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in paths}


def differing(folder: Path, paths: list[Path], told: dict[str, str]) -> list[str]:
    """The files that are not as they were told, that are new, and that are gone."""
    return sorted({name for name, _ in set(digests(folder, paths).items()) ^ set(told.items())})


def files(folder: Path) -> list[Path]:
    """All files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads((SOURCES / "built.json").read_text(encoding="utf-8"))
    return found


def test_it_was_built_from_these_sources(told: dict[str, dict[str, str]]) -> None:
    sources = [*(SOURCES / name for name in ALONE), *files(SOURCES / "src")]
    sources = [path for path in sources if path != SOURCES / MADE]
    assert len(sources) > 20
    assert not (found := differing(SOURCES, sources, told["from"])), f"{', '.join(found)} changed: {AGAIN}"


def test_it_is_as_it_was_built(told: dict[str, dict[str, str]]) -> None:
    assert not (found := differing(SERVED, files(SERVED), told["made"])), f"{', '.join(found)} changed: {AGAIN}"


def test_a_change_a_new_file_and_a_lost_one_are_found(tmp_path: Path) -> None:
    names = ("edited", "lost", "same")
    for name in names:
        (tmp_path / name).write_text(name)
    told = digests(tmp_path, files(tmp_path))
    assert differing(tmp_path, files(tmp_path), told) == []
    (tmp_path / "edited").write_text("otherwise")
    (tmp_path / "lost").unlink()
    (tmp_path / "new").write_text("new")
    assert differing(tmp_path, files(tmp_path), told) == ["edited", "lost", "new"]

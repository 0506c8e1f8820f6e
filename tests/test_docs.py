"""The documents: what they name exists, results are whole, links between files lead somewhere."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from test_rooms import ORDER

from tools import results

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "native/README.md", ROOT / "examples/README.md"]
)
GENERATED = {"docs/reference/commands.md", "docs/reference/http.md", "docs/results.md"}
NAMED = re.compile(r"`(foveal(?:\.\w+)+)`")
SPANS = {"foveal.request"}
"""Names of another kind: of spans that `foveal serve --otel` sends."""
OF_PEOPLE = {"foveal/models", "foveal/chats", "tools/look/parameters/properties/a"}
"""Places outside the repository: below a person's data folder, and in a schema."""


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_names_exist(page: Path) -> None:
    names = set(NAMED.findall(page.read_text(encoding="utf-8"))) - SPANS
    assert names or page.stem not in ("tour", "attention", "equal")
    assert not [name for name in sorted(names) if not exists(name)]


def test_a_name_that_does_not_exist_is_found() -> None:
    assert not exists("foveal.batch.batch.BatchEngine.leap") and not exists("foveal.nowhere.at_all")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:bench|clients|foveal|native|tests|tools|results)/[\w./<>-]+)[` ]", text)
    assert not [path for path in paths if "<" not in path and not (ROOT / path).exists() and path not in OF_PEOPLE]


def test_the_rooms_stand_in_the_order_of_imports() -> None:
    design = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", design, re.MULTILINE) == ORDER


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    missing = [link for link in missing if str((page.parent / link).resolve().relative_to(ROOT)) not in GENERATED]
    assert not missing


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_result_says_where_it_came_from(path: Path) -> None:
    result = results.load(path)
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", result["date"]) and re.fullmatch(r"[0-9a-f]{7,}", result["commit"])
    assert result["commands"] and result["rows"] and results.table(result)


def anchor(title: str) -> str:
    """A heading's name in a link, as mkdocs makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def test_links_to_results_lead_to_one() -> None:
    anchors = {anchor(results.load(path)["title"]) for path in (ROOT / "results").glob("*.json")}
    links = {
        (page.name, link)
        for page in PAGES
        for link in re.findall(r"results\.md#([\w-]+)", page.read_text(encoding="utf-8"))
    }
    assert len(links) > 10 and not [(page, link) for page, link in sorted(links) if link not in anchors]


def test_no_two_results_have_one_title() -> None:
    titles = [results.load(path)["title"] for path in (ROOT / "results").glob("*.json")]
    assert sorted(set(titles)) == sorted(titles)


def test_every_page_is_reached() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert not [page for page in pages if page not in listed]


def test_pictures_exist() -> None:
    named = re.findall(r'(?:src|srcset)="([^"]+)"', (ROOT / "README.md").read_text(encoding="utf-8"))
    assert named and not [path for path in named if not (ROOT / path).is_file()]

"""What mkdocs adds to the pages under docs/: the reference of the command line and of the routes, and the results.

Links that leave docs/ (to the code, the examples, the README) become links into the repository.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mkdocs.structure.files import File, Files  # noqa: E402

from tools import http_reference, results  # noqa: E402
from tools.commands import Page, pages  # noqa: E402

_OUT = re.compile(r"\[([^\]\[]+)\]\(((?:\.\./)+(?!tutorial|how-to|reference|explanation|[a-z-]+\.md)[^)]+)\)")
"""A link to something beside docs/."""

INTRODUCTION = "What `foveal COMMAND --help` says, all in one place. [Behaviour and JSON](../cli.md) has the rest."


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    made = {
        "reference/commands.md": commands_page(),
        "reference/http.md": http_reference.page(),
        "results.md": results.page(ROOT / "results"),
    }
    for path, text in made.items():
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Name what lies outside docs/ without a link: a site has no such page."""

    def shown(found: re.Match[str]) -> str:
        target = (Path(config.docs_dir) / page.file.src_uri).parent / found[2].partition("#")[0]
        if not target.resolve().is_relative_to(ROOT) or not target.exists():
            return found[0]  # mkdocs says that it is dead
        path = str(target.resolve().relative_to(ROOT))
        return f"`{path}`" if found[1] == path else f"{found[1]} (`{path}`)"

    return _OUT.sub(shown, markdown)


def commands_page() -> str:
    """Every command as its `--help` tells it."""
    lines = ["# Commands", "", INTRODUCTION, ""]
    for page in pages():
        lines += _command(page)
    return "\n".join(lines)


def _command(page: Page) -> list[str]:
    lines = [f"## {page.name}", "", f"    {page.usage}", ""]
    lines += [" ".join(paragraph.split()) + "\n" for paragraph in re.split(r"\n\s*\n", page.text)]
    rows = [*page.arguments, *page.options]
    if rows:
        lines += ["| option | meaning |", "| --- | --- |"]
        lines += [f"| `{_cell(written)}` | {_cell(meaning)} |" for written, meaning in rows]
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")

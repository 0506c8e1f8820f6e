"""Writes the manual pages, foveal.1 and one for each command, from the command line itself.

python -m tools.manual man
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from foveal import __version__
from tools.commands import Page, pages

EXITS = (
    ("0", "done"),
    ("1", "failed, with one line on stderr"),
    ("2", "wrong usage"),
    ("70", "a fault of Foveal itself"),
    ("130", "interrupted by Ctrl-C; 128 and its number for another signal"),
)
PLACES = (
    ("FOVEAL_STORE", "the store, where --store names none; else ~/.local/share/foveal"),
    ("FOVEAL_STORE_KEY, FOVEAL_STORE_KEY_FILE", "the key of an encrypted store, or the file that holds it"),
    ("FOVEAL_LOG", "what is logged to stderr: debug, info, warning or error"),
    ("FOVEAL_TRACEBACK", "1 shows where a failure came from"),
    ("FOVEAL_API_KEY", "the key that foveal chat --server and foveal why send, and one more key of foveal serve"),
)


def main(folder: Path) -> None:
    """Write all pages into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    every = pages()
    for page in every:
        lines = list(_manual(page, every))
        (folder / f"{page.name.replace(' ', '-')}.1").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _manual(page: Page, every: list[Page]) -> Iterator[str]:
    title = page.name.replace(" ", "-")
    yield f'.TH "{_plain(title.upper())}" 1 "" "foveal {_plain(__version__)}" "Foveal"'
    yield from (".SH NAME", f"{_plain(title)} \\- {_plain(page.line.rstrip('.'))}")
    yield from (".SH SYNOPSIS", f".B {_plain(page.name)}", _plain(page.usage.removeprefix(page.name).strip()))
    yield ".SH DESCRIPTION"
    for number, paragraph in enumerate(re.split(r"\n\s*\n", page.text)):
        if number:
            yield ".PP"
        yield _plain(" ".join(paragraph.split()))
    yield from _list("ARGUMENTS", page.arguments)
    yield from _list("OPTIONS", page.options)
    if page.name == "foveal":
        yield from _list("COMMANDS", ((each.name.replace(" ", "-") + "(1)", each.line) for each in every[1:]))
        yield from _list("ENVIRONMENT", PLACES)
    yield from _list("EXIT STATUS", EXITS)
    yield from (".SH SEE ALSO", ".BR foveal (1)" if page.name != "foveal" else ".BR foveal-read (1), foveal-recall (1)")


def _list(heading: str, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    pairs = tuple(pairs)
    if pairs:
        yield f".SH {heading}"
    for written, meaning in pairs:
        yield from (".TP", f"\\fB{_plain(written)}\\fR", _plain(meaning) or "\\&")


def _plain(text: str) -> str:
    """`text` without what roff takes for its own: backslashes, minus signs, and a dot or quote that begins a line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga")
    return "\\&" + escaped if escaped[:1] in (".", "'") else escaped


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "man"))

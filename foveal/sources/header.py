"""The line that introduces a file in the token stream.

One form, used by reading, by the training corpus and by the source map alike, so that the model sees at recall exactly
what it was trained on. It is a comment in Python, shell, TOML and YAML, and its words are ordinary words for the
tokenizer (a path costs about one token per component).
"""

from __future__ import annotations

HEADER_PREFIX = "# file: "
UPDATE_PREFIX = "# update: "


def header_line(path: str) -> str:
    """``# file: path\\n`` for a path as shown to people (relative, with forward slashes).

    Line breaks, other control characters and lone surrogates (file names need not be text) are written as Python
    escapes (``\\n``, ``\\udc80``): the header is always exactly one line of valid text.
    """
    return f"{HEADER_PREFIX}{_line(path)}\n"


def replaced_line(path: str) -> str:
    """The line before the header of a file's new version, where an earlier one stands above."""
    return f"{UPDATE_PREFIX}what follows replaces the earlier {_line(path)}\n"


def removed_line(path: str) -> str:
    """The line that says of a file read earlier that it is gone."""
    return f"{UPDATE_PREFIX}{_line(path)} was removed, and its text above no longer holds\n"


def _line(path: str) -> str:
    return "".join(_shown(character) for character in path)


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")

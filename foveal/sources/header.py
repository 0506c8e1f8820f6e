"""The line that introduces a file in the token stream.

What is special here: one form, used by reading, by the training corpus and by the source map alike, so that the model
sees at recall exactly what it was trained on. It is a comment in Python, shell, TOML and YAML, and its words are
ordinary words for the tokenizer (a path costs about one token per component).
"""

from __future__ import annotations

HEADER_PREFIX = "# file: "


def header_line(path: str) -> str:
    """``# file: path\\n`` for a path as shown to people (relative, with forward slashes).

    Line breaks, other control characters and lone surrogates (file names need not be text) are written as Python
    escapes (``\\n``, ``\\udc80``): the header is always exactly one line of valid text.
    """
    shown = "".join(_shown(character) for character in path)
    return f"{HEADER_PREFIX}{shown}\n"


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")

"""What msgspec says of a record that does not fit, in our words: one line that names the field."""

from __future__ import annotations

import re

_MOST_SAID = 200

_WORDS = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_SAYINGS = (("Object missing", "lacks the"), ("Object contains", "has an"), ("Invalid enum", "must not have the"))
_MESSAGE = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>.*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<due>[^`]*)`(?P<more>.*?)(?:, got `(?P<found>[^`]*)`)?", re.DOTALL)


def in_our_words(message: str, within: str) -> str:
    """What msgspec says, as ``field: must be a string, it is null``."""
    parts = _MESSAGE.fullmatch(message)
    assert parts is not None
    path, what = (parts["path"] or "").removeprefix("."), parts["what"]
    where = ".".join(part for part in (within, path) if part)
    expected = _EXPECTED.fullmatch(what)
    if expected is None:
        said = what.replace("`", "")
        for theirs, ours in _SAYINGS:
            said = said.replace(theirs, ours)
    else:
        due = " or ".join(_WORDS.get(word, word) for word in expected["due"].split(" | "))
        more = " of another form than it is" if "matching regex" in expected["more"] else expected["more"]
        said = f"must be {due}{more}"
        if expected["found"]:
            said += f", it is {_WORDS.get(expected['found'], expected['found'])}"
    return shown(f"{where}: {said}" if where else said, _MOST_SAID)


def shown(text: str, most: int) -> str:
    """`text` in one line that steers no terminal, whatever a stranger wrote into it; `most` characters of it."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return plain if len(plain) <= most else f"{plain[:most]}..."

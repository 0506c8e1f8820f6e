"""Text at hand: what a conversion is fitted to and measured on when no text is named.

It is there with every Python: the language reference (prose, `pydoc_data`), the standard library's sources, and the
descriptions of the packages beside it. Every fifth document is held out: only measurements see those.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import random
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from foveal.convert.errors import ConvertError
from foveal.text.tokenizer import Tokenizer

_HELD_OUT = 5
_MOST_CHARACTERS = 24_000
_FEWEST_CHARACTERS = 1_500


def documents(paths: Sequence[Path], *, held_out: bool) -> list[str]:
    """Texts in a fixed order, shuffled: of the files in `paths`, or those at hand. Raises `ConvertError` for none, and
    for paths that are not there."""
    found = _files(paths) if paths else _at_hand()
    chosen = [text for name, text in found if _is_held_out(name) == held_out and len(text) >= _FEWEST_CHARACTERS]
    if not chosen:
        which = "held out" if held_out else "left to fit to"
        raise ConvertError(f"there is too little text: none of {_FEWEST_CHARACTERS} characters is {which}; name more")
    random.Random(1).shuffle(chosen)
    return [text[:_MOST_CHARACTERS] for text in chosen]


def token_rows(texts: Sequence[str], tokenizer: Tokenizer, length: int, count: int, *, start: int) -> Tensor:
    """`count` rows [count, length] of tokens that begin with `start`: one from each text, then again from the first
    where the last row of it ended."""
    rows: list[list[int]] = []
    rests = [text for text in texts]
    while len(rows) < count:
        before = len(rows)
        for place, text in enumerate(rests):
            if len(text) < length or len(rows) == count:
                continue
            ids, starts = tokenizer.encode_with_starts(text[: 12 * length])
            if len(ids) >= length:
                rows.append([start, *ids[: length - 1].tolist()])
                rests[place] = text[int(starts[length - 1]) :]
            else:
                rests[place] = ""
        if len(rows) == before:
            raise ConvertError(f"there is too little text: {count} rows of {length} tokens are needed; name more")
    return torch.tensor(rows, dtype=torch.int64)


def _is_held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % _HELD_OUT == 0


def _files(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    for path in paths:
        if not path.exists():
            raise ConvertError(f"there is no text at {path}; name files or folders that are there")
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and (text := _text_of(file)):
                yield from _parts(str(file.relative_to(path)) if path.is_dir() else file.name, text)


def _parts(name: str, text: str) -> Iterator[tuple[str, str]]:
    """A file in parts of at most `_MOST_CHARACTERS`, which end at a line where one ends: a book is many documents."""
    start = 0
    while start < len(text):
        end = start + _MOST_CHARACTERS
        if end < len(text):
            end = text.rfind("\n", start + _MOST_CHARACTERS // 2, end) + 1 or end
        yield name if not start else f"{name} from {start}", text[start:end]
        start = end


def _text_of(file: Path) -> str:
    """ "" for what is no text."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _at_hand() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    yield from ((f"topic {name}", text) for name, text in sorted(topics.items()))
    library = Path(sysconfig.get_paths()["stdlib"])
    yield from ((file.name, _text_of(file)) for file in sorted(library.glob("*.py")))
    for distribution in sorted(importlib.metadata.distributions(), key=lambda one: one.name or ""):
        yield f"package {distribution.name}", distribution.read_text("METADATA") or ""

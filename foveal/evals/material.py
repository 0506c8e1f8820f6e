"""What texts are made of: a folder of source, cut and mixed to an exact number of tokens.

Any long text stands in for the essays of RULER's haystacks, by default the standard library of the running Python. A
text is as long as asked in tokens of one tokenizer, headers included: at most `length`, and less by `tolerance` at the
most.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import sysconfig
import textwrap
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from foveal.evals.errors import EvalError, SourceTooShort
from foveal.sources import Document, document_text, read_source
from foveal.text import Tokenizer

Documents = tuple[Document, ...]
Made = TypeVar("Made")

TEXT_PATH = "text.txt"
"""What a text made up of lines is called in its header."""
LONGEST_LINE = 200
"""Characters; longer lines (tables, data) are left out of haystacks, unless too little is left (`Material.filled`)."""
WRAPPED_BYTES = 64
"""How long lines are then: fewer tokens than a text may fall short by (`tolerance`), in any script."""
_LONGEST_WORD = 24
"""Characters at which a word is cut: scripts without spaces have words of whole sentences."""
_GUESSES = 12
"""Guesses in proportion, before what is left is halved."""


def tolerance(length: int) -> int:
    """Tokens by which a text may fall short of `length`."""
    return max(96, length // 50)


def standard_library() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


class Material:
    """The documents of one source, and the tokenizer that measures them."""

    def __init__(self, documents: Sequence[Document], tokenizer: Tokenizer) -> None:
        """Raises `EvalError` without any document."""
        if not documents:
            raise EvalError("there is nothing to read in the source; give a folder of text or code with --source")
        self.documents: Documents = tuple(sorted(documents, key=lambda document: document.path))
        self.tokenizer = tokenizer

    @classmethod
    def read(cls, source: Path | None, tokenizer: Tokenizer) -> Material:
        """All sound UTF-8 text below `source` (default: the standard library, without what is installed in it).

        Raises `EvalError` when there is none, `foveal.sources.SourceError` when it does not exist.
        """
        exclude = () if source is not None else ("site-packages/", "dist-packages/", "lib2to3/tests/", "idlelib/")
        found = read_source(source or standard_library(), exclude=exclude, use_gitignore=source is not None)
        documents = [item for item in found if isinstance(item, Document)]
        sound = [d for d in documents if d.encoding == "utf-8" and not d.replaced and d.text.strip()]
        return cls(sound, tokenizer)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over all paths and texts, and the tokenizer that cuts them to length."""
        whole = hashlib.sha256(self.tokenizer.fingerprint().encode())
        for document in self.documents:
            whole.update(document_text(document).encode("utf-8", "surrogatepass"))
        return whole.hexdigest()

    def count(self, documents: Sequence[Document]) -> int:
        """Tokens a memory of these documents has."""
        return sum(len(self.tokenizer.encode(document_text(document))) for document in documents)

    def stretch(self, length: int, rng: random.Random) -> Documents:
        """Whole files from a random one on, of `length` tokens in all (see `tolerance`): the last is cut at a line, or,
        where that would leave the tolerance (a paragraph on one line), at a word.

        Raises `EvalError` when the source is shorter.
        """
        start = rng.randrange(len(self.documents))
        turned = [*self.documents[start:], *self.documents[:start]]
        lines = [document.text.splitlines(keepends=True) for document in turned]
        total = sum(len(each) for each in lines)

        def first(count: int, words: int = 0) -> Documents:
            """So many lines, and so many words of the next one."""
            kept = []
            for document, own in zip(turned, lines, strict=True):
                cut = "".join(_words(own[count])[:words]) if count < len(own) else ""
                if count <= 0 and not cut:
                    break
                kept.append(Document(document.path, "".join(own[:count]) + cut))
                count -= len(own)
                if count < 0:
                    break
            return _in_reading_order(kept)

        count, size = self._nearest(first, length, total)
        if size >= length - tolerance(length) or not 0 <= count < total:
            return first(self.fit(first, length, total))
        next_line = next(itertools.islice(itertools.chain.from_iterable(lines), count, None))
        return first(count, self.fit(lambda words: first(count, words), length, len(_words(next_line))))

    def filled(self, make: Callable[[list[str]], Made], rng: random.Random, avoid: Sequence[str] = ()) -> Made:
        """What `make` makes of the lines of the whole source from a random file on: what haystacks are made of.

        Lines that hold one of `avoid`, very long lines, and more than one blank line in a row are left out. Every line
        ends in a newline. Very long lines are tables and data in code, but paragraphs in prose: where `make` raises
        `SourceTooShort` it is asked again, with the same dice, and now of all lines, wrapped at words.
        """
        start, dice = rng.randrange(len(self.documents)), rng.getstate()
        try:
            return make(self._filler(start, avoid, wrapped=False))
        except SourceTooShort:
            rng.setstate(dice)
            return make(self._filler(start, avoid, wrapped=True))

    def _filler(self, start: int, avoid: Sequence[str], *, wrapped: bool) -> list[str]:
        lines: list[str] = []
        for document in [*self.documents[start:], *self.documents[:start]]:
            for whole in document.text.splitlines():
                for line in _wrapped(whole) if wrapped else [whole]:
                    blank = not line.strip()
                    if len(line) <= LONGEST_LINE and not (blank and lines and not lines[-1].strip()):
                        lines.append("\n" if blank else line + "\n")
        if avoid:
            lines = [line for line in lines if not any(word in line for word in avoid)]
        return lines

    def fit(self, make: Callable[[int], Documents], length: int, most: int) -> int:
        """The number of units, at most `most`, for which `make` gives `length` tokens; tokens grow with units.

        Raises `SourceTooShort` when even `most` units are too few, `EvalError` when none are already too many.
        """
        best, size = self._nearest(make, length, most)
        if best < 0:
            raise EvalError(f"{length:,} tokens are too few for this task; ask for a longer text")
        if size < length - tolerance(length):
            raise SourceTooShort(f"the source gives {size:,} of {length:,} tokens; name a larger folder with --source")
        return best

    def _nearest(self, make: Callable[[int], Documents], length: int, most: int) -> tuple[int, int]:
        """The number of units (-1: none do) that come near to `length` tokens, and how many tokens they are.

        Guesses in proportion come near within a few tries where all units are about as long. Where they are not, the
        guesses turn round and round beside the answer; halving what is left always ends.
        """
        best, size_of_best, beyond = -1, 0, most + 1
        units = min(most, max(1, length // 12))
        for attempt in itertools.count(1):
            size = self.count(make(units))
            if size <= length:
                best, size_of_best = units, size
            else:
                beyond = units
            if size_of_best >= length - tolerance(length) // 4 or beyond - best <= 1:
                break
            if attempt < _GUESSES:
                units = min(max(int(units * length / max(1, size)), best + 1), beyond - 1)
            elif best >= 0 and size_of_best >= length - tolerance(length):
                break
            else:
                units = (best + beyond) // 2
        return best, size_of_best


def mixed(path: str, filler: Sequence[str], inserted: Sequence[str], places: Sequence[float]) -> Documents:
    """One document: the filler's lines with each of `inserted` (whole lines) before the line at its share of them."""
    lines = list(filler)
    order = sorted(zip(places, inserted, strict=True), key=lambda pair: pair[0], reverse=True)
    for place, line in order:
        lines.insert(min(len(filler), int(place * (len(filler) + 1))), line)
    return (Document(path, "".join(lines)),)


def line_of(document: Document, text: str) -> tuple[int, float]:
    """Line (from 1) in which `text` first stands, and its place as a share of the document. Raises `ValueError`."""
    at = document.text.index(text)
    return document.text.count("\n", 0, at) + 1, at / max(1, len(document.text))


def write_documents(folder: Path, documents: Sequence[Document]) -> None:
    """Put the documents under `folder`."""
    for document in documents:
        path = folder / document.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document.text.encode("utf-8", "surrogatepass"))


def whole_text(documents: Sequence[Document]) -> str:
    """What a memory of these documents has read."""
    return "".join(document_text(document) for document in documents)


def lines_of(text: str, *, ends: bool = False) -> list[str]:
    """The lines as citations, editors and `ast` number them: only a newline ends one. `str.splitlines` would also split
    at form feeds and a few others. `ends`: with their newlines."""
    lines = text.split("\n")
    last = lines.pop()
    if ends:
        lines = [line + "\n" for line in lines]
    return [*lines, last] if last else lines


def _words(line: str) -> list[str]:
    """Parts of a line that joined are the line: words with the blanks before them, long ones in pieces."""
    return re.findall(rf"\s*\S{{1,{_LONGEST_WORD}}}|\s+", line)


def _wrapped(line: str) -> list[str]:
    """The line, in parts of `WRAPPED_BYTES`, more or less."""
    size = len(line.encode("utf-8", "surrogatepass"))
    if size <= WRAPPED_BYTES:
        return [line]
    return textwrap.wrap(line, max(8, WRAPPED_BYTES * len(line) // size), break_on_hyphens=False)


def _in_reading_order(documents: Sequence[Document]) -> Documents:
    return tuple(sorted(documents, key=lambda document: document.path))

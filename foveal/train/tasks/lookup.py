"""Questions about code: where something is defined, its signature, the value of a constant, which file a line is in;
and verbatim recall after a cue.

The context is whole files (or their beginnings), each behind its header line with its path, and a name is asked for
only when it is defined once in what is shown.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from foveal.sources.header import HEADER_PREFIX
from foveal.train.tasks.draft import Draft, Piece, TaskError, code

_DEFINITION = re.compile(r"^(?P<text>[ ]{0,8}(?:async )?(?:def|class) (?P<name>\w+)[^\n]*:)[ ]*$", re.MULTILINE)
_CONSTANT = re.compile(r"^(?P<name>[A-Z][A-Z0-9_]{2,}) = (?P<value>[^\n]{1,60})$", re.MULTILINE)
_HEADER = re.compile(re.escape(HEADER_PREFIX) + "([^\n]+)\n")


_RESERVE = 160
"""Tokens kept for the question and its answer."""


@dataclass(frozen=True)
class _File:
    path: str
    text: str


def _files(draft: Draft) -> list[_File]:
    """Fill the context with beginnings of files, cut at line ends, and read them back."""
    store, table, rng = draft.composer.store, draft.composer.table, draft.rng
    filler: list[int] = []
    files: list[_File] = []
    for _ in range(64):
        left = draft.room - _RESERVE - len(filler)
        if left < 64:
            break
        ids = store.document(int(rng.integers(store.documents)))[: min(left, int(rng.integers(200, 1600)))]
        ends = table.line_end[ids].nonzero()[0]
        if not len(ends):
            continue
        text = draft.scribe.text(ids[: int(ends[-1]) + 1].tolist())
        found = _HEADER.match(text)
        if found is not None and all(file.path != found[1] for file in files):
            filler += ids[: int(ends[-1]) + 1].tolist()
            files.append(_File(found[1], text))
    draft.filler = filler
    return files


def _ask(draft: Draft, question: str, answer: str) -> None:
    draft.ask(f"\n# question: {question}\n# answer: ")
    draft.answer(answer)
    draft.ask("\n")
    # What is left is made up by lines of other files before the first one.
    filler = draft.filler or []
    draft.filler = code(draft.composer, draft.rng, max(0, draft.room - len(filler))) + filler


def _definitions(files: list[_File]) -> list[tuple[_File, str, str]]:
    """(file, name, text of the line) of what is defined once."""
    found = [(file, m["name"], m["text"].strip()) for file in files for m in _DEFINITION.finditer(file.text)]
    times = Counter(name for _, name, _ in found)
    return [each for each in found if times[each[1]] == 1 and len(each[1]) > 3]


def where_defined(draft: Draft) -> None:
    """Where is X defined? The file's path."""
    file, name, _ = _choose(draft, _definitions(files := _files(draft)))
    if len(files) < 2:
        raise TaskError("one file is no choice")
    _ask(draft, f"where is {name} defined?", file.path)


def signature(draft: Draft) -> None:
    """What is the signature of X? The line that begins its definition."""
    _, name, text = _choose(draft, _definitions(_files(draft)))
    if len(text) > 160:
        raise TaskError("a signature of more than 160 characters")
    _ask(draft, f"what is the signature of {name}?", text)


def constant(draft: Draft) -> None:
    """What is the value of the constant X?"""
    files = _files(draft)
    found = [(f, m["name"], m["value"].strip()) for f in files for m in _CONSTANT.finditer(f.text)]
    times = Counter(name for _, name, _ in found)
    _, name, value = _choose(draft, [each for each in found if times[each[1]] == 1])
    _ask(draft, f"what is the value of {name}?", value)


def which_file(draft: Draft) -> None:
    """Which file has this line? Its path."""
    files = _files(draft)
    lines = [(file, line.strip(), "") for file in files for line in file.text.splitlines()[1:]]
    times = Counter(line for _, line, _ in lines)
    file, line, _ = _choose(draft, [each for each in lines if times[each[1]] == 1 and 20 <= len(each[1]) <= 100])
    if len(files) < 2:
        raise TaskError("one file is no choice")
    _ask(draft, f"which file has the line `{line}`?", file.path)


def _choose(draft: Draft, found: list[tuple[_File, str, str]]) -> tuple[_File, str, str]:
    if not found:
        raise TaskError("nothing in these files can be asked for")
    return found[int(draft.rng.integers(len(found)))]


def recall(draft: Draft) -> None:
    """Go on verbatim after a cue: a line that stands once in the text, behind blanks as the engine gives it."""
    table, rng = draft.composer.table, draft.rng
    blanks, size = draft.composer.recipe.blanks, min(32, draft.length // 8)
    room = draft.length + 1 - blanks - 24 - size
    context = code(draft.composer, rng, max(64, room))
    starts = [i + 1 for i in range(len(context) - 64) if table.line_end[context[i]]]
    for start in rng.permutation(starts).tolist():
        cue = context[start : start + int(rng.integers(8, 25))]
        answer = context[start + len(cue) : start + len(cue) + size]
        if len(answer) == size and _once(context, cue):
            draft.questions += [Piece([table.blank] * blanks), Piece(cue), Piece(answer, asked=True)]
            extra = draft.room - len(context)
            draft.filler = code(draft.composer, rng, max(0, extra)) + context
            return
    raise TaskError("no line of this text stands in it once")


def _once(context: list[int], cue: list[int]) -> bool:
    first, size = cue[0], len(cue)
    return sum(1 for i, t in enumerate(context) if t == first and context[i : i + size] == cue) == 1

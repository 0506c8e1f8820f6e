"""Words: of a text that is indexed, of a question that is searched for, and to compare two texts by."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

_ENDINGS = ("ings", "ing", "ies", "ied", "es", "ed", "s")
_PART = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Scripts that write words without spaces between them: Thai, Lao, Burmese, kana, Chinese characters."""
_RUN = re.compile(f"[{_NO_SPACES}]+|[^\\s{_NO_SPACES}]+")
_ALONE = re.compile(f"([{_NO_SPACES}])")

STOP_WORDS = frozenset(
    """a about above after again all also am an and any are as at be because been before being below between both but by
    can could d did do does doing down during each few for from further get give given gives got had has have having he
    her here hers him his how i if in into is it its itself just ll many me more most much my no nor not now of off on
    once only or other our out over own please re s same she should so some such t tell than that the their them then
    there these they this those through to too under until up us ve very was we were what when where which while who
    whom whose why will with would you your""".split()
)
"""English words that say nothing of what is asked for."""


def indexed(text: str) -> str:
    """`text` as it goes into the index: parts of ``camelCase`` names stand beside them, and characters of scripts
    without spaces each alone."""
    humps = [" ".join(parts) for word in set(_PART.findall(text)) if len(parts := _HUMP.split(word)) > 1]
    return "\n".join([_ALONE.sub(r" \1 ", text), *sorted(humps)])


def phrases(question: str) -> list[tuple[str, ...]]:
    """What to look for: each phrase is one or more words that stand one after the other in the index, in lower case.

    A name of several parts (``raw_decode``, ``os.path``) is one phrase, and its parts are others. Without any word that
    says something, all are taken.
    """
    found = list(dict.fromkeys(_phrases(question)))
    telling = [phrase for phrase in found if len(phrase) > 1 or phrase[0] not in STOP_WORDS]
    return telling or found


def _phrases(question: str) -> Iterator[tuple[str, ...]]:
    for run in _RUN.findall(question):
        if _ALONE.match(run):
            yield from itertools.pairwise(run) if len(run) > 1 else [(run,)]
            continue
        parts = _PART.findall(run.removesuffix("'s").removesuffix("’s"))
        if len(parts) > 1:
            yield tuple(part.lower() for part in parts)
        for part in parts:
            yield (part.lower(),)
            humps = _HUMP.split(part)
            if len(humps) > 1:
                yield from ((hump.lower(),) for hump in humps)


def stems(text: str) -> list[str]:
    """Lower-case words, common English endings cut off; pairs of characters of scripts without spaces."""
    return [word for part in _PART.findall(text.lower()) for run in _RUN.findall(part) for word in _words(run)]


def _words(run: str) -> Iterator[str]:
    if _ALONE.match(run) is None:
        yield _stem(run)
    else:
        yield from map("".join, itertools.pairwise(run)) if len(run) > 1 else [run]


def telling(text: str) -> set[str]:
    """The stems of a text's words that say something; of all words where none does."""
    said = set(stems(text))
    return said - STOP_WORDS or said


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word

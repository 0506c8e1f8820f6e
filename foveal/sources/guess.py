"""Which encoding a text was written in, when nothing says so and it is no UTF-8.

Only encodings that keep ASCII as it is are taken into account. chardet says how well each fits what it knows of
languages. Its figures are for texts; a source file has a comment or two. So they are held against what the text would
be: letters of one script in a word, no signs inside words, characters that are common in the language. Western European
is the likeliest where nothing speaks against it.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from functools import cache

from foveal.sources.letters import COMMON, LETTERS

FALLBACK = "iso-8859-1"
"""Every sequence of bytes is a text in it."""

_PRIORS = {
    **{
        "cp1252": 0.0,
        "iso-8859-15": -2.0,
        "cp1250": -0.6,
        "iso-8859-2": -0.65,
        "cp1254": -0.8,
        "cp1257": -1.0,
        "cp1258": -1.4,
    },
    **{"cp1251": -0.2, "koi8-r": -0.2, "koi8-u": -0.5, "cp866": -0.6, "iso-8859-5": -1.2},
    **{"cp1253": -0.6, "iso-8859-7": -0.6, "cp1255": -0.9, "cp1256": -0.9, "cp874": -0.9},
    **{"gb18030": 0.3, "big5": 0.1, "cp932": 0.3, "euc-jp": 0.2, "cp949": 0.2},
}
"""The encodings that are guessed, and how likely each is beforehand (natural logarithms)."""
_NAMES = {"euc_jis_2004": "euc-jp", "euc_jp": "euc-jp", "big5hkscs": "big5", "shift_jis_2004": "cp932"}
"""What chardet calls them; the others are as Python's codecs call them."""
_LANGUAGES = {
    "cp1252": "de fr es pt it sv fi da nb nl is ca".split(),
    "iso-8859-15": "fr fi".split(),
    "cp1250": "pl cs sk hu hr sl ro".split(),
    "iso-8859-2": "pl cs sk hu hr sl ro".split(),
    "cp1254": ["tr"],
    "cp1257": ["lt", "lv", "et"],
}
"""The encodings of Latin letters, and the languages they are told apart by."""
_LATIN_PRIORS = {"cp1252": 0.0, "iso-8859-15": -3.0, "cp1250": -1.0, "iso-8859-2": -1.3, "cp1254": -1.2, "cp1257": -3.2}
_LANGUAGE_PRIORS = {
    **{"is": -2.5, "ca": -0.7, "nl": -0.3, "hr": -0.2, "sl": -0.2, "sk": -0.3, "ro": -0.3, "et": -0.5},
}
_ASIAN = {"gb18030": "zh_Hans", "big5": "zh_Hant", "cp932": "ja", "euc-jp": "ja", "cp949": "ko"}
_STANDARDS = {
    "gb18030": ("gb2312", 0xB0, 0xD7),
    "big5": ("big5", 0xA4, 0xC6),
    "cp932": ("shift_jis", 0x88, 0x97),
    "euc-jp": ("shift_jis", 0x88, 0x97),
    "cp949": ("euc_kr", 0xB0, 0xC8),
}
"""Where an encoding's standard keeps its common characters: the codec, the first and the last leading byte."""

_SAMPLE_BYTES = 16384
_LOOKED_AT = 4000
"""Characters of the sample that are looked at one by one; of Latin letters beyond ASCII `_LETTERS`."""
_LETTERS = 60
_STRANGE = 5.0
"""What it costs when all of a text is strange."""
_FLOOR = 0.004
"""The least that chardet's figure counts."""
_MANY, _BARELY = 20, 0.1
"""So many characters, with so little that is strange, are a text."""
_MOST_BROKEN = 0.01
"""Share of the bytes beyond ASCII that may be broken in an encoding all the same."""
_WORD = re.compile(r"[^\W\d_]+")
_HIGH = re.compile(rb"[\x80-\xff]+")
_QUOTES = frozenset("’‘“”„‚«»‹›…–—·•©®°§\xa0")
_INSIDE = frozenset("’‘·…\xa0—–“”")
"""Signs that stand inside words, and between them."""
_UNITS = frozenset("©®°§±×÷€£µ™²³½¼")
_ALONE, _ALONE_ASIAN = 8.0, 4.0
"""What it costs encodings of other scripts when no two bytes beyond ASCII stand together: their words are all such (but
for East Asian characters, whose second byte may be ASCII)."""
_QUOTED = 1e-6
"""How likely a letter stands alone: no word is that short."""
_NO_LETTER = -12.0
_PLAIN_SIGN = -6.0
"""What a sign costs where a letter would cost about `_PLAIN_SIGN`: at a word, and elsewhere."""


def guess(raw: bytes) -> str:
    """The likeliest encoding of `raw`, which holds bytes beyond ASCII and is no UTF-8."""
    sample = _sample(raw)
    for name in _ranked(sample):
        if _broken(raw, name) <= _MOST_BROKEN:
            return name
    return FALLBACK


def is_asian(name: str) -> bool:
    """Whether the encoding writes a character in two bytes."""
    return name in _ASIAN


def is_of_one_script(text: str) -> bool:
    """Whether the characters of `text` beyond ASCII are letters of one script, and one that texts in the encodings
    guessed here are written in (signs count for nothing)."""
    scripts = {_script(character) for character in text if character.isalpha() and character > "\x7f"}
    if scripts & {"han", "kana", "hangul", "half"} and any("\u0300" <= character < "\u0370" for character in text):
        return False  # accents that stand on letters of Latin, Greek and Cyrillic alone
    unassigned = any(unicodedata.category(character) in ("Cn", "Co", "Cc") for character in text if character > "\x7f")
    return not unassigned and "other" not in scripts and (len(scripts) < 2 or scripts <= {"kana", "han", "half"})


def codec(raw: bytes, name: str) -> str:
    """The codec that reads `raw` in encoding `name`: a superset where it is needed."""
    if name == "big5":
        return next((codec for codec in ("big5", "cp950") if not _errors(raw, codec)), "big5hkscs")
    if name == "euc-jp" and _errors(raw, name):
        return "euc_jis_2004"
    return name


def _sample(raw: bytes) -> bytes:
    """The lines that hold more than ASCII: the others say nothing."""
    found, size = [], 0
    for line in raw.split(b"\n"):
        if not line.isascii():
            first = next(_HIGH.finditer(line)).start()
            found.append(line[max(0, first - 200) :][: _SAMPLE_BYTES - size])
            size += len(found[-1])
            if size >= _SAMPLE_BYTES:
                break
    return b"\n".join(found) + b"\n"


def _broken(raw: bytes, name: str) -> float:
    errors = _errors(raw, codec(raw, name))
    return errors / max(1, sum(len(run) for run in _HIGH.findall(raw))) if errors else 0.0


def _errors(raw: bytes, codec: str) -> int:
    try:
        raw.decode(codec)
    except UnicodeDecodeError:
        return raw.decode(codec, "replace").count("\ufffd")
    return 0


def _ranked(sample: bytes) -> list[str]:
    """All encodings, the likeliest first. Those of Latin letters are held against each other by their letters."""
    fits = _chardet_fits(sample)
    weight = 1 + min(len(_HIGH.findall(sample)), 16) / 3
    texts = {name: sample.decode(codec(sample, name), "replace")[:_LOOKED_AT] for name in _PRIORS}
    strange = {name: _strangeness(texts[name], name) for name in _PRIORS}
    alone = max(map(len, _HIGH.findall(sample))) == 1

    def score(name: str) -> float:
        fit = fits.get(name, 0.0)
        signs = sum(map(_is_asian_letter, texts[name])) if name in _ASIAN else 0
        if not fit and signs >= _MANY and strange[name] < _BARELY:
            fit = _BARELY  # one broken byte, and chardet rules it out
        found = weight * math.log(fit + _FLOOR) + _PRIORS[name] - _STRANGE * strange[name]
        found += 0.6 * min(signs, 8) * (1 - 3 * strange[name])
        if alone and name not in _LANGUAGES:
            found -= _ALONE_ASIAN if name in _ASIAN else _ALONE
        return found

    def latin(name: str) -> float:
        return _latin_fit(texts[name], name) + _LATIN_PRIORS[name] - 8 * strange[name]

    def asian(name: str) -> float:
        return _asian_fit(texts[name], name) + weight * math.log(fits.get(name, 0.0) + _FLOOR)

    names = sorted(_PRIORS, key=score, reverse=True)
    for own, group in ((latin, _LANGUAGES), (asian, _ASIAN)):
        best = iter(sorted((name for name in names if name in group), key=own, reverse=True))
        names = [next(best) if name in group else name for name in names]
    return names


def _chardet_fits(sample: bytes) -> dict[str, float]:
    import chardet  # slow to import, and most sources are UTF-8 throughout

    found = chardet.detect_all(sample, ignore_threshold=True, compat_names=False, include_encodings=list(_PRIORS))
    fits: dict[str, float] = {}
    for each in found:
        name = str(each["encoding"])
        name = _NAMES.get(name, name.replace("iso8859", "iso-8859"))
        fits[name] = max(fits.get(name, 0.0), each["confidence"])
    return fits


# ---------------------------------------------------------------------- what a text would be


def _strangeness(text: str, name: str) -> float:
    """Share of the words, signs and characters beyond ASCII that no text in any language has, 0 to 1 (or more)."""
    strange = units = 0.0
    for match in _WORD.finditer(text):
        word = match[0]
        if word.isascii():
            continue
        found, count = _strange_signs(word, name) if any(map(_is_asian_letter, word)) else (_strange_word(word), 1)
        strange, units = strange + found, units + count
    for match in re.finditer(r"[^\x00-\x7f]", text):
        if not match[0].isalpha() and unicodedata.category(match[0])[0] != "M":
            place = match.start()
            strange += _strange_sign(text[place - 1 : place], match[0], text[place + 1 : place + 2])
            units += 1
    return strange / units if units else 0.0


def _strange_word(word: str) -> float:
    """1 for letters of two scripts in one word, or a capital behind a small letter."""
    scripts = {_script(letter) for letter in word}
    if len(scripts - {"ascii"}) > 1 or ("ascii" in scripts and not scripts <= {"ascii", "latin"}):
        return 1.0
    if scripts == {"latin"}:  # an alphabet, maybe: äöüÄÖÜß
        return 0.0
    return float(any(one.islower() and other.isupper() for one, other in itertools.pairwise(word)))


def _strange_signs(word: str, name: str) -> tuple[float, int]:
    """How strange the characters of a run with East Asian ones are in all, and how many they are."""
    scripts = [_script(character) for character in word]
    found, count = 0.0, 0
    for character, script in zip(word, scripts, strict=True):
        if script != "ascii":
            found, count = found + _strange_character(character, script, name), count + 1
    for before, here, after in zip(scripts, scripts[1:], scripts[2:], strict=False):
        if here in ("han", "hangul", "half") and before == after == "ascii":  # half of it is a letter of the word
            found, count = found + 1, count + 1
    return found, count


def _strange_character(character: str, script: str, name: str) -> float:
    if script == "kana":
        return 0.0 if _ASIAN.get(name) == "ja" else 0.8
    if script == "han" and name == "cp949":
        return 0.8
    if script not in ("han", "hangul") or name not in _ASIAN:
        return 0.8 if script == "half" else 1.0
    if character in _common(_ASIAN[name]):
        return 0.0
    rank = _rank(character, name)
    return rank if script == "hangul" else 0.35 + 0.65 * rank


def _rank(character: str, name: str) -> float:
    """0.0 to 1.0: among the common characters of the encoding's standard, among its others, in none."""
    standard, first, last = _STANDARDS[name]
    try:
        code = character.encode(standard)
    except UnicodeEncodeError:
        return 1.0
    if name == "cp949":
        return 0.4
    return 0.0 if first <= code[0] <= last else 0.5


def _strange_sign(before: str, sign: str, after: str) -> float:
    category = unicodedata.category(sign)
    if category in ("Cc", "Cn", "Co"):
        return 1.5
    if "\u2500" <= sign < "\u25a0":  # frames, in the encodings of DOS
        return 0.7
    if "\u3000" <= sign < "\u3040" or "\uff00" <= sign < "\uff66":
        return 0.0
    if before.isalpha() and after.isalpha() and sign not in _INSIDE:
        return 1.0
    return 0.5 if category[0] in "SN" and sign not in _UNITS else 0.0


_SCRIPTS = (
    *((0x80, "ascii"), (0x250, "latin"), (0x370, "other"), (0x400, "greek"), (0x530, "cyrillic"), (0x590, "other")),
    *((0x600, "hebrew"), (0x700, "arabic"), (0xE00, "other"), (0xE80, "thai"), (0x1E00, "other"), (0x1F00, "latin")),
    *((0x3040, "other"), (0x3100, "kana"), (0x3400, "other"), (0xA000, "han"), (0xAC00, "other"), (0xD7A4, "hangul")),
    *((0xFF66, "other"), (0xFFA0, "half"), (0x20000, "other"), (0x110000, "han")),
)
"""Where the letters of a script end (half: Japanese letters of half a width)."""


@cache
def _script(character: str) -> str:
    return next(name for end, name in _SCRIPTS if ord(character) < end)


def _is_asian_letter(character: str) -> bool:
    return _script(character) in ("han", "hangul", "kana", "half")


def is_common(character: str) -> bool:
    """Whether texts hold the character now and then: of the East Asian ones those of the national standards."""
    script = _script(character)
    if script == "hangul":
        return _rank(character, "cp949") < 1
    if script != "han":
        return script != "other" or unicodedata.category(character)[0] != "L"
    return any(_rank(character, name) == 0 for name in ("gb18030", "big5", "cp932"))


def is_of_small_script(character: str) -> bool:
    """Whether this is a letter of a script that no guessed encoding has."""
    return _script(character) == "other" and character.isalpha()


@cache
def _common(language: str) -> dict[str, int]:
    """The commonest characters, and how many are commoner."""
    return {character: place for place, character in enumerate(COMMON[language])}


# ---------------------------------------------------------------------- languages


def _asian_fit(text: str, name: str) -> float:
    """About the logarithm of how likely the East Asian characters are in the encoding's language."""
    common, fit = _common(_ASIAN[name]), 0.0
    for match in itertools.islice(re.finditer(r"[^\x00-\x7f]", text), _LETTERS):
        character = match[0]
        script = _script(character)
        if script not in ("kana", "han", "hangul"):
            fit -= 4.5 if not _strange_sign("", character, "") and not character.isalpha() else 11.0
        elif script == "kana":
            fit -= 3.5 if _ASIAN[name] == "ja" else 9.0
        elif character in common:
            fit -= math.log(20 + common[character])
        else:
            fit -= 9.0 + 3 * _strange_character(character, script, name)
    return fit - 12.0 * text[:_LOOKED_AT].count("\ufffd")


def _latin_fit(text: str, name: str) -> float:
    """The logarithm of how likely the letters beyond ASCII are, each with its neighbours, in the likeliest language."""
    fits = {language: _LANGUAGE_PRIORS.get(language, 0.0) for language in _LANGUAGES[name]}
    for count, match in enumerate(re.finditer(r"[^\x00-\x7f]", text)):
        if count == _LETTERS:
            break
        place, sign = match.start(), match[0].lower()
        before, after = text[place - 1 : place].lower(), text[place + 1 : place + 2].lower()
        if not sign.isalpha() or (sign == "µ" and not before.isalpha()):
            plain = {"µ"} if sign == "µ" else _INSIDE if before.isalpha() and after.isalpha() else _QUOTES
            at_word = before.isalpha() or after.isalpha() or sign == "¤"  # a sign that no text has
            for language in fits:
                fits[language] += _NO_LETTER if at_word and sign not in plain else _PLAIN_SIGN
            continue
        before, after = before if before.isalpha() else "^", after if after.isalpha() else "$"
        for language in fits:
            fits[language] += _likelihood(language, before, sign, after)
    return max(fits.values())


def _likelihood(language: str, before: str, letter: str, after: str) -> float:
    counts, total = _counts(language)
    own = counts.get(letter, 0)
    likely = (own + 0.05) / (total + 2)
    if (before, after) == ("^", "$"):
        return math.log(likely * _QUOTED)
    for pair in (before + letter, letter + after):
        likely *= (counts.get(pair, 0) + 0.08) / (own + 2)
    return math.log(likely)


@cache
def _counts(language: str) -> tuple[dict[str, int], int]:
    """How often each letter and pair stands, and the letters in all."""
    counts: dict[str, int] = {}
    for item in LETTERS[language].split():
        letters = item.rstrip("0123456789")
        counts[letters] = int(item[len(letters) :])
    return counts, sum(count for item, count in counts.items() if len(item) == 1)

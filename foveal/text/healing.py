"""Token healing: continue a text that a person cut off anywhere, as if it had not been cut.

The end of a typed cue is seldom where a token ends. ``def f(x):`` ends in the token ``):``, but in the source it is the
token ``):\\n``, and a model that has been given the wrong token is off the track at once (on source code, the tokens of
a cue are a beginning of the source's tokens in less than a third of the cases). So the cue's last word is taken back,
and the model chooses its tokens anew among those that agree with what was typed.

    prefix, remainder = heal(tokenizer, cue)          # give the model `prefix`
    constraint = PrefixConstraint(tokenizer, remainder)
    while not constraint.done: choose among constraint.allowed(), then constraint.accept(token)
"""

from __future__ import annotations

import bisect
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from foveal.text.tokenizer import Tokenizer
from foveal.text.wtf8 import to_bytes

MAX_WORD_BYTES = 64
"""A last word longer than this (a line of dashes, say) is not taken back as a whole."""

BoolArray = npt.NDArray[np.bool_]


def heal(tokenizer: Tokenizer, cue: str) -> tuple[list[int], bytes]:
    """Split a typed `cue` into tokens that are certain and the bytes after them, which are to be generated again.

    The tokens end before the cue's last word (the pre-tokeniser's last piece), and earlier still where one token could
    reach from there beyond the cue's end. Both parts joined are the cue; the first is empty for a cue of one word.
    """
    ids = tokenizer.encode(cue)
    index = _index(tokenizer)
    word_bytes = len(to_bytes(cue[tokenizer.last_piece(cue) :]))
    keep, tail = len(ids), b""
    for place in range(len(ids) - 1, -1, -1):
        tail = tokenizer.token_bytes(ids[place]) + tail
        in_word = len(tail) <= min(word_bytes, MAX_WORD_BYTES)
        if len(tail) >= index.longest and not in_word:
            break
        if in_word or index.has_longer(tail):
            keep = place
    return ids[:keep], tokenizer.decode_bytes(ids[keep:])


def allowed_tokens(tokenizer: Tokenizer, remainder: bytes) -> BoolArray:
    """Which tokens may come next when the text must begin with `remainder`: bool [vocab_size].

    Those whose bytes begin with the remainder, and those that are a beginning of it; never a control token. With
    nothing remaining, every token may.
    """
    if not remainder:
        return np.ones(tokenizer.vocab_size, dtype=np.bool_)
    mask = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    mask[_index(tokenizer).compatible(remainder)] = True
    return mask


class PrefixConstraint:
    """Holds generation to the bytes of a remainder until they are used up; after that it allows everything."""

    def __init__(self, tokenizer: Tokenizer, remainder: bytes) -> None:
        self._tokenizer = tokenizer
        self.remaining = remainder
        """Bytes that the next tokens still have to produce."""

    @property
    def done(self) -> bool:
        """Whether all of the remainder has been produced."""
        return not self.remaining

    @property
    def repeats_prompt(self) -> bool:
        """The remainder is the end of the prompt."""
        return True

    def allowed(self) -> BoolArray | None:
        """Tokens allowed now, bool [vocab_size], at least one of them true; or None when every token is."""
        return None if self.done else allowed_tokens(self._tokenizer, self.remaining)

    def accept(self, token: int) -> None:
        """`token` was chosen. Raises `ValueError` if it contradicts the remainder."""
        if self.done:
            return
        data = self._tokenizer.token_bytes(token)
        agrees = data.startswith(self.remaining) or self.remaining.startswith(data)
        if not agrees or not data or token in self._tokenizer.control_ids:
            raise ValueError(f"token {token} ({data!r}) does not continue {self.remaining!r}")
        self.remaining = self.remaining[len(data) :]


class _PrefixIndex:
    """The vocabulary sorted by bytes: all tokens with a given beginning stand side by side."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        control = tokenizer.control_ids
        entries = sorted((tokenizer.token_bytes(i), i) for i in range(tokenizer.vocab_size) if i not in control)
        self._tokens = [token for token, _ in entries]
        self._ids = np.array([id_ for _, id_ in entries], dtype=np.int64)
        self._id_of = dict(entries)
        self.longest = max(map(len, self._tokens))

    def has_longer(self, prefix: bytes) -> bool:
        """Whether some token begins with `prefix` and goes on."""
        place = bisect.bisect_right(self._tokens, prefix)
        return place < len(self._tokens) and self._tokens[place].startswith(prefix)

    def compatible(self, remainder: bytes) -> npt.NDArray[np.int64]:
        """Ids of the tokens that begin with `remainder` or are a proper, non-empty beginning of it."""
        first = bisect.bisect_left(self._tokens, remainder)
        after = bisect.bisect_left(self._tokens, True, lo=first, key=lambda token: not token.startswith(remainder))
        sizes = range(1, min(len(remainder), self.longest + 1))
        shorter = [id_ for size in sizes if (id_ := self._id_of.get(remainder[:size])) is not None]
        return np.concatenate([self._ids[first:after], np.array(shorter, dtype=np.int64)])


@lru_cache(maxsize=8)
def _index(tokenizer: Tokenizer) -> _PrefixIndex:
    return _PrefixIndex(tokenizer)

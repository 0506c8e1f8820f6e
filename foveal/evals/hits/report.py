"""What was seen: all replies to one prompt must be equal, token by token, to the first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from foveal.evals.hits.client import Said

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Difference:
    """A reply that is not what the first reply to the same prompt was.

    check, first: how both came about.   place: the first token that differs.   expected, found: token and
    log-probability there; None where a reply had ended.   gap: how far the log-probabilities are apart; None where the
    tokens differ.
    """

    check: str
    first: str
    prompt_tokens: int
    cached: int | None
    place: int
    expected: tuple[str, float] | None
    found: tuple[str, float] | None
    gap: float | None

    def as_json(self) -> dict[str, Any]:
        """The fields, with tokens and log-probabilities apart."""
        sides = {"expected": self.expected, "found": self.found}
        told = {name: None if side is None else {"token": side[0], "logprob": side[1]} for name, side in sides.items()}
        return vars(self) | told


@dataclass
class Count:
    """Of one check: replies, tokens of their prompts, and how many of those were cached (as far as that was told)."""

    replies: int = 0
    tokens: int = 0
    cached: int = 0
    told: bool = False
    different: int = 0


@dataclass
class Report:
    """All that was seen of a server. `tolerance`: log-probabilities may be so far apart."""

    tolerance: float = 0.0
    counts: dict[str, Count] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    lengths: set[int] = field(default_factory=set)
    unscored: bool = False
    _first: dict[Prompt, tuple[str, Said]] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether no reply differed."""
        return not self.differences

    @property
    def replies(self) -> int:
        """How many were seen."""
        return sum(count.replies for count in self.counts.values())

    def add(self, check: str, prompt: Prompt, said: Said) -> None:
        """Take in a reply."""
        count = self.counts.setdefault(check, Count())
        count.replies += 1
        count.tokens += said.prompt_tokens
        if said.cached is not None:
            count.told = True
            count.cached += said.cached
        if prompt not in self._first:
            self._first[prompt] = check, said
            return
        first, expected = self._first[prompt]
        found = difference(expected, said, self.tolerance)
        if found is not None:
            count.different += 1
            self.differences.append(Difference(check, first, said.prompt_tokens, said.cached, *found))

    def notes(self) -> list[str]:
        """What a reader should know before taking the result for a proof."""
        told = []
        again = [count for check, count in self.counts.items() if check not in ("cold", "scored")]
        if not any(count.told for count in again):
            told.append("the server does not tell how many tokens it reused; perhaps it reused none")
        elif not any(count.cached for count in again):
            told.append("the server says that it reused nothing: no hit was checked")
        if self.unscored:
            told.append("the server does not score prompts (echo with logprobs), so forks were not compared with that")
        missing = {0, 1, 2, 3} - {length % 4 for length in self.lengths}
        if missing:
            told.append(f"no prompt had a length of remainder {', '.join(map(str, sorted(missing)))} modulo 4")
        return told


def difference(
    expected: Said, found: Said, tolerance: float
) -> tuple[int, tuple[str, float] | None, tuple[str, float] | None, float | None] | None:
    """The first place where two replies differ, what stands there, and the gap; None if they are equal."""
    ours, theirs = _tokens(expected), _tokens(found)
    for place in range(max(len(ours), len(theirs))):
        one = ours[place] if place < len(ours) else None
        other = theirs[place] if place < len(theirs) else None
        if one is None or other is None or one[0] != other[0]:
            return place, one, other, None
        gap = max(abs(one[1] - other[1]), _gap(expected.top[place], found.top[place]))
        if not gap <= tolerance:
            return place, one, other, gap
    return None


def _tokens(said: Said) -> list[tuple[str, float]]:
    return list(zip(said.tokens, said.logprobs, strict=True))


def _gap(one: dict[str, float], other: dict[str, float]) -> float:
    """How far the alternatives that both name are apart."""
    return max((abs(one[token] - other[token]) for token in one.keys() & other.keys()), default=0.0)

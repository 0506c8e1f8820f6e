"""What a token costs: learned from the steps that were run.

Two small models, so that what is known of one is not forgotten while only the other is seen. Decoding: a step takes a
fixed time, and some for each token, more of it the deeper the token stands. Reading: what a step takes beyond that, for
each token, again by depth, and for each that is scored as well. Both are fitted to relative errors (a step of a
millisecond counts as much as one of a second), newer steps count more, and a step that took far longer than expected
counts as one that took `_SURPRISE` times as long, so that one pause of the machine changes little.

No machine keeps to an expectation. `Costs.late` says by how much it is missed: one step in a hundred takes longer than
so many times what was expected. It is learned by stochastic approximation: a step that is later moves it up, one that
is not moves it down by a ninety-ninth of that.
"""

from __future__ import annotations

from collections.abc import Sequence

_FORGET = 0.03
"""Share of what is known that is forgotten when a step is added."""
_DOUBT = 0.15
"""The same, when the step took less than half or more than twice of what was expected."""
_SURPRISE = 3.0
_TRUSTED = 8
"""Steps after which an expectation counts as one."""
_REFIT = 16
"""Steps after which the coefficients are computed anew; the first so many at every step."""
_RIDGE = 1e-6
_SAYING = 64
"""Tokens that are read alone from which on a step says what a token costs: of fewer it is mostly the step itself."""
_GROWTH = 4
"""A piece is at most so many times as long as the longest that was seen."""
_LATE, _LATE_AT_FIRST, _LATE_AT_MOST = 0.01, 1.2, 2.0
_LATE_PACE = 0.05
"""Share by which a step that is later moves `Costs.late`."""
_DEPTH = 1 << 16
"""Unit of depth in tokens, to keep the numbers of one size."""


class Fit:
    """Least squares with coefficients >= 0 of `size` features, with exponential forgetting."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen = 0
        self._products = [[0.0] * size for _ in range(size)]
        self._targets = [0.0] * size
        self._coefficients = [0.0] * size
        self._fresh = True

    def learn(self, features: Sequence[float], seconds: float, scale: float, forget: float) -> None:
        """Take in that `features` took so many seconds, known to about a share of `scale` seconds, and forget so much
        of what was before."""
        weight, keep = 1.0 / max(scale, 1e-9) ** 2, 1.0 - forget
        for row, feature in enumerate(features):
            products = self._products[row]
            for column, other in enumerate(features):
                products[column] = products[column] * keep + weight * feature * other
            self._targets[row] = self._targets[row] * keep + weight * feature * seconds
        self.seen += 1
        if self.seen <= _REFIT or self.seen % _REFIT == 0:
            self._fresh = False

    def predict(self, features: Sequence[float]) -> float:
        """Seconds that `features` will take; 0 when nothing was learned."""
        return sum(value * feature for value, feature in zip(self.coefficients, features, strict=True))

    @property
    def coefficients(self) -> list[float]:
        if not self._fresh:
            self._coefficients, self._fresh = self._solve(), True
        return self._coefficients

    def _solve(self) -> list[float]:
        """The features whose coefficient would be negative are left out, one after the other."""
        chosen = [place for place in range(self.size) if self._products[place][place] > 0]
        while chosen:
            values = _solved(
                [[self._products[row][column] for column in chosen] for row in chosen],
                [self._targets[row] for row in chosen],
            )
            lowest = min(range(len(chosen)), key=values.__getitem__)
            if values[lowest] >= 0:
                found = dict(zip(chosen, values, strict=True))
                return [found.get(place, 0.0) for place in range(self.size)]
            del chosen[lowest]
        return [0.0] * self.size


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """The solution of a small positive definite system, with a ridge: of what explains the same, all is taken a little,
    and of what was hardly seen (a depth near 0) hardly anything."""
    size = len(right)
    rows = [[*line, right[place]] for place, line in enumerate(matrix)]
    ridge = _RIDGE * max(matrix[place][place] for place in range(size))
    for place in range(size):
        rows[place][place] += ridge
    for place in range(size):
        pivot = rows[place]
        for other in rows[place + 1 :]:
            factor = other[place] / pivot[place] if pivot[place] else 0.0
            for column in range(place, size + 1):
                other[column] -= factor * pivot[column]
    values = [0.0] * size
    for place in reversed(range(size)):
        known = sum(rows[place][column] * values[column] for column in range(place + 1, size))
        pivot_value = rows[place][place]
        values[place] = (rows[place][size] - known) / pivot_value if pivot_value else 0.0
    return values


class Costs:
    """Seconds that steps take. Depths are the tokens that stand before."""

    def __init__(self) -> None:
        self._decoding, self._reading = Fit(3), Fit(3)
        self._scored = False
        self._longest = 1
        self.late = _LATE_AT_FIRST
        """Of steps that decode and read, one in a hundred takes longer than so many times what was expected; 1 to 2."""

    def learn(
        self, decoding: Sequence[int], reading: Sequence[tuple[int, int]], seconds: float, scored: int = 0
    ) -> None:
        """A step took `seconds`: one token at each depth of `decoding`, and pieces (depth, tokens) of `reading`, of
        whose tokens so many were scored."""
        if not reading:
            tokens = _decoding_features(decoding)
            scale, seconds, forget = _judged(self._decoding, self._decoding.predict(tokens), seconds)
            self._decoding.learn(tokens, seconds, scale, forget)
            return
        if not decoding and sum(count for _, count in reading) < _SAYING:
            return
        base = self._decoding.predict(_decoding_features(decoding))
        pieces = [_reading_features(*piece) for piece in reading]
        features = [*(sum(column) for column in zip(*pieces, strict=True))]
        features[2] = float(scored)
        self._scored = self._scored or scored > 0
        expected = base + self._reading.predict(features)
        if decoding and self._reading.seen >= _TRUSTED:
            self._note_lateness(seconds > self.late * expected)
        scale, seconds, forget = _judged(self._reading, expected, seconds)
        # A small piece beside much decoding says little, so it wipes out little of what is known.
        share = 1.0 - min(base / max(seconds, 1e-9), 0.95)
        self._reading.learn(features, seconds - base, scale, forget * share)
        self._longest = max(self._longest, *(count for _, count in reading))

    def _note_lateness(self, later: bool) -> None:
        moved = self.late * (1 + _LATE_PACE * (later - _LATE))
        self.late = min(max(moved, 1.0), _LATE_AT_MOST)

    @property
    def knows_decoding(self) -> bool:
        return self._decoding.seen > 0

    @property
    def knows_reading(self) -> bool:
        return self._reading.seen > 0

    @property
    def knows_scoring(self) -> bool:
        return self._scored

    def of_decoding(self, depths: Sequence[int]) -> float:
        """Seconds of a step that decodes one token at each depth; 0 when that is not known."""
        return self._decoding.predict(_decoding_features(depths)) if depths else 0.0

    def of_reading(self, depth: int, count: int, *, scored: bool = False) -> float:
        """Seconds that `count` tokens behind `depth` add to a step; 0 when that is not known."""
        return self._reading.predict(_reading_features(depth, count, scored))

    def tokens_within(self, depth: int, seconds: float, most: int, *, scored: bool = False) -> int:
        """How many tokens can be read behind `depth` in so many seconds, at most `most`; when reading is known."""
        low, high = 0, min(most, _GROWTH * self._longest)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if self.of_reading(depth, middle, scored=scored) <= seconds else (low, middle - 1)
            )
        return low


def _judged(model: Fit, expected: float, seconds: float) -> tuple[float, float, float]:
    """About how long a step should have taken, how long it counts as, and how much it makes forget."""
    if model.seen < _TRUSTED or expected <= 0:
        return seconds, seconds, _FORGET
    usual = expected < 2 * seconds and seconds < 2 * expected
    return expected, min(seconds, _SURPRISE * expected), _FORGET if usual else _DOUBT


def _decoding_features(depths: Sequence[int]) -> tuple[float, float, float]:
    return 1.0, float(len(depths)), sum(depths) / _DEPTH


def _reading_features(depth: int, count: int, scored: bool = False) -> tuple[float, float, float]:
    return float(count), count * (depth + count / 2) / _DEPTH, float(count * scored)

"""The run's curve: means over a few steps, as CSV rows and a progress line."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from foveal.train.snapshot import private

COLUMNS = (
    "step", "stage", "length", "tokens", "seconds", "loss", "recall_loss", "recall_accuracy", "ordinary_loss",
    "index_kl", "mtp_loss", "balance", "lr", "grad_norm", "tokens_per_second",
    "heldout_recall_loss", "heldout_recall_accuracy", "anticipated", "rerouted",
)  # fmt: skip


class Means:
    """Weighted means of named values since the last `take`."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._weights: dict[str, float] = defaultdict(float)

    def add(self, name: str, value: float, weight: float = 1.0) -> None:
        self._sums[name] += value * weight
        self._weights[name] += weight

    def state(self) -> dict[str, list[float]]:
        """Sums and weights so far, to go on from with `restore`."""
        return {name: [self._sums[name], weight] for name, weight in self._weights.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from what `state` gave."""
        self.take()
        for name, (total, weight) in state.items():
            self._sums[name], self._weights[name] = total, weight

    def take(self) -> dict[str, float]:
        """The means so far; starts anew. Values that never had weight are left out."""
        means = {name: self._sums[name] / weight for name, weight in self._weights.items() if weight > 0}
        self.__init__()  # type: ignore[misc]
        return means


class Curve:
    """A CSV file that a resumed run goes on writing: rows after the step resumed from are dropped first."""

    def __init__(self, path: Path, resumed_at: int, columns: Sequence[str] = COLUMNS) -> None:
        self.path, self.columns = path, columns
        rows: list[dict[str, str]] = []
        if path.is_file() and resumed_at:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if _step(row) <= resumed_at]
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with private(), partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(path)

    def add(self, row: Mapping[str, float | int]) -> None:
        """Append one row; unknown columns are an error, missing ones stay empty."""
        unknown = row.keys() - set(self.columns)
        if unknown:
            raise ValueError(f"the curve has no column(s) {sorted(unknown)}")
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow({k: _short(v) for k, v in row.items()})


def _step(row: Mapping[str, str | None]) -> int:
    """A row that a killed process left half written has no sound last column, and comes after every step."""
    whole = (row.get("step") or "").isdigit() and None not in row.values()
    return int(row["step"] or 0) if whole else 1 << 62


def _short(value: float | int) -> float | int | str:
    return value if isinstance(value, int) else f"{value:.6g}"

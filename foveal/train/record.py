"""What a run was made of, kept in its checkpoints: the same command a month later shall not go on with something else.

Settings may change between sessions (a longer budget is the usual reason) and are then named; the seed, the text and
the tokenizer may not, for then the run would be neither one nor the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveal.train.settings import RunConfig
from foveal.train.snapshot import SnapshotError

_PLACES = frozenset({"out", "train", "tokenizer", "seed"})
"""Settings that are not compared as such: a path may change, what is there may not."""


@dataclass(frozen=True)
class Record:
    """The settings of a run, and what tells its training text and its tokenizer from others."""

    run: RunConfig
    store: str
    tokenizer: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self.run)))
        return {"settings": settings, "store": self.store, "tokenizer": self.tokenizer}

    def changes(self, before: Mapping[str, Any], path: Path) -> list[str]:
        """Settings that are not as in `before`, the record of the checkpoint at `path`: ``tokens=2000 (was 1000)``.

        Raises `SnapshotError` when the seed, the training text or the tokenizer is another.
        """
        now, then = self.to_dict(), before.get("settings", {})
        for name, old, new in (
            ("seed", then.get("seed"), self.run.seed),
            ("train", before.get("store"), self.store),
            ("tokenizer", before.get("tokenizer"), self.tokenizer),
        ):
            if old is not None and old != new:
                was, given = f"{then.get(name)}", f"{getattr(self.run, name)}"
                if name != "seed":
                    was, given = f"{was} ({old})", f"{given} ({new})"
                raise SnapshotError(
                    f"{path} was trained with {name}={was}, and now it is {given}; choose another 'out', or give what "
                    "it was trained with"
                )
        old_values, new_values = dict(_flat(then)), dict(_flat(now["settings"]))
        names = sorted(old_values.keys() | new_values.keys())
        changed = [name for name in names if old_values.get(name) != new_values.get(name)]
        return [f"{name}={new_values.get(name)} (was {old_values.get(name)})" for name in changed]


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings by the names that ``--set`` takes, without `_PLACES`."""
    for name, value in settings.items():
        if name in _PLACES:
            continue
        yield from _leaves(name, value)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        parts: Iterator[tuple[Any, Any]] = iter(value.items())
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        parts = iter(enumerate(value))
    else:
        yield name, value
        return
    for key, part in parts:
        yield from _leaves(f"{name}.{key}", part)

"""What a distillation is told: one YAML file, read as strictly as that of any run (`foveal.train.settings`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveal.train.settings import SettingsError, read_settings, read_yaml

SHORTEST_ROW = 512
"""What a stage's rows must be allowed to have: in fewer tokens few kinds of them fit."""
KIND = "distill"
"""What the setting `kind` of these files is."""


@dataclass(frozen=True)
class StageConfig:
    """`steps` of `rows` rows each, at most `length` tokens long. `teach`: "layers", every layer by itself, or
    "network", the whole of it from end to end. The learning rate rises to `rate` and falls along a cosine."""

    teach: str
    steps: int
    length: int
    rate: float
    rows: int = 1


@dataclass(frozen=True)
class DistillConfig:
    """A whole run: the packed entries of a converted model learn from its source (docs/convert.md).

    `source` is what `foveal convert` takes; a download goes into `out`, the run's folder. `heads`: layer -> the
    source's heads that look things up; without them the `find` best are found (`foveal.train.distill.finding`), at most
    `find_most` of a layer. `start_from`: a file of packed entries, or the name of one that ships, whose heads and
    numbers the run begins with. `text`: files and folders that rows are made of, none for what Python brings. `device`,
    `precision`, `threads`, `save_minutes` and `log_every` are as in every run.
    """

    kind: str
    out: str
    source: str
    stages: tuple[StageConfig, ...]
    heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    find: int = 20
    find_most: int = 2
    start_from: str | None = None
    text: tuple[str, ...] = ()
    seed: int = 21
    threads: int = 1
    device: str = "auto"
    precision: str = "auto"
    save_minutes: float = 2.0
    log_every: int = 10

    def __post_init__(self) -> None:
        if not self.stages:
            raise SettingsError("setting 'stages' is empty; give at least one stage")
        if self.find < 1 or self.find_most < 1:
            raise SettingsError("settings 'find' and 'find_most' must be 1 or more")
        for name, allowed in (("device", ("auto", "cpu", "cuda")), ("precision", ("auto", "fp32", "bf16"))):
            if getattr(self, name) not in allowed:
                raise SettingsError(f"setting {name!r} is {getattr(self, name)!r}; it must be one of {allowed}")
        if not all(layer.isdecimal() and heads for layer, heads in self.heads.items()):
            raise SettingsError("setting 'heads' must map layers to lists of heads, as in {7: [3], 8: [0, 1]}")
        for number, stage in enumerate(self.stages):
            if stage.teach not in ("layers", "network"):
                raise SettingsError(f"stage {number}: 'teach' is {stage.teach!r}; it must be 'layers' or 'network'")
            if stage.steps < 1 or stage.rows < 1 or stage.length < SHORTEST_ROW or not stage.rate >= 0:
                raise SettingsError(
                    f"stage {number}: needs steps >= 1, rows >= 1, length >= {SHORTEST_ROW} and rate >= 0"
                )
        if self.threads < 1 or self.log_every < 1 or self.save_minutes < 0:
            raise SettingsError("settings 'threads' and 'log_every' must be 1 or more, 'save_minutes' 0 or more")

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def retrieving(self) -> dict[int, tuple[int, ...]]:
        """`heads` by numbers of layers."""
        return {int(layer): heads for layer, heads in self.heads.items()}

    @classmethod
    def from_yaml(cls, path: Path | str, changes: Sequence[str] = ()) -> DistillConfig:
        """From a YAML file with ``kind: distill``. Raises `SettingsError` naming the key that is wrong."""
        return read_settings(cls, path, changes)


def is_distillation(path: Path) -> bool:
    """Whether the run in the YAML file at `path` is one of these."""
    kind: Any = read_yaml(path).get("kind")
    return bool(kind == KIND)

"""What a training run is told: one YAML file, read strictly.

What is special here: every unknown or mistyped key is an error that names it; a run of an hour must not start with a
misspelt option.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from foveal.config import ModelConfig, preset
from foveal.train.data import Recipe
from foveal.train.optim import OptimConfig, Schedule


class SettingsError(ValueError):
    """The run's settings cannot be used; the message names the key."""


@dataclass(frozen=True)
class StageConfig:
    """A part of the run: sequences of `length` tokens, `sequences` of them a step, for `share` of the budget (shares
    are normalised). `lr` scales the schedule; `recall_weight` replaces the data recipe's; `quantize` rounds weights on
    the way (QAT) and simulates run-time quantisation; `index_topk` limits attention to the indexer's choice (None: all
    entries, the dense stage)."""

    length: int
    sequences: int = 1
    share: float = 1.0
    lr: float = 1.0
    recall_weight: float | None = None
    quantize: bool = False
    index_topk: int | None = None


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses beside cross entropy, and the speed of the routers' balancing biases."""

    index_kl: float = 0.1
    balance: float = 1e-4
    bias_speed: float = 1e-3


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    `train` and `heldout` are token stores (paths without ``.bin``); `out` is the run's folder. `tokens` and `minutes`
    are the budget: the schedule follows whichever is used up faster; minutes count training time, over all restarts.
    `model` is ``{preset: NAME, field: value, ...}``. `start` is "structured" or "random"; `start_from` a checkpoint of
    another run whose parameters are taken instead. With `precision` "bf16" matrix products run in bfloat16 (parameters
    stay fp32); "auto" chooses it where the device multiplies it faster than fp32. Every `heldout_every` steps (0:
    never) recall is measured on `heldout_sequences` held-out sequences.
    """

    out: str
    train: str
    tokenizer: str
    stages: tuple[StageConfig, ...]
    model: Mapping[str, Any] = field(default_factory=lambda: {"preset": "nano"})
    start: str = "structured"
    start_from: str | None = None
    seed: int = 1
    tokens: int | None = None
    minutes: float | None = None
    threads: int = 1
    precision: str = "auto"
    save_minutes: float = 5.0
    log_every: int = 10
    keep: int = 2
    heldout: str | None = None
    heldout_every: int = 0
    heldout_sequences: int = 4
    data: Recipe = field(default_factory=Recipe)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: Schedule = field(default_factory=Schedule)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        if not self.stages:
            raise SettingsError("setting 'stages' is empty; give at least one stage")
        if self.tokens is None and self.minutes is None:
            raise SettingsError("give a budget: 'tokens', 'minutes' or both")
        if self.start not in ("structured", "random"):
            raise SettingsError(f"setting 'start' is {self.start!r}; it must be 'structured' or 'random'")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise SettingsError(f"setting 'precision' is {self.precision!r}; it must be 'auto', 'fp32' or 'bf16'")
        for number, stage in enumerate(self.stages):
            if stage.length < 64 or stage.sequences < 1 or stage.share <= 0:
                raise SettingsError(f"stage {number}: needs length >= 64, sequences >= 1 and share > 0")

    @classmethod
    def from_yaml(cls, path: Path | str) -> RunConfig:
        """From a YAML file. Raises `SettingsError` naming the key that is wrong."""
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingsError(f"cannot read {path}: {error}") from error
        if not isinstance(data, dict):
            raise SettingsError(f"{path} must hold a mapping of settings")
        result = _build(cls, data, "")
        assert isinstance(result, RunConfig)
        return result

    def model_config(self) -> ModelConfig:
        """The network's shape: the preset with the given fields changed. Raises `ConfigError`."""
        changes = dict(self.model)
        base = preset(changes.pop("preset", "nano"))
        if "compress_ratios" in changes:
            changes["compress_ratios"] = tuple(changes["compress_ratios"])
        unknown = changes.keys() - {f.name for f in dataclasses.fields(ModelConfig)}
        if unknown:
            raise SettingsError(f"setting 'model' has unknown field(s) {sorted(unknown)}")
        return base.replace(**changes)


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` (from YAML) as an instance of the annotation `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _build(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise SettingsError(f"setting {where!r} must be a list")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise SettingsError(f"setting {where!r} must have {len(inner)} items")
        return tuple(_build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(inner, value, strict=True)))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise SettingsError(f"setting {where!r} must be a mapping")
        return {str(k): _build(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    return _scalar(kind, value, where)


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise SettingsError(f"setting {where!r} must be a mapping")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(value.keys() - fields.keys())
    if unknown:
        raise SettingsError(f"unknown setting(s) {unknown} in {where or 'the run'}; there are {sorted(fields)}")
    missing = [
        name
        for name, f in fields.items()
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SettingsError(f"{where or 'the run'} lacks setting(s) {missing}")
    return kind(**{k: _build(hints[k], v, f"{where}.{k}".lstrip(".")) for k, v in value.items()})


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        # YAML 1.1 reads "4e-3" as text.
        try:
            return float(value)
        except ValueError:
            raise SettingsError(f"setting {where!r} is {value!r}; it must be a number") from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SettingsError(f"setting {where!r} is {value!r}; it must be of type {kind.__name__}")
    return value

"""What a training run is told: one YAML file, read strictly.

Every unknown or mistyped key is an error that names it; a run of an hour must not start with a misspelt option.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from foveal.config import ModelConfig, preset
from foveal.engine import SHIPPED, model_folder
from foveal.errors import FovealError
from foveal.train.batch import PositionConfig
from foveal.train.data import Recipe
from foveal.train.optim import OptimConfig, Schedule
from foveal.train.tasks import TaskMix

_T = TypeVar("_T")


class SettingsError(FovealError, ValueError):
    """The run's settings cannot be used; the message names the key."""

    code = "invalid_request"


@dataclass(frozen=True)
class StageConfig:
    """A part of the run: rows of `length` tokens, `sequences` of them a step (over all processes), for `share` of the
    budget (shares are normalised).

    `documents`: a row holds several documents of random lengths in this range (None: one). `lr` scales the schedule;
    `recall_weight` replaces the data recipe's; `quantize` rounds weights on the way (QAT) and simulates run-time
    quantisation; `index_topk` limits attention to the indexer's choice (None: all entries, the dense stage). `train`:
    "all", or "indexer": everything else is frozen and only the indexer's divergence counts (its warm-up). `index_kl`
    and `mtp` replace the run's loss weights (0: that part is neither run nor trained)."""

    length: int
    sequences: int = 1
    share: float = 1.0
    lr: float = 1.0
    recall_weight: float | None = None
    quantize: bool = False
    index_topk: int | None = None
    documents: tuple[int, int] | None = None
    train: str = "all"
    index_kl: float | None = None
    mtp: float | None = None


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses beside cross entropy, and the speed of the routers' balancing biases. `mtp` is the weight
    before and after the schedule's decay begins; it counts when the network has MTP blocks."""

    index_kl: float = 0.1
    balance: float = 1e-4
    mtp: tuple[float, float] = (0.3, 0.1)
    bias_speed: float = 1e-3


@dataclass(frozen=True)
class RoutingConfig:
    """Anticipatory routing: a step's tokens go to the experts that the parameters of `lag` steps before chose for them
    (0: it is off).

    With `spike` it is on after a loss spike only: when a step's loss is more than `spike` times the median of the
    `window` losses before it (or not a number), the run goes back to its newest checkpoint, and routes so until it is
    `steps` steps past the spike; in that time it does not go back again. Without `spike` it is on from the first step.
    """

    lag: int = 0
    spike: float | None = None
    window: int = 50
    steps: int = 500

    def __post_init__(self) -> None:
        if self.lag < 0:
            raise SettingsError(f"setting 'routing.lag' is {self.lag}; it must be 0 (off) or more")
        if self.window < 1 or self.steps < 1:
            raise SettingsError("settings 'routing.window' and 'routing.steps' must be 1 or more")
        if self.spike is None:
            return
        if not self.lag:
            raise SettingsError("setting 'routing.spike' needs a 'routing.lag' of 1 or more: without, nothing changes")
        if not self.spike > 1:
            raise SettingsError(f"setting 'routing.spike' is {self.spike}; it must be more than 1")


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    `train` and `heldout` are token stores (paths without ``.bin``); `out` is the run's folder. `tokens` and
    `minutes` are the budget: the schedule follows whichever is used up faster; minutes count training time, over
    all restarts. `model` is ``{preset: NAME, field: value, ...}``. `start` is "structured" or "random";
    `start_from` a training checkpoint, or a model directory (or "nano"), whose parameters are taken instead. With
    `keep_circuit` what holds the structured start's circuit is not trained (`foveal.train.structured.Circuit`).

    `tokenizer` is a ``tokenizer.json``, or "nano" for that of the model in the box.

    `device` is "auto", "cpu" or "cuda". With `precision` "bf16" matrix products run in bfloat16 (parameters stay
    fp32); "auto" chooses it where the device multiplies it faster than fp32. `compile` runs the layers through
    torch.compile. `micro` is how many rows a process computes at once (None: all of its share on a GPU, 4,096
    tokens or one row on a CPU): the gradients of the rest are accumulated. `parallel` is how processes share
    parameters: "ddp", "fsdp", or "auto" (DDP). `threads`: for each process, on the CPU; `workers` more processes
    compose the next steps' data (0: it is composed when it is needed).

    A checkpoint is written every `save_minutes` and, if set, `save_steps`; the newest `keep` stay. Every
    `heldout_every` steps (0: never) recall is measured on `heldout_sequences` held-out sequences. `data` composes
    documents, `tasks` mixes generated tasks in, `positions` says where documents stand. `routing` is anticipatory
    routing, off by default (`RoutingConfig`).
    """

    out: str
    train: str
    tokenizer: str
    stages: tuple[StageConfig, ...]
    model: Mapping[str, Any] = field(default_factory=lambda: {"preset": "nano"})
    start: str = "structured"
    start_from: str | None = None
    keep_circuit: bool = False
    seed: int = 1
    tokens: int | None = None
    minutes: float | None = None
    threads: int = 1
    workers: int = 0
    precision: str = "auto"
    device: str = "auto"
    compile: bool = False
    micro: int | None = None
    parallel: str = "auto"
    save_minutes: float = 5.0
    save_steps: int | None = None
    log_every: int = 10
    keep: int = 2
    heldout: str | None = None
    heldout_every: int = 0
    heldout_sequences: int = 4
    data: Recipe = field(default_factory=Recipe)
    tasks: TaskMix = field(default_factory=TaskMix)
    positions: PositionConfig = field(default_factory=PositionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: Schedule = field(default_factory=Schedule)
    loss: LossConfig = field(default_factory=LossConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)

    def __post_init__(self) -> None:
        if self.tokenizer in SHIPPED:
            object.__setattr__(self, "tokenizer", str(model_folder(self.tokenizer) / "tokenizer.json"))
        if not self.stages:
            raise SettingsError("setting 'stages' is empty; give at least one stage")
        if self.tokens is None and self.minutes is None:
            raise SettingsError("give a budget: 'tokens', 'minutes' or both")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                choices = ", ".join(map(repr, allowed[:-1])) + f" or {allowed[-1]!r}"
                raise SettingsError(f"setting {name!r} is {value!r}; it must be {choices}")
        for name in ("tokens", "minutes"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise SettingsError(f"setting {name!r} is {value}; a budget must be more than 0 and finite")
        for name, least in _LEAST.items():
            _check_least(name, getattr(self, name), least)
        if self.keep_circuit and self.start != "structured":
            raise SettingsError("setting 'keep_circuit' needs 'start: structured': a random start has no circuit")
        for number, stage in enumerate(self.stages):
            _check_stage(number, stage)

    @classmethod
    def from_yaml(cls, path: Path | str, changes: Sequence[str] = ()) -> RunConfig:
        """From a YAML file, with `changes` like ``optim.muon_lr=1e-3`` (values in YAML; list items by number:
        ``stages.0.length=512``). Raises `SettingsError` naming the key that is wrong."""
        return read_settings(cls, path, changes)

    def model_config(self) -> ModelConfig:
        """The network's shape: the preset with the given fields changed. Raises `ConfigError`."""
        changes = dict(self.model)
        base = preset(changes.pop("preset", "nano"))
        ratios = changes.get("compress_ratios", [])
        if not isinstance(ratios, list | tuple):
            raise SettingsError(f"setting 'model.compress_ratios' is {ratios!r}; it must be a list, one for each layer")
        if "compress_ratios" in changes:
            changes["compress_ratios"] = tuple(ratios)
        unknown = changes.keys() - {f.name for f in dataclasses.fields(ModelConfig)}
        if unknown:
            raise SettingsError(f"setting 'model' has unknown field(s) {sorted(unknown)}")
        return base.replace(**changes)


def read_settings(kind: type[_T], path: Path | str, changes: Sequence[str] = ()) -> _T:
    """An instance of the dataclass `kind` from a YAML file, with changes as in `RunConfig.from_yaml`."""
    data = read_yaml(path)
    for change in changes:
        _change(data, change)
    result = _build(kind, data, "")
    assert isinstance(result, kind)
    return result


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `SettingsError`."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{path} must hold a mapping of settings")
    return data


_CHOICES = {
    "start": ("structured", "random"),
    "precision": ("auto", "fp32", "bf16"),
    "device": ("auto", "cpu", "cuda"),
    "parallel": ("auto", "ddp", "fsdp"),
}


_LEAST = {
    "seed": 0, "threads": 1, "workers": 0, "micro": 1, "save_minutes": 0, "save_steps": 1, "log_every": 1, "keep": 1,
    "heldout_every": 0, "heldout_sequences": 1,
}  # fmt: skip


def _check_least(name: str, value: float | None, least: int) -> None:
    if value is not None and not value >= least:
        raise SettingsError(f"setting {name!r} is {value}; it must be {least} or more")


def _check_stage(number: int, stage: StageConfig) -> None:
    if stage.length < 64 or stage.sequences < 1 or not (stage.share > 0 and math.isfinite(stage.share)):
        raise SettingsError(f"stage {number}: needs length >= 64, sequences >= 1 and share > 0")
    for name, least in (("lr", 0), ("recall_weight", 0), ("index_topk", 1), ("index_kl", 0), ("mtp", 0)):
        _check_least(f"stages.{number}.{name}", getattr(stage, name), least)
    if stage.train not in ("all", "indexer"):
        raise SettingsError(f"stage {number}: 'train' is {stage.train!r}; it must be 'all' or 'indexer'")
    if stage.documents is not None and not 64 <= stage.documents[0] <= stage.documents[1] <= stage.length:
        raise SettingsError(f"stage {number}: 'documents' must be [shortest, longest] between 64 and the length")


def _change(data: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    if not equals or not name:
        raise SettingsError(f"cannot change {change!r}; write NAME=VALUE")
    *path, last = name.split(".")
    place: Any = data
    try:
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = yaml.safe_load(text)
    except (ValueError, IndexError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot change {change!r}: {error}") from None


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
    unknown = sorted(value.keys() - fields.keys(), key=str)  # YAML has names that are numbers, or nothing
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
    if kind is int and isinstance(value, str | float) and not isinstance(value, bool):
        # YAML 1.1 reads "1e6" as text, and "1.0e+6" as a float.
        value = _whole_number(value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        # YAML 1.1 reads "4e-3" as text.
        try:
            return float(value)
        except ValueError:
            raise SettingsError(f"setting {where!r} is {value!r}; it must be a number") from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SettingsError(f"setting {where!r} is {value!r}; it must be of type {kind.__name__}")
    return value


def _whole_number(value: str | float) -> Any:
    """`value` as an int if it is a whole number, else as it is."""
    number = re.fullmatch(r"[+-]?[0-9.]+(?:e[+-]?[0-9]+)?", str(value).strip(), re.IGNORECASE)
    return int(float(value)) if number and float(value).is_integer() else value

"""A conversion from source to folder: read, fit, write, measure.

It can be interrupted anywhere, and the same call goes on. What was fitted lies in the folder
`WORK` inside the target until the end; a model stands in the target as soon as its config.json does, and
`REPORT` says how near it came.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from foveal.checkpoint import convert_weights, open_checkpoint, write_checkpoint
from foveal.config import ModelConfig, Numerics
from foveal.convert import material
from foveal.convert.build import converted_weights
from foveal.convert.errors import ConvertError
from foveal.convert.fitting import Moments, fit_moments
from foveal.convert.layout import RAW_WINDOW, Layout
from foveal.convert.learned import load_slots
from foveal.convert.llama import Llama
from foveal.convert.measure import Comparison, compare
from foveal.convert.packed import PackedLayout
from foveal.convert.rounding import rounded_fp8
from foveal.convert.source import Source
from foveal.convert.tokens import ConvertedText, converted_text
from foveal.formats import Weight
from foveal.formats.tensors import to_array

WORK = ".converting"
REPORT = "conversion.json"

Form = Literal["bf16", "fp8", "fp4"]
"""How matrices are stored: BF16, all in FP8, or FP8 with FP4 experts."""
FORMS: tuple[Form, ...] = ("bf16", "fp8", "fp4")
MEASURED = 4096
"""Tokens of the rows inside the window that are measured at most: long rows are few."""
_STORED: Mapping[Form, tuple[Any, Any]] = {"bf16": ("bf16", "bf16"), "fp8": ("fp8", "fp8"), "fp4": ("fp8", "fp4")}

Tell = Callable[[str, int, int], None]
"""Called with the stage in work, how much of it is done, and all of it."""


@dataclass(frozen=True)
class Settings:
    """What a conversion may be told.

    `window`: raw tokens seen. `text`: files and folders to fit to and measure on, none for what is at hand.
    `fit_tokens`: how many to fit to. `rows`: rows to measure on, 0 to measure nothing. `slots`: a file of what packed
    entries have learned (`foveal.convert.learned`); without one all layers are HCA.
    """

    window: int = RAW_WINDOW
    form: Form = "bf16"
    text: tuple[Path, ...] = ()
    fit_tokens: int = 16_384
    rows: int = 16
    slots: Path | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ConvertError(f"a form is {', '.join(FORMS)}, not {self.form!r}")
        if self.window < 1 or self.fit_tokens < 1 or self.rows < 0:
            raise ConvertError("window and tokens must be 1 or more, rows 0 or more")
        if self.slots is not None and self.window != RAW_WINDOW:
            raise ConvertError(f"packed entries were learned for a raw window of {RAW_WINDOW}, not {self.window}")

    def replace(self, **changes: Any) -> Settings:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Report:
    """What came out. `inside`: rows as long as the window and the first token, by form; "fp8" rounds what matrices
    multiply as well, as the official kernels do, "fp8 weights" does not. `beyond`: longer rows, in the form that was
    written."""

    source: str
    licence: str | None
    window: int
    form: Form
    inside: Mapping[str, Comparison]
    beyond: Comparison | None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def convert(source: Source, out: Path, settings: Settings | None = None, tell: Tell | None = None) -> Report:
    """Write the V4 model of `source` into folder `out`, and measure it.

    Raises `ConvertError` when `out` holds another model, or the source does not fit.
    """
    settings = settings or Settings()
    tell = tell or (lambda stage, done, total: None)
    target = _Target(source, settings)
    if settings.rows:
        material.documents(settings.text, held_out=True)  # raises where there is nothing to measure on
    identity = f"{source.identity} {dataclasses.asdict(settings)}"
    _claim(out, identity)
    tell("reading", 0, 1)
    network = Llama(source)
    rows = _fit_rows(target.text, settings)
    moments = fit_moments(network, rows, out / WORK, identity, lambda done, total: tell("fitting", done, total))
    if not (out / "config.json").exists():
        _write(target, moments, out, tell)
    report = _measured(target, network, moments, out, tell)
    (out / REPORT).write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(out / WORK)
    return report


class _Target:
    """What is to be written: its tokenizer, its shape, and its weights in any form."""

    def __init__(self, source: Source, settings: Settings) -> None:
        self.source, self.settings = source, settings
        self.text, self.layout = converted_text(source), Layout.of(source.shape)
        self.slots = None if settings.slots is None else load_slots(settings.slots, source.shape)

    def config(self, form: Form) -> ModelConfig:
        """The config with matrices stored in `form`."""
        linear, expert = _STORED[form]
        if self.slots is None:
            config = self.layout.config(self.settings.window, linear=linear, expert=expert)
        else:
            config = PackedLayout(self.layout).config(self.slots, linear=linear, expert=expert)
        return config.replace(bos_token_id=self.text.begin)

    def weights(self, moments: Moments, form: Form, tell: Tell | None = None) -> Iterator[tuple[str, Weight]]:
        """Every weight in the form that the config stores it in."""
        config, source = self.config(form), self.source

        def made() -> Iterator[tuple[str, Weight]]:
            for name, weight in converted_weights(source, moments.attention, self.layout, config, self.slots):
                if tell is not None and name.endswith(".attn_norm.weight"):
                    tell("writing", int(name.split(".")[1]), source.shape.layers)
                moment = _input_moment(name, source, moments, config)
                yield name, to_array(weight if moment is None else rounded_fp8(weight, moment))

        return convert_weights(made(), config)


def check_free(out: Path) -> None:
    """Raises `ConvertError` when a conversion can neither begin in `out` nor go on there."""
    if not (out / WORK / "of").is_file():
        _check_empty(out)


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(entry.name != WORK for entry in out.iterdir())):
        raise ConvertError(f"{out} is there already; name a folder that does not exist or is empty")


def _claim(out: Path, identity: str) -> None:
    """Make `out` ours, or see that it is: a conversion of the same source with the same settings was begun there."""
    name = out / WORK / "of"
    if name.is_file() and name.read_text(encoding="utf-8") == identity:
        return
    _check_empty(out)
    name.parent.mkdir(parents=True, exist_ok=True)
    name.write_text(identity, encoding="utf-8")


def _fit_rows(text: ConvertedText, settings: Settings) -> Tensor:
    length = 256
    documents = material.documents(settings.text, held_out=False)
    count = -(-settings.fit_tokens // length)
    return material.token_rows(documents, text.tokenizer, length, count, start=text.begin)


def _input_moment(name: str, source: Source, moments: Moments, config: ModelConfig) -> Tensor | None:
    """The moment of what a matrix in FP8 multiplies, where it is known."""
    if config.linear_dtype != "fp8" or not name.startswith("layers."):
        return None
    _, layer, rest = name.split(".", 2)
    if rest in ("attn.wq_b.weight", "attn.wkv.weight"):
        return moments.attention[int(layer)]
    shared = rest.startswith("ffn.shared_experts.")
    if rest.endswith((".w1.weight", ".w3.weight")) and (shared or config.expert_dtype == "fp8"):
        norm = source.tensor(f"{layer}.ffn_norm")
        return moments.feed_forward[int(layer)] * torch.outer(norm, norm)
    return None


def _write(target: _Target, moments: Moments, out: Path, tell: Tell) -> None:
    for file in (*out.glob("*.safetensors*"), *out.glob(".writing-*")):
        file.unlink()  # of an attempt that was interrupted: without config.json it is no model
    (out / "tokenizer.json").write_text(target.text.tokenizer_json, encoding="utf-8")
    (out / "tokenizer_config.json").write_text(target.text.tokenizer_config, encoding="utf-8")
    form = target.settings.form
    write_checkpoint(out, target.config(form), target.weights(moments, form, tell))


def _measured(target: _Target, network: Llama, moments: Moments, out: Path, tell: Tell) -> Report:
    """What was written, as it lies in the files; and, if that is not BF16, the same in BF16."""
    settings, text, source = target.settings, target.text, target.source
    inside: dict[str, Comparison] = {}
    beyond = None
    if settings.rows:
        held_out = material.documents(settings.text, held_out=True)
        length = min(settings.window + 1, 1024)
        count = max(1, min(settings.rows, MEASURED // length))
        rows = material.token_rows(held_out, text.tokenizer, length, count, start=text.begin)
        written = open_checkpoint(out)
        own = settings.form
        if own != "bf16":
            weights = dict(target.weights(moments, "bf16"))
            inside["bf16"] = compare(network, target.config("bf16"), weights, rows, progress=_showing(tell, "bf16"))
            inside[f"{own} weights"] = compare(
                network, written.config, written.weights, rows, numerics=Numerics(activations=False),
                progress=_showing(tell, f"{own} weights"),
            )  # fmt: skip
        inside[own] = compare(network, written.config, written.weights, rows, progress=_showing(tell, own))
        if settings.window <= RAW_WINDOW:  # else nothing is seen there
            longer = material.token_rows(held_out, text.tokenizer, 4 * length, 3, start=text.begin)
            beyond = compare(network, written.config, written.weights, longer, progress=_showing(tell, "long rows"))
    return Report(source.name, source.licence, settings.window, settings.form, inside, beyond)


def _showing(tell: Tell, what: str) -> Callable[[int, int], None]:
    return lambda done, total: tell(f"measuring {what}", done, total)

"""From a distillation's settings to a student and its rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from foveal.convert import Llama, Source, open_source
from foveal.convert.fitting import fit_moments
from foveal.convert.layout import Layout
from foveal.convert.learned import load_slots
from foveal.convert.material import documents, token_rows
from foveal.convert.packaged import shipped_slots
from foveal.convert.packed import PackedLayout, Slots
from foveal.convert.tokens import ConvertedText, converted_text
from foveal.process.streams import told
from foveal.text.specials import EOS
from foveal.train.device import product_dtype
from foveal.train.distill.constants import fit_constants
from foveal.train.distill.finding import find_heads
from foveal.train.distill.rows import Marks, RowMaker
from foveal.train.distill.settings import DistillConfig
from foveal.train.distill.student import Student
from foveal.train.settings import SettingsError

SNAPSHOT = "slots.safetensors"
"""In the folder of a run."""
_FIT_ROWS, _FIT_LENGTH, _FIND_LENGTH = 64, 256, 1024
_OPENS = "<|im_start|>"
"""What opens a turn in ChatML, where the source knows it."""


@dataclass(frozen=True)
class Opened:
    """A source that teaches, and what is fitted to it. `heads`: those that look things up. `identity` tells the
    source's weights from others."""

    source: Source
    text: ConvertedText
    texts: list[str]
    student: Student
    heads: Mapping[int, tuple[int, ...]]
    identity: str = ""

    def maker(self, length: int, seed: int) -> RowMaker:
        """Rows of at most `length` tokens."""
        return _maker(self.source, self.text, self.texts, length, seed)


def opened(config: DistillConfig, out: Path) -> Opened:
    """The source of `config` and a student as it begins; what was fitted lies in `out`."""
    chosen = config.device
    if chosen == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(chosen)
    source = open_source(config.source, out, told)
    PackedLayout(Layout.of(source.shape))  # raises what makes packed entries impossible
    _check_heads(config, source)
    text = converted_text(source)
    texts = documents([Path(path) for path in config.text], held_out=False)
    rows = token_rows(texts, text.tokenizer, _FIT_LENGTH, _FIT_ROWS, start=text.begin)
    identity = _fingerprint(source)
    of = hashlib.sha256(f"{identity} {rows.tolist()}".encode()).hexdigest()
    moments = fit_moments(Llama(source), rows, out, of)
    network = Llama(source, _dtype(config, device), device)
    beginnings = [text.begin, *text.tokenizer.encode(_OPENS, special=True)[:1]]
    constants = fit_constants(network, rows[:: _FIT_ROWS // 16], beginnings)
    start = _start(config, source)
    heads = (
        config.retrieving
        or {layer: slots.heads for layer, slots in start.items()}
        or _recorded_heads(out)
        or find_heads(network, _maker(source, text, texts, _FIND_LENGTH, config.seed), config.find, config.find_most)
    )
    for layer, slots in start.items():
        constants[layer] = slots.constant
    student = Student(network, moments, constants, heads)
    student.take(start)
    return Opened(source, text, texts, student, heads, identity)


def _start(config: DistillConfig, source: Source) -> dict[int, Slots]:
    """What the run begins with; nothing where slots are derived from the source. Raises `ConvertError` for a file that
    is none or of another shape, `SettingsError` where it has heads that the settings leave out."""
    if config.start_from is None:
        return {}
    start = load_slots(shipped_slots(config.start_from) or Path(config.start_from), source.shape)
    found = {layer: slots.heads for layer, slots in start.items()}
    named = config.retrieving
    if named and not all({*heads} <= {*named.get(layer, ())} for layer, heads in found.items()):
        raise SettingsError(
            f"settings 'heads' leaves out some that 'start_from' has: in {config.start_from} they are {found}"
        )
    return start


def _recorded_heads(out: Path) -> dict[int, tuple[int, ...]]:
    """Those of the run that goes on in `out`; none where none does."""
    try:
        with safe_open(out / SNAPSHOT, framework="pt") as file:
            heads = json.loads((file.metadata() or {})["record"])["heads"]
        return {int(layer): tuple(of) for layer, of in heads.items()}
    except (OSError, SafetensorError, KeyError, ValueError):
        return {}  # what is wrong with it is told by whoever goes on from it


def _maker(source: Source, text: ConvertedText, texts: list[str], length: int, seed: int) -> RowMaker:
    longest = min(length, source.shape.context)
    return RowMaker(text.tokenizer, texts, text.begin, Marks(_OPENS, EOS), length=longest, seed=seed)


def _fingerprint(source: Source) -> str:
    """Of the weights, wherever they lie: a run goes on with a copy of its source."""
    return hashlib.sha256(source.tensor(f"{source.shape.layers - 1}.down").numpy().tobytes()).hexdigest()[:16]


def _dtype(config: DistillConfig, device: torch.device) -> torch.dtype:
    if config.precision == "auto":
        return product_dtype(device)
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def _check_heads(config: DistillConfig, source: Source) -> None:
    shape = source.shape
    for layer, heads in config.retrieving.items():
        if layer >= shape.layers or not all(0 <= head < shape.heads for head in heads):
            raise SettingsError(
                f"setting 'heads' names layer {layer} and heads {list(heads)}; the source has {shape.layers} layers of "
                f"{shape.heads} heads"
            )

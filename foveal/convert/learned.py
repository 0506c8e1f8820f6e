"""The file of what packed entries have learned: eight bits a number, with a scale for every 64.

`foveal convert` reads it beside the source that it was learned from. Ordinary safetensors; the metadata names the
source.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveal.convert import fade
from foveal.convert.errors import ConvertError
from foveal.convert.packed import Slots
from foveal.convert.source import LlamaShape

_GROUP = 64
_LARGEST = 127
_EXACT = ("sink", "constant")
"""Parts that are few numbers; they stay fp32."""
_FORMAT = "1"


def save_slots(path: Path, slots: Mapping[int, Slots], shape: LlamaShape, about: str) -> None:
    """Write `slots` of the layers into `path`, whole or not at all. `about`: what they were learned from, in words."""
    tensors: dict[str, Tensor] = {}
    for layer, one in slots.items():
        for name, tensor in _parts(one).items():
            if name in _EXACT:
                tensors[f"{layer}.{name}"] = tensor.contiguous()
            else:
                codes, scales = _rounded(tensor)
                tensors[f"{layer}.{name}"], tensors[f"{layer}.{name}.scales"] = codes, scales
    heads = {str(layer): list(one.heads) for layer, one in slots.items()}
    metadata = {"format": _FORMAT, "heads": json.dumps(heads), "shape": _shape(shape), "about": about}
    metadata["fade"] = str(fade.VERSION)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    writing = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, writing, metadata=metadata)
        writing.chmod(0o600)
        os.replace(writing, path)
    finally:
        writing.unlink(missing_ok=True)


def load_slots(path: Path, shape: LlamaShape) -> dict[int, Slots]:
    """The slots in `path`. Raises `ConvertError` when it is no such file, or for a source of another shape."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            heads = json.loads(about["heads"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConvertError(f"{path} is no file of packed entries: {error}") from error
    if about.get("format") != _FORMAT:
        raise ConvertError(f"{path} has format {about.get('format')}, and this version reads {_FORMAT}")
    if about.get("shape", "unknown") != _shape(shape):
        raise ConvertError(
            f"{path} was learned from {about.get('about')}, a model of another shape: {about.get('shape')}"
        )
    if about.get("fade") != str(fade.VERSION):
        raise ConvertError(f"{path} was learned with an earlier fade; teach again with this version, or use that one")
    names = [field.name for field in dataclasses.fields(Slots) if field.name != "heads"]
    try:
        return {
            int(layer): Slots(tuple(of), **{name: _part(tensors, f"{layer}.{name}") for name in names})
            for layer, of in heads.items()
        }
    except KeyError as error:
        raise ConvertError(f"{path} lacks {error}") from error


def _parts(slots: Slots) -> dict[str, Tensor]:
    return {f.name: getattr(slots, f.name) for f in dataclasses.fields(slots) if f.name != "heads"}


def _part(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    scales = tensors.get(f"{name}.scales")
    if scales is None:
        return tensors[name]
    codes = tensors[name]
    values = _groups(codes.float()) * scales.float()[:, None]
    return values.flatten()[: codes.numel()].view(codes.shape)


def _groups(tensor: Tensor) -> Tensor:
    return F.pad(tensor.flatten(), (0, -tensor.numel() % _GROUP)).unflatten(0, (-1, _GROUP))


def _rounded(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of the tensor's shape, and the scales of their groups, fp16."""
    groups = _groups(tensor)
    scales = (groups.abs().amax(1) / _LARGEST).clamp_min(2.0**-24).half()
    codes = (groups / scales.float()[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return codes.flatten()[: tensor.numel()].view(tensor.shape), scales


def _shape(shape: LlamaShape) -> str:
    return f"{shape.layers} layers of {shape.hidden_size}, {shape.heads} heads in {shape.groups} of {shape.head_dim}"

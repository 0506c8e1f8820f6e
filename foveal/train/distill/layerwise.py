"""The first stage: every layer by itself.

A layer's slots get the input that the source has there, and shall put out what the source's heads find beyond the raw
window. Only the source's forward pass is needed, so a step costs a fifth of one from end to end.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.convert.layout import RAW_WINDOW
from foveal.convert.llama import Part, turned
from foveal.train.distill.rows import Row
from foveal.train.distill.student import Layer, Seen, Student, padded

_NEVER = -1e9
_OTHERS = 0.3
"""Places beside those that are taught, in parts of them: where nothing is to be found, little may be put out."""


def layer_errors(student: Student, row: Row, weight: float) -> Tensor:
    """The mean over layers of |found - wanted|^2 / |wanted|^2 at the row's places. Its gradients, times `weight`, are
    added up on the way, so that one layer's tensors are held at a time."""
    layers = student.packed_layers()
    device = student.fade.device
    tokens = padded(row.tokens).to(device)
    asking = _asking(row, RAW_WINDOW).to(device)
    seen = Seen(len(tokens), student.fade)
    errors = []

    def hook(part: Part, index: int, x: Tensor) -> None:
        if part == "attention" and index in layers:
            with torch.enable_grad():
                error = _error(student, layers[index], x, asking, seen)
                (weight * error / len(layers)).backward()
            errors.append(error.detach())

    student.source.hidden(tokens[None], hook)
    return torch.stack(errors).mean()


def _asking(row: Row, first: int) -> Tensor:
    draw = random.Random(len(row.tokens))
    places = [place for place in row.places.tolist() if place > first] or [len(row.tokens) - 1]
    others = range(min(first + 1, len(row.tokens) - 1), len(row.tokens))
    some = draw.sample(others, min(len(others), 8 + int(_OTHERS * len(places))))
    return torch.tensor(sorted({*places, *some}))


def _error(student: Student, layer: Layer, x: Tensor, asking: Tensor, seen: Seen) -> Tensor:
    assert layer.slots is not None
    constant = x @ layer.constant
    wanted, total = _beyond(student, layer, x[0], constant[0], asking, seen)
    found = layer.slots(x, total[None], constant, seen, asking)[0].float()
    return (found - wanted).square().sum(-1).mean() / wanted.square().sum(-1).mean()


@torch.no_grad()
def _beyond(
    student: Student, layer: Layer, x: Tensor, constant: Tensor, asking: Tensor, seen: Seen
) -> tuple[Tensor, Tensor]:
    """What the retrieval heads put out of all tokens less what they put out of the raw window and the first token
    [A, d], and the logarithms of their denominators over the latter [m, A]."""
    s, own, source = layer.shape, layer.own, student.source
    c, heads = s.head_dim, layer.retrieving
    rows = torch.cat([torch.arange(c * h, c * (h + 1)) for h in heads]).to(x.device)
    group = torch.tensor([h // s.heads_per_group for h in heads], device=x.device)
    frequencies = source.frequencies.to(x.device)
    query = F.linear(x[asking].to(source.dtype), own.q[rows]).float().unflatten(-1, (len(heads), c)).transpose(0, 1)
    key = F.linear(x.to(source.dtype), own.k).float().unflatten(-1, (s.groups, c)).transpose(0, 1)[group]
    value = F.linear(x.to(source.dtype), own.v).float().unflatten(-1, (s.groups, c)).transpose(0, 1)[group]
    query = turned(query, seen.angles[asking] * frequencies)
    key = turned(key, seen.angles * frequencies)
    logits = query @ key.transpose(1, 2) * c**-0.5  # [m, A, T]
    distance = asking[:, None] - torch.arange(len(x), device=x.device)
    logits = logits.masked_fill(distance < 0, _NEVER)
    near = logits.masked_fill(distance >= RAW_WINDOW, _NEVER)
    first = logits[..., 0] + constant[asking] * constant[0] * seen.fade[asking, 0]
    near[..., 0] = torch.where(distance[:, 0] >= RAW_WINDOW, first, near[..., 0])
    far = (logits.softmax(-1) - near.softmax(-1)) @ value
    return F.linear(far.transpose(0, 1).flatten(1).to(source.dtype), own.o[:, rows]).float(), near.logsumexp(-1)

"""The reference backend, one token at a time.

Matrix products of different heights round differently in their last bit, and a simulated FP8 or FP4 rounding turns a
last bit into a visible step. Here no operation ever sees more than one token, nor an entry its token does not look at:
what a token gives is the same to the bit however the text is cut, unless the network itself makes a difference.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveal.ops import AttendInput, Mass, Operations, RouteInput, reference

_PER_TOKEN: dict[str, tuple[int, ...]] = {
    "linear": (0,),
    "rms_norm": (0,),
    "rotate": (0, 1),
    "hyper_pre": (0,),
    "hyper_post": (0, 1, 2, 3),
    "hyper_head": (0,),
    "query": (0, 3),
    "quantize_kv": (0,),
    "quantize_index": (0,),
    "grouped_output": (0,),
    "experts": (0, 1, 2),
}
"""Which positional arguments have a row for each token."""


def _each(name: str) -> Any:
    function, per_token = getattr(reference, name), _PER_TOKEN[name]

    def apply(*args: Any, **options: Any) -> Any:
        if len(args[0]) == 0:
            return function(*args, **options)
        results = [
            function(*(arg[i : i + 1] if place in per_token else arg for place, arg in enumerate(args)), **options)
            for i in range(len(args[0]))
        ]
        if isinstance(results[0], tuple):
            return tuple(map(torch.cat, zip(*results, strict=True)))
        return torch.cat(results)

    return apply


def _route(y: Tensor, x: RouteInput) -> tuple[Tensor, ...]:
    rows = [reference.route(y[i : i + 1], dataclasses.replace(x, tokens=x.tokens[i : i + 1])) for i in range(len(y))]
    return tuple(map(torch.cat, zip(*rows, strict=True)))


def _index_topk(query: Tensor, weights: Tensor, keys: Tensor, visible: Tensor, k: int) -> Tensor:
    width = min(k, len(keys))
    rows = []
    for i, count in enumerate(visible.tolist()):
        one = slice(i, i + 1)
        chosen = reference.index_topk(query[one], weights[one], keys[:count], visible[one], k)
        rows.append(pad(chosen, (0, width - chosen.shape[1]), value=-1))
    return torch.cat(rows)


def _attend(x: AttendInput, *, trace: int = 0) -> tuple[Tensor, Mass | None]:
    assert not trace, "for comparing outputs only"
    past, outs = len(x.window) - len(x.query), []
    for i, position in enumerate(x.positions.tolist()):
        entries = x.entries[: (position + 1) // x.ratio] if x.ratio else x.entries
        if x.indices is not None:
            entries = x.entries[x.indices[i][x.indices[i] >= 0]]
        one = dataclasses.replace(
            x,
            query=x.query[i : i + 1],
            positions=x.positions[i : i + 1],
            window=x.window[max(0, past + i + 1 - x.window_size) : past + i + 1],
            entries=entries,
            indices=None,
        )
        outs.append(reference.attend(one)[0])
    return torch.cat(outs), None


ROW_BY_ROW = cast(
    Operations,
    SimpleNamespace(
        **{name: _each(name) for name in _PER_TOKEN},
        route=_route,
        index_topk=_index_topk,
        index_scores=reference.index_scores,
        attend=_attend,
        compress=reference.compress,
    ),
)

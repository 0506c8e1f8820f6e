"""Hidden states that are not finite: noticed in a few rows of every pass, and then traced to where they begin.

A NaN in a layer's window or entries reaches every later token that attends to it, so the last row of a window of tokens
tells of the whole. To look at all rows would cost what a layer's norm costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.cache.contract import rows_looked_at
from foveal.errors import NotFiniteError
from foveal.model.state import PlainState, Segment

if TYPE_CHECKING:
    from foveal.model.transformer import Transformer

_TRACED = 512


def bad_segment(streams: Tensor, counts: Sequence[int]) -> int | None:
    """The first segment whose streams [n, S, d] hold NaN or an infinity in the rows that are looked at, or None.

    `counts`: tokens of each segment.
    """
    return next(
        (number for number, rows in rows_looked_at(counts) if not bool(streams[rows].detach().isfinite().all())), None
    )


def require_finite(model: Transformer, tokens: Tensor, counts: Sequence[int], streams: Tensor) -> None:
    """Raises `NotFiniteError` when the streams that `model` made of `tokens` are not finite numbers."""
    place = bad_segment(streams, counts)
    if place is None:
        return
    start = sum(counts[:place])
    where = _first_place(model, tokens[start : start + counts[place]])
    raise NotFiniteError(where)


class _FoundError(Exception):
    pass


def _first_place(model: Transformer, tokens: Tensor) -> str:
    """Where the last of `tokens` alone, without a past, go wrong first."""
    tokens = tokens[-_TRACED:]
    state, positions = PlainState(model.config), torch.arange(len(tokens))
    hooks = []
    for number, layer in enumerate(model.layers):
        for name, said in (("attn", "attention"), ("ffn", "experts")):
            part = getattr(layer, name)
            hooks.append(part.register_forward_hook(_looking(f"the {said} of layer {number}")))
    try:
        with torch.no_grad():
            streams = model.embedded(tokens).unsqueeze(1).repeat(1, model.config.hc_mult, 1)
            if not bool(streams.isfinite().all()):
                return "the embedding"
            model.through(streams, tokens, positions, [Segment(state, len(tokens))], None)
    except _FoundError as found:
        return str(found)
    finally:
        for hook in hooks:
            hook.remove()
    return "some layer"


def _looking(where: str) -> Callable[[nn.Module, object, object], None]:
    def look(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and not bool(output.isfinite().all()):
            raise _FoundError(where)

    return look

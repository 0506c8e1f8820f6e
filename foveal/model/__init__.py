"""The DeepSeek-V4 network, written once, calling only `foveal.ops`."""

from foveal.errors import NotFiniteError, need_torch

need_torch("the network on tensors (foveal.ops, foveal.model)")

from foveal.model.state import PlainState, Segment, SequenceState  # noqa: E402
from foveal.model.trace import LayerTrace, Observer  # noqa: E402
from foveal.model.transformer import Transformer  # noqa: E402
from foveal.model.weights import load_parameters, load_transformer, named_weights  # noqa: E402

__all__ = [
    "LayerTrace",
    "NotFiniteError",
    "Observer",
    "PlainState",
    "Segment",
    "SequenceState",
    "Transformer",
    "load_parameters",
    "load_transformer",
    "named_weights",
]

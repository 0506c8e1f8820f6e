"""The DeepSeek-V4 network, written once, calling only `foveal.ops`."""

from foveal.model.attention import Segment
from foveal.model.finite import NotFiniteError
from foveal.model.state import PlainState, SequenceState
from foveal.model.trace import LayerTrace, Observer
from foveal.model.transformer import Transformer
from foveal.model.weights import load_parameters, load_transformer, named_weights

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

"""Run the network over many sequences: requests, scheduler, sampling, and the loop that joins them."""

from typing import TYPE_CHECKING

from foveal import lazily

if TYPE_CHECKING:
    from foveal.engine.engine import BatchEngine as BatchEngine
    from foveal.engine.fingerprint import Fingerprint as Fingerprint
    from foveal.engine.request import GREEDY as GREEDY
    from foveal.engine.request import ContextLengthError as ContextLengthError
    from foveal.engine.request import Event as Event
    from foveal.engine.request import FinishReason as FinishReason
    from foveal.engine.request import Network as Network
    from foveal.engine.request import ParameterError as ParameterError
    from foveal.engine.request import Request as Request
    from foveal.engine.request import Sampled as Sampled
    from foveal.engine.request import SamplingParams as SamplingParams
    from foveal.engine.request import TextStream as TextStream
    from foveal.engine.request import TokenConstraint as TokenConstraint
    from foveal.engine.sampler import BadLogitsError as BadLogitsError
    from foveal.engine.sampler import sample as sample
    from foveal.engine.scheduler import PREFILL_CHUNK as PREFILL_CHUNK
    from foveal.engine.scheduler import Scheduler as Scheduler
    from foveal.engine.scheduler import next_cut as next_cut

_HOMES = {
    "BatchEngine": "foveal.engine.engine",
    "Fingerprint": "foveal.engine.fingerprint",
    "GREEDY": "foveal.engine.request",
    "ContextLengthError": "foveal.engine.request",
    "Event": "foveal.engine.request",
    "FinishReason": "foveal.engine.request",
    "Network": "foveal.engine.request",
    "ParameterError": "foveal.engine.request",
    "Request": "foveal.engine.request",
    "Sampled": "foveal.engine.request",
    "SamplingParams": "foveal.engine.request",
    "TextStream": "foveal.engine.request",
    "TokenConstraint": "foveal.engine.request",
    "BadLogitsError": "foveal.engine.sampler",
    "sample": "foveal.engine.sampler",
    "PREFILL_CHUNK": "foveal.engine.scheduler",
    "Scheduler": "foveal.engine.scheduler",
    "next_cut": "foveal.engine.scheduler",
}

__all__ = [*_HOMES]
__getattr__ = lazily(__name__, _HOMES)

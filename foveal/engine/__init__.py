"""Run the network over many sequences: requests, scheduler, sampling, and the loop that joins them."""

from foveal.engine.engine import BatchEngine
from foveal.engine.fingerprint import Fingerprint
from foveal.engine.request import (
    GREEDY,
    Event,
    FinishReason,
    Network,
    ParameterError,
    Request,
    Sampled,
    SamplingParams,
    TextStream,
    TokenConstraint,
)
from foveal.engine.sampler import BadLogitsError, sample
from foveal.engine.scheduler import PREFILL_CHUNK, Scheduler, next_cut

__all__ = [
    "GREEDY",
    "PREFILL_CHUNK",
    "BadLogitsError",
    "BatchEngine",
    "Event",
    "Fingerprint",
    "FinishReason",
    "Network",
    "ParameterError",
    "Request",
    "Sampled",
    "SamplingParams",
    "Scheduler",
    "TextStream",
    "TokenConstraint",
    "next_cut",
    "sample",
]

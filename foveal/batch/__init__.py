"""Run the network over many sequences: requests, scheduler, sampling, and the loop that joins them."""

from typing import TYPE_CHECKING

from foveal import lazily

if TYPE_CHECKING:
    from foveal.batch.batch import BatchEngine as BatchEngine
    from foveal.batch.batch import SequenceBusy as SequenceBusy
    from foveal.batch.costs import Costs as Costs
    from foveal.batch.generation import Generation as Generation
    from foveal.batch.job import Job as Job
    from foveal.batch.loop import EngineClosed as EngineClosed
    from foveal.batch.loop import Loop as Loop
    from foveal.batch.request import GREEDY as GREEDY
    from foveal.batch.request import Event as Event
    from foveal.batch.request import FinishReason as FinishReason
    from foveal.batch.request import Kind as Kind
    from foveal.batch.request import Network as Network
    from foveal.batch.request import Priority as Priority
    from foveal.batch.request import Request as Request
    from foveal.batch.request import Sampled as Sampled
    from foveal.batch.request import SamplingParams as SamplingParams
    from foveal.batch.request import TextStream as TextStream
    from foveal.batch.request import TokenConstraint as TokenConstraint
    from foveal.batch.sampler import sample as sample
    from foveal.batch.scheduler import PREFILL_CHUNK as PREFILL_CHUNK
    from foveal.batch.scheduler import Scheduler as Scheduler
    from foveal.batch.scheduler import next_cut as next_cut
    from foveal.errors import BadLogitsError as BadLogitsError
    from foveal.errors import ContextLengthError as ContextLengthError
    from foveal.errors import ParameterError as ParameterError

_HOMES = {
    "SequenceBusy": "foveal.batch.batch",
    "Priority": "foveal.batch.request",
    "Loop": "foveal.batch.loop",
    "Kind": "foveal.batch.request",
    "Job": "foveal.batch.job",
    "Generation": "foveal.batch.generation",
    "EngineClosed": "foveal.batch.loop",
    "Costs": "foveal.batch.costs",
    "BatchEngine": "foveal.batch.batch",
    "GREEDY": "foveal.batch.request",
    "ContextLengthError": "foveal.errors",
    "Event": "foveal.batch.request",
    "FinishReason": "foveal.batch.request",
    "Network": "foveal.batch.request",
    "ParameterError": "foveal.errors",
    "Request": "foveal.batch.request",
    "Sampled": "foveal.batch.request",
    "SamplingParams": "foveal.batch.request",
    "TextStream": "foveal.batch.request",
    "TokenConstraint": "foveal.batch.request",
    "BadLogitsError": "foveal.errors",
    "sample": "foveal.batch.sampler",
    "PREFILL_CHUNK": "foveal.batch.scheduler",
    "Scheduler": "foveal.batch.scheduler",
    "next_cut": "foveal.batch.scheduler",
}

__all__ = [*_HOMES]
__getattr__ = lazily(__name__, _HOMES)

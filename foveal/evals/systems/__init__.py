"""Who is asked: a memory, a full context, an OpenAI-compatible endpoint, or a plain search of the text."""

from foveal.evals.systems.endpoint import EndpointSystem
from foveal.evals.systems.memory import MemorySystem
from foveal.evals.systems.search import SearchSystem
from foveal.evals.systems.system import Reader, System

__all__ = ["EndpointSystem", "MemorySystem", "Reader", "SearchSystem", "System"]

"""Who is asked: a memory, a full context, an OpenAI-compatible endpoint, or a plain search of the text; and for
questions in words, a chat model with what was found in a memory."""

from foveal.evals.systems.asking import AskingSystem, EntriesSystem, ShownSystem
from foveal.evals.systems.endpoint import EndpointSystem
from foveal.evals.systems.memory import MemorySystem
from foveal.evals.systems.search import SearchSystem
from foveal.evals.systems.system import Reader, System
from foveal.evals.systems.teacher import TeacherSystem

__all__ = [
    "AskingSystem",
    "EndpointSystem",
    "EntriesSystem",
    "MemorySystem",
    "Reader",
    "SearchSystem",
    "ShownSystem",
    "System",
    "TeacherSystem",
]

"""All tasks, by name."""

from __future__ import annotations

from foveal.evals.errors import EvalError
from foveal.evals.task import Task
from foveal.evals.tasks.asked import IN_WORDS
from foveal.evals.tasks.citations import Citations
from foveal.evals.tasks.definitions import DescribedFunction, Lookup
from foveal.evals.tasks.frequency import CommonWords, FrequentWords
from foveal.evals.tasks.indexer import IndexerRecall
from foveal.evals.tasks.mrcr import MRCR
from foveal.evals.tasks.needles import NEEDLES
from foveal.evals.tasks.perplexity import Perplexity
from foveal.evals.tasks.recall import Recall
from foveal.evals.tasks.topk import TopkSensitivity
from foveal.evals.tasks.tracking import VariableTracking

_RULER: tuple[Task, ...] = (*NEEDLES, VariableTracking(), CommonWords(), FrequentWords())
_ALL: tuple[Task, ...] = (
    Recall(),
    Citations(),
    Lookup(),
    DescribedFunction(),
    *_RULER,
    *MRCR,
    Perplexity(),
    IndexerRecall(),
    TopkSensitivity(),
)
TASKS: dict[str, Task] = {task.name: task for task in (*_ALL, *IN_WORDS)}
GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(task.name for task in _ALL),
    "asked": tuple(task.name for task in IN_WORDS),
    "mrcr": tuple(task.name for task in MRCR),
    "ruler": tuple(task.name for task in _RULER),
}


def chosen(text: str) -> tuple[Task, ...]:
    """The tasks of ``recall,single_1``, or of a group, each once. Raises `EvalError` for an unknown name."""
    names = [name for part in text.split(",") for name in GROUPS.get(part.strip(), (part.strip(),))]
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise EvalError(f"no task {unknown[0]!r}; there are {', '.join(TASKS)}, and {', '.join(GROUPS)} for several")
    return tuple(TASKS[name] for name in dict.fromkeys(names))

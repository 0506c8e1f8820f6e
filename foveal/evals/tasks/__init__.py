"""All tasks, by name."""

from __future__ import annotations

from foveal.evals.errors import EvalError
from foveal.evals.task import Task
from foveal.evals.tasks.indexer import IndexerRecall
from foveal.evals.tasks.needles import NEEDLES
from foveal.evals.tasks.recall import Recall

_ALL: tuple[Task, ...] = (
    Recall(),
    IndexerRecall(),
    *NEEDLES,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(TASKS),
    "ruler": tuple(task.name for task in NEEDLES),
}


def chosen(text: str) -> tuple[Task, ...]:
    """The tasks of ``recall,single_1``, or of a group, each once. Raises `EvalError` for an unknown name."""
    names = [name for part in text.split(",") for name in GROUPS.get(part.strip(), (part.strip(),))]
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise EvalError(f"no task {unknown[0]!r}; there are {', '.join(TASKS)}, and {' and '.join(GROUPS)} for several")
    return tuple(TASKS[name] for name in dict.fromkeys(names))

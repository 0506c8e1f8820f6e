"""One run of `foveal eval`, put together: material, systems, results, runner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

from foveal.checkpoint import open_checkpoint
from foveal.config import CSA_RATIO
from foveal.engine import model_folder
from foveal.evals import report
from foveal.evals.bench import Bench
from foveal.evals.errors import EvalError
from foveal.evals.material import Material, standard_library
from foveal.evals.results import Results
from foveal.evals.runner import Experiment, Runner, Told
from foveal.evals.systems import (
    AskingSystem,
    EndpointSystem,
    EntriesSystem,
    MemorySystem,
    SearchSystem,
    ShownSystem,
    System,
    TeacherSystem,
)
from foveal.evals.task import Form, Measuring, Task
from foveal.evals.tasks import chosen
from foveal.evals.tasks.asked import InWords
from foveal.memory import Progress
from foveal.memory.asking.answering import DEFAULT_ZOOM
from foveal.memory.asking.chat_model import ChatModel, default_chat_model, looks_back
from foveal.text import Tokenizer

FORMS = ("auto", "completion", "chat")


@dataclass(frozen=True)
class EvalConfig:
    """What one run of `foveal eval` measures, and where.

    `tasks`: names with commas between them. `lengths`: tokens of the texts, ascending. `samples`: questions for each
    task and length, over `contexts` texts (None: as `Experiment` says). `source`: the folder that texts are made of
    (None: Python's standard library). `form`: one of `FORMS`. `out`: the folder for results and memories (None: they
    are not kept). `full_up_to`: the longest text that is also read with attention to all of it (0: none).
    For tasks in words: `with_` is the model that answers (None: the one that `foveal ask` would take), `zoom` the
    places that it is shown, `teacher` what it was converted from (None: not asked), `systems` those to ask, with commas
    between them (None: all there are).
    `endpoint` and `endpoint_model` (both or neither): the server that is asked in place of `model`; `endpoint_key` is
    its key. Raises `EvalError`.
    """

    tasks: str
    lengths: tuple[int, ...]
    samples: int = 20
    contexts: int | None = None
    seed: int = 0
    form: str = "auto"
    model: str = "nano"
    source: Path | None = None
    out: Path | None = None
    threads: int | None = None
    full_up_to: int = 0
    endpoint: str | None = None
    endpoint_model: str | None = None
    endpoint_key: str | None = None
    with_: str | None = None
    teacher: str | None = None
    zoom: int = DEFAULT_ZOOM
    systems: str | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise EvalError(f"no form {self.form!r}; there are {', '.join(FORMS)}")
        if (self.endpoint is None) != (self.endpoint_model is None):
            raise EvalError("an endpoint needs --endpoint URL and --endpoint-model NAME, both")

    def experiment(self) -> Experiment:
        """What the runner is to carry out. Raises `EvalError` when there is no such task, or a number is too small."""
        tasks = chosen(self.tasks)
        words = in_words(tasks)
        auto: Form = "chat" if self.endpoint is not None or words else "completion"
        form: Form = auto if self.form == "auto" else self.form  # type: ignore[assignment]
        if words and form != "chat":
            raise EvalError(f"{self.tasks}: questions in words have the chat form only")
        return Experiment(tasks, self.lengths, self.samples, self.seed, form, self.contexts)


def _check_lengths(config: EvalConfig) -> None:
    """Raises `EvalError` for texts that the model has no room for: shorter ones would be told as that long."""
    if config.endpoint is not None:
        return
    context, longest = open_checkpoint(model_folder(config.model)).config.max_position_embeddings, max(config.lengths)
    if longest > context:
        raise EvalError(f"texts of {longest:,} tokens were asked for; the context of {config.model} has {context:,}")


class Session:
    """Opens everything that a run needs; a context manager that closes it."""

    def __init__(
        self,
        config: EvalConfig,
        *,
        progress: Callable[[Told], None] = lambda _: None,
        on_reading: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        """Raises `EvalError` for what cannot be measured, and what opening the model and the source raises."""
        self.config = config
        self.bench: Bench | None = None
        self._chat: ChatModel | None = None
        experiment = config.experiment()
        self._stack = ExitStack()
        try:
            _check_lengths(config)
            # Nothing is written before all that is to be read is there.
            material = Material.read(config.source, Tokenizer.from_file(model_folder(config.model)))
            self.folder = config.out or self._temporary()
            if in_words(experiment.tasks) and config.endpoint is None:
                systems = self._in_words(on_reading)
            else:
                systems = _named([*self._asked(experiment, on_reading), SearchSystem()], config.systems)
            results = self._stack.enter_context(Results(config.out))
            self.runner = Runner(experiment, material, systems, self.bench, results, progress=progress)
        except BaseException:
            self._stack.close()
            raise

    def _temporary(self) -> Path:
        """A folder that is deleted with the session."""
        return Path(self._stack.enter_context(TemporaryDirectory(prefix="foveal-eval-")))

    def _asked(self, experiment: Experiment, on_reading: Callable[[Progress], None]) -> list[System]:
        """The endpoint, or the model's memory (with attention to all of a text too, if that was asked for)."""
        config = self.config
        if config.endpoint is not None and config.endpoint_model is not None:
            if all(isinstance(task, Measuring) for task in experiment.tasks):
                raise EvalError(f"{config.tasks} looks inside the running network, which an endpoint does not show")
            key, seed = config.endpoint_key, config.seed
            return [EndpointSystem(config.endpoint, config.endpoint_model, experiment.form, seed=seed, key=key)]
        bench = Bench(config.model, self.folder / "store", threads=config.threads, on_reading=on_reading)
        self.bench = self._stack.enter_context(bench)
        systems: list[System] = [MemorySystem(bench, experiment.form)]
        if config.full_up_to:
            entries, up_to = -(-max(experiment.lengths) // CSA_RATIO), config.full_up_to
            systems.append(MemorySystem(bench, experiment.form, name="full_context", topk=entries, up_to=up_to))
        return systems

    def _in_words(self, on_reading: Callable[[Progress], None]) -> list[System]:
        """Those that answer in words: what was found in the memory, and what stands beside it."""
        config = self.config
        name = config.with_ or default_chat_model(config.model)
        chat = ChatModel.open(name, threads=config.threads)
        self._stack.callback(chat.engine.close)
        self._chat = chat
        store = self.folder / "store"
        bench = Bench(config.model, store, threads=config.threads, on_reading=on_reading)
        self.bench = self._stack.enter_context(bench)
        systems: list[System] = [
            AskingSystem(bench, chat, "zoom", zoom=config.zoom),
            AskingSystem(bench, chat, "search", zoom=1, attention=False),
            ShownSystem(chat, "window"),
            ShownSystem(chat, "ceiling"),
        ]
        if looks_back(chat.engine.config):
            own = Bench(name, store, threads=config.threads, on_reading=on_reading)
            systems.append(EntriesSystem(self._stack.enter_context(own)))
        if config.teacher is not None:
            there = [*(system.name for system in systems), TeacherSystem.name]
            if TeacherSystem.name in _check_names(there, config.systems):  # it is fetched only if it is asked
                systems.append(TeacherSystem(chat, config.teacher))
        return _named(systems, config.systems)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def document(self) -> dict[str, Any]:
        """What `foveal eval --json` prints, of what was measured so far (docs/evals.md)."""
        experiment, bench = self.runner.experiment, self.bench
        read, seconds = (bench.tokens_read, bench.seconds_read) if bench is not None else (0, 0.0)
        about = {
            "model": self._model(),
            **({} if self._chat is None else self._answering(self._chat)),
            "form": experiment.form,
            "seed": experiment.seed,
            "samples": experiment.samples,
            "source": {"path": str(self.config.source or standard_library()), "sha256": self.runner.material.digest},
            "read": {
                "tokens": read,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(read / seconds, 1) if seconds else None,
            },
        }
        return report.document(self.runner, about)

    def _answering(self, chat: ChatModel) -> dict[str, Any]:
        """What words the answers."""
        engine, config = chat.engine, self.config
        answering = {"name": engine.name, "fingerprint": engine.fingerprint.digest}
        return {"with": answering, "zoom": config.zoom, "teacher": config.teacher}

    def _model(self) -> dict[str, Any]:
        if self.bench is None:
            return {"name": self.config.endpoint_model, "endpoint": self.config.endpoint}
        engine = self.bench.engine
        topk = engine.config.index_topk
        return {"name": engine.name, "index_topk": topk, "fingerprint": engine.fingerprint.digest}


def in_words(tasks: Sequence[Task]) -> bool:
    """Whether the tasks are questions in words. Raises `EvalError` when only some are."""
    words = [isinstance(task, InWords) for task in tasks]
    if any(words) and not all(words):
        raise EvalError("story, facts and turns are put to other systems than the other tasks; run them by themselves")
    return all(words)


def _named(systems: list[System], names: str | None) -> list[System]:
    """Those of `systems` that `names` lists. Raises `EvalError` for one that is not there."""
    if names is None:
        return systems
    there = {system.name: system for system in systems}
    return [there[name] for name in _check_names(list(there), names)]


def _check_names(there: Sequence[str], names: str | None) -> list[str]:
    """The names that `names` lists, each once; all for None. Raises `EvalError` for one that is not there."""
    wanted = list(there) if names is None else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in there:
            raise EvalError(f"no system {name!r} here; there are {', '.join(there)}")
    return list(dict.fromkeys(wanted))

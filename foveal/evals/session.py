"""One run of `foveal eval`, put together: material, systems, results, runner."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from foveal.api import model_folder
from foveal.config import CSA_RATIO
from foveal.evals import report
from foveal.evals.bench import Bench
from foveal.evals.errors import EvalError
from foveal.evals.material import Material, standard_library
from foveal.evals.results import Results
from foveal.evals.runner import Plan, Runner, Told
from foveal.evals.systems import EndpointSystem, MemorySystem, SearchSystem, System
from foveal.evals.task import Form, Measuring
from foveal.evals.tasks import chosen
from foveal.memory import Progress
from foveal.text import Tokenizer

FORMS = ("auto", "completion", "chat")


class Session:
    """Opens everything that a run needs; a context manager that closes it."""

    def __init__(
        self,
        tasks: str,
        lengths: tuple[int, ...],
        *,
        samples: int,
        seed: int,
        folder: Path,
        keep: bool,
        model: str = "nano",
        source: Path | None = None,
        form: str = "auto",
        contexts: int | None = None,
        threads: int | None = None,
        full_up_to: int = 0,
        endpoint: str | None = None,
        endpoint_model: str | None = None,
        endpoint_key: str | None = None,
        progress: Callable[[Told], None] = lambda _: None,
        on_reading: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        """`folder`: where results (when they are to be kept) and memories lie. Raises `EvalError` for what cannot be
        measured, and what opening the model and the source raises."""
        if form not in FORMS:
            raise EvalError(f"no form {form!r}; there are {', '.join(FORMS)}")
        wanted = chosen(tasks)
        auto: Form = "chat" if endpoint is not None else "completion"
        form_: Form = auto if form == "auto" else form  # type: ignore[assignment]
        if (endpoint is None) != (endpoint_model is None):
            raise EvalError("an endpoint needs --endpoint URL and --endpoint-model NAME, both")
        plan = Plan(wanted, lengths, samples, seed, form_, contexts)
        self._stack = ExitStack()
        self._endpoint = None if endpoint is None else {"name": endpoint_model, "endpoint": endpoint}
        self.bench: Bench | None = None
        try:
            tokenizer = Tokenizer.from_file(model_folder(model))
            # Nothing is written before all that is to be read is there.
            material = Material.read(source, tokenizer)
            systems: list[System] = []
            if endpoint is not None and endpoint_model is not None:
                systems.append(EndpointSystem(endpoint, endpoint_model, form_, seed=seed, key=endpoint_key))
                if all(isinstance(task, Measuring) for task in wanted):
                    raise EvalError(f"{tasks} looks inside the running network, which an endpoint does not show")
            else:
                self.bench = Bench(model, folder / "store", threads=threads, on_reading=on_reading)
                self._stack.enter_context(self.bench)
                systems.append(MemorySystem(self.bench, form_))
                if full_up_to:
                    entries = -(-max(lengths) // CSA_RATIO)
                    systems.append(MemorySystem(self.bench, form_, name="full_context", topk=entries, up_to=full_up_to))
            systems.append(SearchSystem())
            results = self._stack.enter_context(Results(folder if keep else None))
            self.runner = Runner(plan, material, systems, self.bench, results, progress=progress)
        except BaseException:
            self._stack.close()
            raise
        self._source = source or standard_library()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def document(self) -> dict[str, Any]:
        """What `foveal eval --json` prints, of what was measured so far (docs/evals.md)."""
        plan, bench = self.runner.plan, self.bench
        read, seconds = (bench.tokens_read, bench.seconds_read) if bench is not None else (0, 0.0)
        about = {
            "model": self._model(),
            "form": plan.form,
            "seed": plan.seed,
            "samples": plan.samples,
            "source": {"path": str(self._source), "sha256": self.runner.material.digest},
            "read": {
                "tokens": read,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(read / seconds, 1) if seconds else None,
            },
        }
        return report.document(self.runner, about)

    def _model(self) -> dict[str, Any]:
        if self.bench is None:
            return dict(self._endpoint or {})
        engine = self.bench.engine
        topk = engine.config.index_topk
        return {"name": engine.name, "index_topk": topk, "fingerprint": engine.fingerprint.digest}

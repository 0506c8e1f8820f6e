"""One run of `foveal eval`, put together: material, systems, results, runner."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from foveal.evals import report
from foveal.evals.bench import Bench
from foveal.evals.errors import EvalError
from foveal.evals.material import Material, standard_library
from foveal.evals.results import Results
from foveal.evals.runner import Plan, Runner, Told
from foveal.evals.systems import MemorySystem, SearchSystem, System
from foveal.evals.task import Form
from foveal.evals.tasks import chosen
from foveal.memory import Progress

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
        progress: Callable[[Told], None] = lambda _: None,
        on_reading: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        """`folder`: where results (when they are to be kept) and memories lie. Raises `EvalError` for what cannot be
        measured, and what opening the model and the source raises."""
        if form not in FORMS:
            raise EvalError(f"no form {form!r}; there are {', '.join(FORMS)}")
        wanted = chosen(tasks)
        form_: Form = "chat" if form == "chat" else "completion"
        plan = Plan(wanted, lengths, samples, seed, form_, contexts)
        self._stack = ExitStack()
        try:
            results = self._stack.enter_context(Results(folder if keep else None))
            self.bench = Bench(model, folder / "store", threads=threads, on_reading=on_reading)
            self._stack.enter_context(self.bench)
            material = Material.read(source, self.bench.engine.tokenizer)
            systems: list[System] = [MemorySystem(self.bench, form_), SearchSystem()]
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
        engine, plan = self.bench.engine, self.runner.plan
        read, seconds = self.bench.tokens_read, self.bench.seconds_read
        about = {
            "model": {
                "name": engine.name,
                "index_topk": engine.config.index_topk,
                "fingerprint": engine.fingerprint.digest,
            },
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

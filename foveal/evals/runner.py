"""The loop: texts are made, read once, and asked; every sample is kept as it comes.

Nothing is remembered but the results file. The runner walks the same texts each time and passes over what is there; a
text whose samples are all there is not even made.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from foveal.evals.bench import Bench
from foveal.evals.errors import EvalError
from foveal.evals.material import Material
from foveal.evals.results import Key, Results, Sample
from foveal.evals.systems import System
from foveal.evals.task import Answer, Asking, Context, Form, Measuring, Question, Task

VERSION = 1
"""Of all tasks together; one alone has `Task.version`."""
READ_AT_MOST = 131_072
"""Tokens to read for one task at one length, unless told how many texts to make; at least one text is made."""
_ROOM = 4096
"""Tokens of a model's context that the longest text leaves free: an eighth where the context is short."""
_KEPT = 400
"""Characters of a text that the results keep."""


@dataclass(frozen=True)
class Experiment:
    """What is to be measured. `contexts`: texts for each task and length (default: as many as `READ_AT_MOST` allows, at
    most one for each sample)."""

    tasks: tuple[Task, ...]
    lengths: tuple[int, ...]
    samples: int
    seed: int
    form: Form
    contexts: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 1 or (self.contexts is not None and self.contexts < 1):
            raise EvalError("there must be at least one sample and one text")
        if any(length < 1 for length in self.lengths):
            raise EvalError("a text must have at least one token; give --length a number like 4k")

    def form_of(self, task: Task) -> Form:
        """The form its questions have: measurements always take the cues of the completion form."""
        return "completion" if isinstance(task, Measuring) else self.form

    def questions(self, length: int) -> list[int]:
        """How many questions each text of `length` gets: as many as the others, the last perhaps fewer."""
        texts = min(self.samples, self.contexts or max(1, READ_AT_MOST // length))
        each = -(-self.samples // texts)
        full, rest = divmod(self.samples, each)
        return [each] * full + ([rest] if rest else [])


@dataclass(frozen=True)
class Job:
    """One text of one task, to be put to the systems."""

    task: Task
    length: int
    number: int
    questions: int
    each: int
    """Questions that a whole text of this length gets: part of what its samples depend on."""


@dataclass(frozen=True)
class Problem:
    """One text that could not be made, or measured. `message` says why."""

    task: str
    length: int
    context: int
    message: str


@dataclass(frozen=True)
class Told:
    """How far a run is: what is done now, samples that are there, samples there will be, seconds left if known."""

    doing: str
    done: int
    total: int
    seconds_left: float | None


OnProgress = Callable[[Told], None]


class Runner:
    """Carries an experiment out. `bench` is None when an endpoint is asked; measurements inside the network need it."""

    def __init__(
        self,
        experiment: Experiment,
        material: Material,
        systems: Sequence[System],
        bench: Bench | None,
        results: Results,
        *,
        progress: OnProgress = lambda _: None,
    ) -> None:
        self.experiment, self.material, self.systems, self.bench, self.results = (
            experiment,
            material,
            systems,
            bench,
            results,
        )
        self._progress = progress
        self._left = _Left()
        self._doing = ""
        self.problems: list[Problem] = []
        """What this run could not do."""

    def jobs(self) -> Iterator[Job]:
        """Everything there is to do, shorter texts first."""
        for length in self.experiment.lengths:
            counts = self.experiment.questions(length)
            for task in self.experiment.tasks:
                if isinstance(task, Measuring) and self.bench is None:
                    continue
                for number, questions in enumerate(counts):
                    yield Job(task, length, number, questions, counts[0])

    def keys(self, job: Job) -> list[Key]:
        """One for each system that the job is put to."""
        if isinstance(job.task, Measuring):
            assert self.bench is not None
            return [self._key(job, "memory", self.bench.engine.fingerprint.digest)]
        return [self._key(job, system.name, system.identity) for system in self.systems_for(job)]

    def systems_for(self, job: Job) -> list[System]:
        """Those that take a text of this length."""
        return [system for system in self.systems if system.takes(job.length)]

    def _key(self, job: Job, system: str, identity: str) -> Key:
        experiment = self.experiment
        form = self.experiment.form_of(job.task)
        parts: list[object] = [VERSION, experiment.seed, form, self.material.digest, job.each, identity]
        # Only what differs from the ordinary is said, so that results of before are found again.
        if job.questions != job.each:
            parts.append({"questions": job.questions})
        if (version := job.task.version(form, job.length)) != 1:
            parts.append({"version": version})
        run = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return Key(run, job.task.name, job.length, system, job.number)

    def run(self) -> None:
        """Do what is not done yet. A text that cannot be made is one of `problems`, and the run goes on without it;
        what a system raises goes through after it became one, and so does Ctrl-C. What was done is kept."""
        todo = [(job, [key for key in self.keys(job) if not self.results.finished(key)]) for job in self.jobs()]
        self._left.plan([(job, len(keys)) for job, keys in todo])
        for job, keys in todo:
            if keys:
                self._run(job, keys)

    def _problem(self, job: Job, error: Exception) -> None:
        self.problems.append(Problem(job.task.name, job.length, job.number, str(error)))

    def _run(self, job: Job, keys: Sequence[Key]) -> None:
        self._say(job, "making the text")
        try:
            context = job.task.build(
                self.material,
                self._fitting(job.length),
                job.questions,
                job.task.dice(self.experiment.seed, job.length, job.number),
            )
        except EvalError as error:
            self._problem(job, error)
            self._left.skipped(job, len(keys))
            return
        for key in keys:
            began = time.monotonic()
            try:
                self._put(job, context, key)
            except Exception as error:
                self._problem(job, error)
                raise
            self.results.finish(key)
            self._left.passed(job, time.monotonic() - began)

    def _fitting(self, length: int) -> int:
        """`length`, or as much of it as leaves room in the model's context for a question and its answer."""
        if self.bench is None:
            return length
        context = self.bench.engine.batch.context_length
        return min(length, context - min(_ROOM, context // 8))

    def _put(self, job: Job, context: Context, key: Key) -> None:
        if isinstance(job.task, Measuring):
            self._measure(job, job.task, context, key)
        elif isinstance(job.task, Asking):
            system = next(system for system in self.systems if system.name == key.system)
            self._ask(job, job.task, context, key, system)

    def _measure(self, job: Job, task: Measuring, context: Context, key: Key) -> None:
        self._say(job, "measuring")
        for measured in task.measure(self.bench, context, job.length, job.number):
            if not self.results.has(key, measured.number):
                self.results.add(Sample(key, measured.number, measured.metrics, _shortened(measured.detail)))
            self._say(job, f"measured {measured.number + 1}")

    def _ask(self, job: Job, task: Asking, context: Context, key: Key, system: System) -> None:
        open_ones = [n for n in range(len(context.questions)) if not self.results.has(key, n)]
        if not open_ones:
            return
        self._say(job, f"{system.name}: reading")
        with system.reading(context.documents) as reader:
            for number in open_ones:
                self._say(job, f"{system.name}: asking {number + 1} of {len(context.questions)}")
                question, began = context.questions[number], time.monotonic()
                answers = reader.ask(question)
                detail = _detail(question, answers) | {"seconds": round(time.monotonic() - began, 4)}
                self.results.add(Sample(key, number, task.score(self.material, question, answers), detail))

    def _say(self, job: Job, doing: str) -> None:
        self._doing = f"{job.task.name} at {job.length:,}, text {job.number + 1}: {doing}"
        self.tell()

    def tell(self, more: str = "") -> None:
        """Report progress; `more` is said of what is being done."""
        doing = f"{self._doing} {more}".rstrip()
        self._progress(Told(doing, self._left.done, self._left.total, self._left.seconds()))


class _Left:
    """How long the rest will take: as long, by length of text and task, as what was done; else in proportion."""

    def __init__(self) -> None:
        self.done = self.total = 0
        self._tokens_left = self._tokens_done = 0
        self._seconds = 0.0

    def plan(self, todo: Sequence[tuple[Job, int]]) -> None:
        self.total = sum(count for _, count in todo)
        self._tokens_left = sum(job.length * count for job, count in todo)

    def passed(self, job: Job, seconds: float) -> None:
        self.done += 1
        self._tokens_left -= job.length
        self._tokens_done += job.length
        self._seconds += seconds

    def skipped(self, job: Job, count: int) -> None:
        self.done += count
        self._tokens_left -= count * job.length

    def seconds(self) -> float | None:
        return self._seconds / self._tokens_done * self._tokens_left if self._tokens_done else None


def _detail(question: Question, answers: Sequence[Answer]) -> dict[str, object]:
    cited = [str(answer.citations[0]) if answer.citations else "" for answer in answers]
    reasons = [answer.finish_reason for answer in answers]
    counted = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
    return {
        "place": round(question.place, 4),
        "cue": question.cues[0][:_KEPT],
        "answers": [text[:_KEPT] for text in question.answers[:8]],
        "got": [answer.text[:_KEPT] for answer in answers[:8]],
        "cited": cited[:8],
        **({"prompt_tokens": max(counted)} if counted else {}),
        **({"finish_reasons": reasons[:8]} if any(reasons) else {}),
    }


def _shortened(detail: object) -> dict[str, object]:
    assert isinstance(detail, dict)
    return {name: value[:_KEPT] if isinstance(value, str) else value for name, value in detail.items()}

"""Top-k sensitivity: the same recalls with other numbers of entries looked at, while reading and while asking."""

from __future__ import annotations

import random
from collections.abc import Iterator

from foveal.evals.bench import Bench
from foveal.evals.material import Material
from foveal.evals.systems.memory import MemoryReader
from foveal.evals.task import Context, Measured, Measuring, Metrics
from foveal.evals.tasks.recall import CODE, Recall, code_context

FACTORS = (0.0625, 0.25, 1.0, 4.0)
"""Of the model's own top-k."""


class TopkSensitivity(Measuring):
    """``token_accuracy_top_K`` for several K; each needs a reading of its own."""

    name = "topk"
    about = "recall with a quarter, a sixteenth and four times the entries"
    metric = "token_accuracy"
    family = CODE

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        """The text and the cues of `recall`."""
        self._material = material
        return code_context(material, length, count, rng)

    def measure(self, bench: Bench, context: Context, length: int, number: int) -> Iterator[Measured]:
        """``token_accuracy`` is that with the model's own K."""
        own, task = bench.engine.config.index_topk, Recall()
        metrics: list[Metrics] = [{} for _ in context.questions]
        for factor in FACTORS:
            topk = max(1, round(own * factor))
            with bench.memory(context.documents, bench.looking_at(topk)) as memory:
                reader = MemoryReader(memory, "completion")
                for place, question in enumerate(context.questions):
                    right = task.score(self._material, question, reader.ask(question))["token_accuracy"]
                    metrics[place][f"token_accuracy_top_{topk}"] = right
                    if topk == own:
                        metrics[place]["token_accuracy"] = right
        for place, question in enumerate(context.questions):
            yield Measured(place, metrics[place], {"cue": question.cues[0], "place": question.place})

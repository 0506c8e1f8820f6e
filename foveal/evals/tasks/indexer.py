"""Indexer recall: how much of the true attention the indexer's top-k holds.

Nothing is computed a second time. The network itself (`foveal.model.Transformer` on the native operations) runs over a
fork of the memory, and its operations are watched. Where a CSA layer attends to the entries its indexer chose, the same
`attend`, with the same query, entries and sink, is asked once more for *all* entries and traced: that is the true
attention. The share of its mass on entries that lies in the top-k is the recall. What the layer passes on is the
ordinary, sparse result. The text is that of `recall`; the network is given the cue and then the true continuation, and
the rows that choose the continuation's tokens count.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from foveal.errors import need_torch
from foveal.evals.bench import Bench
from foveal.evals.material import Material
from foveal.evals.scoring import tokens_after
from foveal.evals.task import Context, Measured, Measuring, Question
from foveal.evals.tasks.recall import ANSWER_TOKENS, CODE, code_context
from foveal.memory import Memory
from foveal.text import Tokenizer
from foveal.text.specials import PAD


class IndexerRecall(Measuring):
    """Shares of the attention mass on entries that lie inside the top-k."""

    name = "indexer"
    about = "share of the true attention mass that lies inside the indexer's top-k"
    metric = "mass_in_topk"
    family = CODE

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        """The text and the cues of `recall`."""
        return code_context(material, length, count, rng)

    def measure(self, bench: Bench, context: Context, length: int, number: int) -> Iterator[Measured]:
        """``mass_in_topk``: mean over the rows and CSA layers of the share; ``mass_in_topk_layer_N`` by layer;
        ``mass_in_topk_pooled``: all mass inside over all mass, so that rows count by how much they look at entries;
        ``mass_in_top_K``: the mean share for other sizes; ``entry_mass``: mass on entries, heads summed."""
        need_torch("looking inside the network (the task 'indexer')")
        from foveal.evals.watching import WatchedNetwork, metrics_of

        watched = WatchedNetwork(bench.model)
        with bench.memory(context.documents) as memory:
            for place, question in enumerate(context.questions):
                tokens, rows = teacher_forced(memory, question)
                seen = watched.run(memory, tokens, rows)
                yield Measured(
                    place, metrics_of(seen, watched.config), {"cue": question.cues[0], "place": question.place}
                )


def teacher_forced(memory: Memory, question: Question) -> tuple[list[int], int]:
    """Blanks, cue and true continuation as tokens, without the last one; and how many rows at its end choose a token of
    the continuation."""
    engine, tokenizer = memory.engine, memory.engine.tokenizer
    blanks = [tokenizer.control_id(PAD)] * engine.recall_blanks or tokenizer.encode("\n")
    answer = tokens_after(tokenizer, question.cues[0], question.expected, ANSWER_TOKENS)
    return [*blanks, *_before(tokenizer, question), *answer][:-1], len(answer)


def _before(tokenizer: Tokenizer, question: Question) -> list[int]:
    """The tokens of the cue as the source has them, up to the one in which its end lies."""
    cue, whole = question.cues[0], tokenizer.encode(question.cues[0] + question.expected)
    passed, size = 0, len(cue.encode("utf-8", "surrogatepass"))
    for place, token in enumerate(whole):
        passed += len(tokenizer.token_bytes(token))
        if passed > size:
            return whole[:place]
    return whole

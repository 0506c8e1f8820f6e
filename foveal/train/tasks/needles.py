"""Needles: planted sentences, and questions that take one, several or a chain of them to answer.

The forms follow RULER (Hsieh et al., 2024): single and multiple keys, values and queries, variable tracking; and MRCR
(OpenAI, 2025): the i-th of several identical asks. The words are our own, in several phrasings.
"""

from __future__ import annotations

import numpy as np

from foveal.train.tasks.draft import Draft, Piece, code

_FIRST = (
    "amber brisk calm deep early faint grand hollow icy jolly keen late mellow narrow odd pale quick rough silent tall "
    "urban vivid warm young zesty bitter clear dusty empty fresh"
).split()
_SECOND = (
    "anchor basin cabin delta ember falcon garden harbor island jacket kettle ladder meadow needle orchard pillar "
    "quarry river saddle temple umbrella valley window yard zephyr bridge candle dragon engine forest"
).split()
_SAYING = (
    ("The secret number of {} is", "What is the secret number of {}? It is"),
    ("# note: the code for {} is", "# which code is for {}? the code is"),
    ("Remember that {} belongs to", "To what does {} belong? It belongs to"),
    ("{} was set to", "To what was {} set? To"),
)
_TOPICS = "bread clouds engines foxes glass harbours insects jars kites lamps maps nets owls pumps queues ropes".split()
_SORTS = "letter list note poem recipe riddle story summary".split()
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def _key(rng: np.random.Generator) -> str:
    return f"{rng.choice(_FIRST)}-{rng.choice(_SECOND)}"


def _keys(rng: np.random.Generator, count: int) -> list[str]:
    """Different keys."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[_key(rng)] = None
    return list(found)


def _value(rng: np.random.Generator) -> str:
    """A number, a word pair or a hexadecimal name."""
    sort = rng.integers(3)
    if sort == 0:
        return str(rng.integers(10**5, 10**7))
    if sort == 1:
        return f"{rng.choice(_SECOND)}-{rng.choice(_FIRST)}-{rng.integers(10, 100)}"
    return bytes(rng.integers(0, 256, 6, dtype=np.uint8)).hex()


def _distractors(draft: Draft) -> int:
    """How many sentences of the same form to plant beside: many in long texts."""
    return int(draft.rng.integers(4, 5 + max(1, min(64, draft.length // 64))))


def key_value(draft: Draft) -> None:
    """One sentence, one question."""
    said, asked = draft.rng.choice(_SAYING)
    key, value = _key(draft.rng), _value(draft.rng)
    draft.plant("\n" + said.format(key), f" {value}", ".\n")
    _question(draft, asked.format(key), [value])


def multi_key(draft: Draft) -> None:
    """Many sentences of one form with different keys; one is asked for."""
    said, asked = draft.rng.choice(_SAYING)
    keys = _keys(draft.rng, 1 + _distractors(draft))
    values = [_value(draft.rng) for _ in keys]
    for key, value in zip(keys, values, strict=True):
        draft.plant("\n" + said.format(key), f" {value}", ".\n")
    chosen = int(draft.rng.integers(len(keys)))
    draft.shuffle()
    _question(draft, asked.format(keys[chosen]), [values[chosen]])


def multi_value(draft: Draft) -> None:
    """One key with several values, in several places; all are asked for, in the order of the text."""
    said, asked = draft.rng.choice(_SAYING)
    keys = _keys(draft.rng, 1 + _distractors(draft) // 2)
    values = [_value(draft.rng) for _ in range(int(draft.rng.integers(2, 5)))]
    spans = [(keys[0], value) for value in values]
    for key in keys[1:]:
        spans.insert(int(draft.rng.integers(len(spans) + 1)), (key, _value(draft.rng)))
    for key, value in spans:
        draft.plant("\n" + said.format(key), f" {value}", ".\n")
    _question(draft, f"{len(values)} times: " + asked.format(keys[0]), values)


def multi_query(draft: Draft) -> None:
    """Many keys; several are asked for, one after the other."""
    said, asked = draft.rng.choice(_SAYING)
    keys = _keys(draft.rng, 3 + _distractors(draft))
    values = [_value(draft.rng) for _ in keys]
    for key, value in zip(keys, values, strict=True):
        draft.plant("\n" + said.format(key), f" {value}", ".\n")
    draft.shuffle()
    for chosen in draft.rng.permutation(len(keys))[: int(draft.rng.integers(2, 5))]:
        _question(draft, asked.format(keys[chosen]), [values[chosen]])


def variable_tracking(draft: Draft) -> None:
    """Chains of assignments; all variables of one chain are asked for, in the order of the text."""
    rng = draft.rng
    chains = int(rng.integers(2, 4))
    hops = int(rng.integers(2, 5))
    names = [f"var_{name}" for name in _names(rng, chains * hops)]
    lines: list[list[tuple[str, str]]] = []
    for chain in range(chains):
        own = names[chain * hops : (chain + 1) * hops]
        before = [str(rng.integers(10**4, 10**5)), *own[:-1]]
        lines.append(list(zip(own, before, strict=True)))
    wanted = lines[0]
    order = rng.permutation(np.repeat(np.arange(chains), hops))
    left = [iter(chain) for chain in lines]
    for chain in order:
        name, value = next(left[chain])
        draft.plant("\n", name, " = ", value, "\n")
    draft.ask(f"\nWhich variables are assigned the value {wanted[0][1]}, directly or not? ")
    for number, (name, _) in enumerate(wanted):
        draft.answer(name)
        draft.ask(", " if number + 1 < len(wanted) else "\n")


def _names(rng: np.random.Generator, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choice(list("abcdefghjkmnpqrstuvwxyz"), 5))] = None
    return list(found)


def ith_ask(draft: Draft) -> None:
    """The same request several times with different replies, others between; one of the replies is asked for."""
    rng = draft.rng
    same = int(rng.integers(2, min(len(_ORDINALS), 2 + draft.length // 256) + 1))
    requests = [f"write a {s} about {t}" for s in _SORTS for t in _TOPICS]
    chosen, *others = (requests[i] for i in rng.permutation(len(requests))[: 1 + same])
    size = (8, max(9, min(48, draft.length // (6 * same))))
    replies = [code(draft.composer, rng, int(rng.integers(*size))) for _ in range(2 * same)]
    order = rng.permutation([0] * same + [1] * same)
    kept: list[list[int]] = []
    for number, other in enumerate(order):
        request = others[int(rng.integers(len(others)))] if other else chosen
        head, tail = draft.scribe.ids(f"\nuser: {request}\nreply: "), draft.scribe.ids("\n")
        draft.spans.append([*head, *replies[number], *tail])
        if not other:
            kept.append(replies[number])
    wanted = int(rng.integers(same))
    draft.ask(f"\nuser: repeat the {_ORDINALS[wanted]} reply to: {chosen}\nreply: ")
    draft.questions.append(Piece(kept[wanted], asked=True))


def _question(draft: Draft, words: str, values: list[str]) -> None:
    draft.ask("\n" + words)
    for number, value in enumerate(values):
        draft.answer(f" {value}")
        draft.ask("," if number + 1 < len(values) else ".\n")

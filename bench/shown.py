"""How often the search finds the passage that a question of `foveal eval story,facts,turns` asks for; runs no network.

    python bench/shown.py --length 16k,104k,500k --samples 203
    python bench/shown.py --length 500k --tasks story --samples 42 --with smollm2

The text is tokenised and mapped as in a memory, but not read: attention, which only breaks ties, is left out. With a
chat model the questions are answered too, from the same places; beside it, from the right passage.
"""

from __future__ import annotations

import argparse
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np

from foveal.engine import model_folder
from foveal.evals.material import Documents, Material
from foveal.evals.scoring import interval
from foveal.evals.systems.asking import ShownReader
from foveal.evals.task import Answer, Question
from foveal.evals.tasks import chosen
from foveal.evals.tasks.asked import InWords
from foveal.memory import ChatModel, Citation, Found
from foveal.memory.asking.answering import DEFAULT_ZOOM, PLACE_TOKENS
from foveal.memory.asking.places import Finder
from foveal.memory.asking.prompt import asked, begun
from foveal.process.text import parse_count
from foveal.sources import SourceMap, tokenize_document
from foveal.text import Tokenizer


def unread(documents: Documents, tokenizer: Tokenizer) -> Any:
    """What a `Finder` needs of a memory of these documents."""
    places, ids = SourceMap(), []
    for document in documents:
        made = tokenize_document(document, tokenizer)
        places.append(made)
        ids.append(made.ids)
    tokens = np.concatenate(ids)
    sequence = SimpleNamespace(tokens=tokens, token_range=lambda first, after: tokens[first:after])
    engine = SimpleNamespace(tokenizer=tokenizer)
    return SimpleNamespace(places=places, sequence=sequence, engine=engine, store=None)


def answered(chat: ChatModel, question: Question, places: list[Found]) -> str:
    """What the chat model says, shown `places`."""
    ids = chat.encoding.render(asked(question.ask, places)).ids
    stops = tuple(chat.encoding.stop_tokens)
    return begun(chat.engine.generate(ids, max_tokens=question.chat_budget, stop_tokens=stops).text)


def told(values: list[float]) -> str:
    """A mean with its interval."""
    low, high = interval(values)
    return f"{fmean(values):.3f} ({low:.3f}-{high:.3f}, n {len(values)})"


def measure(
    task: InWords, length: int, options: argparse.Namespace, material: Material, chat: ChatModel | None
) -> None:
    """One line of the table."""
    context = task.build(material, length, options.samples, task.dice(options.seed, length, 0))
    count = chat.count if chat is not None else lambda text: len(text) // 4
    shown: list[float] = []
    right: dict[str, list[float]] = {"zoom": [], "ceiling": []}
    with Finder(unread(context.documents, material.tokenizer)) as finder:
        for question in context.questions:
            places = finder.find(question.ask, options.zoom, PLACE_TOKENS, count, attention=False)
            cited = [Citation(place.path, place.first_line, place.last_line, 0.0) for place in places]
            shown.append(float(any(question.places[0].holds(one) for one in cited)))
            if chat is not None:
                said = Answer(answered(chat, question, places), chat=True)
                right["zoom"].append(task.score(material, question, [said])["accuracy"])
                right["ceiling"].append(
                    task.score(material, question, ShownReader(chat, None).ask(question))["accuracy"]
                )
                print(
                    f"  {len(shown)}: {', '.join(f'{name} {told(each)}' for name, each in right.items())}", flush=True
                )
    turns = context.questions[0].facts.get("turns")
    print(f"{task.name} at {length:,}{f', {turns:,} turns' if turns else ''}: shown {told(shown)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="story,facts,turns")
    parser.add_argument("--length", default="16k,104k,500k")
    parser.add_argument("--samples", type=int, default=203)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--zoom", type=int, default=DEFAULT_ZOOM)
    parser.add_argument("--with", dest="chat")
    options = parser.parse_args()
    material = Material.read(None, Tokenizer.from_file(model_folder("nano")))
    chat = None if options.chat is None else ChatModel.open(options.chat, threads=1)
    for length in options.length.split(","):
        for task in chosen(options.tasks):
            assert isinstance(task, InWords)
            measure(task, parse_count(length), options, material, chat)


if __name__ == "__main__":
    main()

"""What a converted model finds beyond its raw window, beside its source.

``python bench/beyond.py SOURCE [MODEL ...] [--run CONFIG]`` asks about passages that stand 250, 700 and 1,900 tokens
back, repeats text from 480 tokens back, asks for the values of lists, and reads ordinary text. It does so with the
source, with each MODEL (a folder that `foveal convert` wrote, on the native operations, with the run-time rounding of
its form), and with the student of a run of `foveal train`, as it stands and without its slots. It prints nats a token
at the places that count, and of how many answers every token of the value was the likeliest.

Passages, names and questions are of kinds that nothing was trained on; the true answers of earlier questions stand in
the chat. Rows are made from seeds; text is held out (`foveal.convert.material`).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.backends.reference import native_ops
from foveal.checkpoint import open_checkpoint
from foveal.convert import Llama, open_source
from foveal.convert.material import documents, token_rows
from foveal.convert.tokens import converted_text
from foveal.model import PlainState, Segment, load_transformer
from foveal.text.specials import EOS
from foveal.text.tokenizer import Tokenizer
from foveal.train.device import product_dtype
from foveal.train.distill.student import Student

Found = tuple[str, str, str]
"""A question, how its answer begins, and the value that is counted."""

SHIPS = "Halcyon Meridian Kestrel Aurora Pelican Tempest Gannet Sirocco".split()
HARBOURS = "Bremen Trieste Cadiz Bergen Marseille Riga Valencia Gdansk Odense Tallinn".split()
CARGO = "timber,barley,glass,marble,cotton,copper ore,olive oil,sugar,wool,roof tiles".split(",")
CAPTAINS = "Ortega Halvorsen Whitlock Moreau Petrov Sandberg Okafor Lambert".split()
METALS = "zinc tin nickel silver cobalt iron lead magnesium".split()
LIQUIDS = "vinegar,ethanol,sea water,ammonia,lemon juice,glycerine".split(",")
SHADES = "violet amber turquoise crimson ivory scarlet".split()
VILLAGES = "Ashcombe Fernhill Larkwood Thornby Wexham Brookfield Millstone Haverly".split()
CRAFTSMEN = "cooper,saddler,glassblower,beekeeper,weaver,candle maker,wheelwright,clockmaker".split(",")
TREES = "oak elm chestnut walnut cedar willow linden".split()
ROBOTS = "Tinker Bolt Quill Marble Socket Nimbus Widget Pixel".split()
ROOMS = "cellar,library,greenhouse,attic,workshop,pantry,observatory".split(",")
TOOLS = "telescope,lantern,violin,compass,sewing machine,microscope,typewriter".split(",")


def voyage(draw: random.Random) -> tuple[str, list[Found]]:
    """A ship's journey."""
    ship, captain = draw.choice(SHIPS), draw.choice(CAPTAINS)
    ports, loads = draw.sample(HARBOURS, 4), draw.sample(CARGO, 2)
    days, crew = draw.randrange(11, 60), draw.randrange(12, 48)
    text = (
        f"The {ship} left {ports[0]} on a cold morning with {loads[0]} in its hold. Captain {captain} had signed a "
        f"crew of {crew} men. Two weeks later a storm broke the main mast, and they had to call at {ports[1]} for "
        f"repairs. There the merchant refused to wait, so the captain sold everything and took on {loads[1]} instead. "
        f"After {days} days at sea the ship reached {ports[2]}. The owner, who lived in {ports[3]}, never forgave him."
    )
    return text, [
        ("From which harbour did the ship leave?", f"The {ship} left", ports[0]),
        ("Who was the captain?", "The captain was called", captain),
        ("What was in the hold at first?", "At first the hold was full of", loads[0]),
        ("How many men were in the crew?", "The crew had", str(crew)),
        ("Where was the ship repaired?", "The ship was repaired in", ports[1]),
        ("What did the captain take on instead?", "Instead he took on", loads[1]),
        ("How many days was the ship at sea?", "It was at sea for", str(days)),
        ("Where did the owner live?", "The owner lived in", ports[3]),
    ]


def laboratory(draw: random.Random) -> tuple[str, list[Found]]:
    """The notes of an experiment."""
    metal, other = draw.sample(METALS, 2)
    liquid, shade, second = draw.choice(LIQUIDS), *draw.sample(SHADES, 2)
    minutes, grams, degrees = draw.randrange(13, 58), draw.randrange(3, 95), draw.randrange(31, 97)
    text = (
        f"Experiment 7. We put {grams} grams of {metal} into a flask of {liquid} and heated it to {degrees} degrees. "
        f"For {minutes} minutes nothing happened. Then the liquid turned {shade}, and a thin layer formed at the "
        f"bottom. When the same was done with {other}, the colour was {second}. The assistant, Miss "
        f"{draw.choice(CAPTAINS)}, dropped the second flask, so its weight is not known."
    )
    return text, [
        ("How many grams were used?", "They used", str(grams)),
        ("Which metal was put into the flask first?", "The first metal was", metal),
        ("Which liquid was in the flask?", "The flask was full of", liquid),
        ("To how many degrees was it heated?", "It was heated to", str(degrees)),
        ("What colour did the liquid turn at first?", "The liquid turned", shade),
        ("Which metal was used the second time?", "The second metal was", other),
        ("For how many minutes did nothing happen?", "Nothing happened for", str(minutes)),
    ]


def village(draw: random.Random) -> tuple[str, list[Found]]:
    """The description of a place."""
    name, near = draw.sample(VILLAGES, 2)
    (craft, gone), tree = draw.sample(CRAFTSMEN, 2), draw.choice(TREES)
    people, year = draw.randrange(80, 950), draw.randrange(1702, 1899)
    text = (
        f"{name} is a small place of {people} people. Its church was finished in {year}, and beside it stands an old "
        f"{tree}, under which the market is held. Most families once lived from the work of one {craft}; the last "
        f"{gone} moved to {near} long ago. Visitors come for the cheese, which is sold at the mill on Thursdays only."
    )
    return text, [
        ("How many people live there?", "The number of people is", str(people)),
        ("When was the church finished?", "The church was finished in", str(year)),
        ("Which tree stands beside the church?", "Beside the church stands an old", tree),
        ("Whose work did most families live from?", "They lived from the work of one", craft),
        ("Where did the last of the others move to?", "They moved to", near),
        ("On which day is the cheese sold?", "The cheese is sold on", "Thursdays"),
    ]


def machine(draw: random.Random) -> tuple[str, list[Found]]:
    """A tale."""
    (robot, second), rooms, tool = draw.sample(ROBOTS, 2), draw.sample(ROOMS, 3), draw.choice(TOOLS)
    shade = draw.choice(SHADES)
    text = (
        f"In an empty house lived a little machine named {robot}. At night it slept in the {rooms[0]}, and by day it "
        f"polished a {tool} that nobody used any more. One evening a {shade} light came from the {rooms[1]}. It was "
        f"another machine, {second}, which had hidden there for years. Together they carried the {tool} to the "
        f"{rooms[2]} and waited for someone to come home."
    )
    return text, [
        ("What was the little machine called?", "It was called", robot),
        ("Where did it sleep at night?", "It slept in the", rooms[0]),
        ("What did it polish?", "It polished a", tool),
        ("What colour was the light?", "The light was", shade),
        ("Where did the light come from?", "The light came from the", rooms[1]),
        ("What was the other machine called?", "The other machine was called", second),
        ("Where did they carry it?", "They carried it to the", rooms[2]),
    ]


STYLES: Sequence[Callable[[random.Random], tuple[str, list[Found]]]] = (voyage, laboratory, village, machine)


@dataclass(frozen=True)
class Row:
    """Tokens [T]; the places whose next token counts, and the spans of places that make one value each."""

    kind: str
    tokens: Tensor
    places: Tensor
    values: tuple[tuple[int, int], ...]


class Maker:
    """Rows of every kind."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], begin: int) -> None:
        self.tokenizer, self.begin, self.texts = tokenizer, begin, texts
        self.stream = [token for text in texts for token in tokenizer.encode(text)]

    def some(self, draw: random.Random, count: int) -> list[int]:
        """Ordinary text."""
        start = draw.randrange(len(self.stream) - count)
        return self.stream[start : start + count]

    def stories(self, back: int, count: int) -> Iterator[Row]:
        """`count` rows; the passage ends `back` tokens before the first question."""
        for number in range(count):
            draw = random.Random(f"story {number}")
            text, questions = STYLES[number % len(STYLES)](draw)
            draw.shuffle(questions)
            filler = self.tokenizer.decode(self.some(draw, back)).strip() if back else ""
            turn = f"<|im_start|>user\nRead this.\n\n{text}\n\n{filler}\n\nNow back to the first text. "
            tokens: list[int] = []
            values = []
            for question, beginning, value in questions:
                turn += f"{question}{EOS}\n<|im_start|>assistant\n"
                tokens += self.tokenizer.encode(f"{turn}{beginning}", special=True)
                ids = self.tokenizer.encode(f" {value}")
                values.append((len(tokens) - 1, len(tokens) + len(ids) - 1))
                tokens += [*ids, *self.tokenizer.encode(f".{EOS}\n", special=True)]
                turn = "<|im_start|>user\n"
            yield _row(f"story {back}", tokens, values)

    def lists(self, count: int) -> Iterator[Row]:
        """Values asked in another order, 12 to 24 of them, some text between."""
        for number in range(count):
            draw = random.Random(f"list {number}")
            keys = [f"{draw.choice(SHIPS)} {n}" for n in draw.sample(range(10, 99), draw.randrange(12, 25))]
            pool = draw.choice(
                (HARBOURS, CAPTAINS, TREES + METALS, [str(n) for n in draw.sample(range(1000, 9999), 40)])
            )
            table = [draw.choice(pool) for _ in keys]
            lines = "\n".join(f"{key}: {value}" for key, value in zip(keys, table, strict=True))
            tokens = [self.begin, *self.tokenizer.encode(lines + "\n\n"), *self.some(draw, draw.randrange(150))]
            tokens += self.tokenizer.encode("\n\n")
            values = []
            for place in draw.sample(range(len(keys)), len(keys)):
                tokens += self.tokenizer.encode(f"{keys[place]}:")
                ids = self.tokenizer.encode(f" {table[place]}")
                values.append((len(tokens) - 1, len(tokens) + len(ids) - 1))
                tokens += [*ids, *self.tokenizer.encode("\n")]
            yield _row("lists", tokens, values)

    def copies(self, count: int) -> Iterator[Row]:
        """512 tokens, then 256 of them again, from 480 back."""
        for number in range(count):
            text = self.some(random.Random(f"copy {number}"), 511)
            tokens = [self.begin, *text, *text[31:287]]
            yield Row("copy 480", torch.tensor(tokens), torch.arange(514, len(tokens) - 1), ())

    def plain(self, count: int, length: int) -> Iterator[Row]:
        """The beginnings of documents."""
        for tokens in token_rows(self.texts, self.tokenizer, length, count, start=self.begin):
            for first, end in ((0, 128), (128, 256), (256, 512), (512, length)):
                yield Row(f"text {first}-{end - 1}", tokens, torch.arange(first, min(end, length - 1)), ())


def _row(kind: str, tokens: list[int], values: list[tuple[int, int]]) -> Row:
    places = [place for first, end in values for place in range(first, end)]
    return Row(kind, torch.tensor(tokens), torch.tensor(places), tuple(values))


Logits = Callable[[Tensor, Tensor], Tensor]
"""Tokens [T] and places [n] -> logits there [n, V]."""


def measured(logits: Logits, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Kind -> nats a token, values that were right, and all values."""
    sums: dict[str, list[float]] = {}
    for tokens, group in _by_tokens(rows):
        places = torch.cat([row.places for row in group]).unique()
        with torch.no_grad():
            found = logits(tokens, places)
        nats = torch.zeros(len(tokens))
        nats[places] = F.cross_entropy(found, tokens[places + 1], reduction="none")
        right = torch.zeros(len(tokens), dtype=torch.bool)
        right[places] = found.argmax(-1) == tokens[places + 1]
        for row in group:
            one = sums.setdefault(row.kind, [0.0, 0.0, 0.0, 0.0])
            one[0] += float(nats[row.places].sum())
            one[1] += len(row.places)
            one[2] += sum(bool(right[first:end].all()) for first, end in row.values)
            one[3] += len(row.values)
    return {kind: {"nats": a / b, "right": c, "of": d} for kind, (a, b, c, d) in sums.items()}


def _by_tokens(rows: Sequence[Row]) -> Iterator[tuple[Tensor, list[Row]]]:
    """Rows of the same tokens are read once."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(id(row.tokens), []).append(row)
    for group in groups.values():
        yield group[0].tokens, group


def source_logits(network: Llama) -> Logits:
    """Of the source."""
    return lambda tokens, places: F.linear(network.hidden(tokens[None])[0, places], network.head).float()


def model_logits(folder: Path) -> Logits:
    """Of a V4 folder, on the native operations."""
    checkpoint = open_checkpoint(folder)
    model = load_transformer(checkpoint.config, checkpoint.weights, dtype=torch.float32, ops=native_ops)

    def found(tokens: Tensor, places: Tensor) -> Tensor:
        with torch.inference_mode():
            streams = model(tokens, [Segment(PlainState(checkpoint.config), len(tokens))])
            return model.logits(streams[places])

    return found


def students(path: Path) -> dict[str, Logits]:
    """Of the student of a run, as its snapshot has it, and without slots."""
    from foveal.train.distill.opening import opened
    from foveal.train.distill.run import Distillation
    from foveal.train.distill.settings import DistillConfig

    config = DistillConfig.from_yaml(path)
    run = Distillation(config, opened(config, Path(config.out)))
    student = run.student.eval()

    def bare(tokens: Tensor, places: Tensor) -> Tensor:
        with without_slots(student):
            return student.logits(tokens, places)

    return {"without slots": bare, f"student at step {run.position.step}": student.logits}


@contextmanager
def without_slots(student: Student) -> Iterator[None]:
    """Within it the layers with packed entries see their raw window and the first token alone."""
    layers = list(student.packed_layers().values())
    slots = [layer.slots for layer in layers]
    for layer in layers:
        layer.slots = None
    try:
        yield
    finally:
        for layer, own in zip(layers, slots, strict=True):
            layer.slots = own


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--run", type=Path, help="the settings of a distillation")
    parser.add_argument("--rows", type=int, default=16, help="rows of each kind (16: about 110 questions a distance)")
    parser.add_argument("--kinds", default="story,lists,copy,text")
    parser.add_argument("--back", default="250,700,1900")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-source", action="store_true", help="leave out the source")
    parser.add_argument("--json", type=Path, help="file that results are added to")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as work:
        source = open_source(chosen.source, Path(work), lambda line: print(line, file=sys.stderr))
        text = converted_text(source)
        maker = Maker(text.tokenizer, documents([], held_out=True), text.begin)
        kinds = chosen.kinds.split(",")
        rows: list[Row] = []
        for back in map(int, chosen.back.split(",")):
            rows += maker.stories(back, chosen.rows) if "story" in kinds else ()
        rows += maker.lists(chosen.rows) if "lists" in kinds else ()
        rows += maker.copies(max(4, chosen.rows // 2)) if "copy" in kinds else ()
        rows += maker.plain(max(4, chosen.rows // 2), 1024) if "text" in kinds else ()
        network = Llama(source, product_dtype(torch.device("cpu")))
        networks = {"source": source_logits(network)} if not chosen.no_source else {}
        networks |= {str(folder): model_logits(folder) for folder in chosen.models}
        networks |= {} if chosen.run is None else students(chosen.run)
        for name, logits in networks.items():
            began = time.monotonic()
            found = measured(logits, rows)
            took = time.monotonic() - began
            for kind, one in found.items():
                right = f"  {one['right']:.0f} of {one['of']:.0f} right" if one["of"] else ""
                print(f"{name:30} {kind:14} {one['nats']:.3f} nats{right}", flush=True)
            print(f"{name:30} {took:.0f} s", flush=True)
            if chosen.json is not None:
                with chosen.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"name": name, "seconds": took, "found": found}) + "\n")


if __name__ == "__main__":
    main()

"""Made-up people, and what is told and asked of them: passages of plain prose whose facts nobody can know.

A fact has several ways to be told and several to be asked, so that no wording decides; every question names its person
in full, since a text may hold many; and for each fact there are other values of its kind in the same passage or text,
so that a wrong one is seen to be wrong.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FIRST = (
    "Marta Anton Ilse Duarte Ingrid Tomas Noor Rafael Sunniva Milan Agnes Oskar Leila Bruno Freya Casper Petra Hugo "
    "Saskia Emre Linnea Viktor Paloma Anders Yara Felix Greta Matteo Signe Kofi Astrid Luca Hanna Idris Beatrix Jasper "
    "Nadia Otto Renata Sven Talia Wim Alma Boris Clara Dmitri Elsa Georg Helga Ivo"
).split()
LAST = (
    "Lindqvist Okafor Marchetti Halloran Baptiste Kowalski Ferreira Nakamura Oyelaran Steiner Vasquez Whitlock Yamada "
    "Zielinski Ashdown Bergstrom Carvalho Delacroix Eriksen Fontaine Gallagher Hoffmann Iversen "
    "Jankovic Kirwan Laurent Moreau Novotny Osterman Petrov Quigley Rasmussen Santoro Thornbury Ulvang Verhoeven "
    "Wexler Albescu Brannigan Corvino"
).split()
TOWNS = (
    "Bergen Porto Ghent Turin Malmo Krakow Galway Trieste Bremen Lyon Utrecht Graz Aarhus Cork Bologna Seville Tampere "
    "Leipzig Brno Lucca Nantes Tromso Riga Split"
).split()
WORK = (
    "clockmaker,beekeeper,lighthouse keeper,violin teacher,bridge engineer,baker,glassblower,river pilot,bookbinder,"
    "tram driver,veterinarian,cartographer,carpenter,pharmacist,stonemason,translator,gardener,locksmith"
).split(",")
INSTRUMENTS = "cello,accordion,harp,clarinet,banjo,trumpet,oboe,mandolin,bassoon,viola,tuba,flute".split(",")
DISHES = (
    "mushroom risotto,pumpkin soup,smoked trout,lamb stew,potato dumplings,fennel salad,spinach pie,cherry strudel,"
    "pickled herring,walnut bread,tomato tart,barley porridge"
).split(",")
COLOURS = "turquoise,crimson,silver,mustard yellow,dark green,violet,ivory,orange,navy blue,copper".split(",")
VEHICLES = "bicycle,van,rowing boat,motorcycle,sailing boat,scooter".split(",")
PETS = "parrot,greyhound,tortoise,ferret,donkey,goose,hedgehog,goat".split(",")
PET_NAMES = "Biscuit,Admiral,Pickles,Thunder,Nutmeg,Captain,Domino,Pepper,Sultan,Mochi,Bandit,Clover".split(",")
FEARS = "thunder,deep water,spiders,heights,crowded trains,bees,the dark,elevators".split(",")
COLLECTS = (
    "old maps,door keys,postcards,sea shells,tin soldiers,teapots,stamps,pocket watches,marbles,bus tickets".split(",")
)
BOOKS = (
    "The Salt Road,A House of Wind,Nine Winters,The Quiet Harbour,Letters to a River,The Copper Moon,Low Tide".split(
        ","
    )
)


@dataclass(frozen=True)
class Fact:
    """Something told of a person. `tell`: sentences with {name} (first or full), {They}, {their} and {value};
    `ask`: questions with {name}; `values`: what it may be."""

    kind: str
    values: Sequence[str]
    tell: Sequence[str]
    ask: Sequence[str]


def _years(first: int, last: int) -> Sequence[str]:
    return [str(year) for year in range(first, last)]


FACTS = (
    Fact(
        "town", TOWNS,
        ("{name} grew up in {value}, in a flat above a bank.", "As a child {name} lived in {value}.",
         "{name} was raised in {value} by two aunts."),
        ("Where did {name} grow up?", "In which town did {name} live as a child?", "Which town was {name} raised in?"),
    ),
    Fact(
        "work", WORK,
        ("For a living {they} works as a {value}.", "{They} earns {their} money as a {value}.",
         "{name} has been a {value} for eleven years."),
        ("What does {name} do for a living?", "What is the profession of {name}?", "As what does {name} work?"),
    ),
    Fact(
        "instrument", INSTRUMENTS,
        ("On Sundays {they} plays the {value}.", "{They} learned to play the {value} at school and never stopped.",
         "Neighbours often hear {name} practise the {value}."),
        ("Which instrument does {name} play?", "What musical instrument is {name} known to play?"),
    ),
    Fact(
        "dish", DISHES,
        ("{Their} favourite dish is {value}.", "Nothing tastes better to {name} than {value}.",
         "Every birthday {they} asks for {value}."),
        ("What is the favourite dish of {name}?", "Which dish does {name} like best?"),
    ),
    Fact(
        "colour", COLOURS,
        ("{They} drives a {value} van.", "The van that {name} bought is {value}.", "{Their} van is painted {value}."),
        ("What colour is the van of {name}?", "Which colour does {name}'s van have?"),
    ),
    Fact(
        "pet", PETS,
        ("At home {they} keeps a {value}.", "{Their} only company is a {value}.", "{name} owns a {value}."),
        ("What animal does {name} keep?", "Which pet does {name} have?"),
    ),
    Fact(
        "fear", FEARS,
        ("{They} is afraid of {value}.", "The one thing that frightens {name} is {value}.",
         "Since childhood {they} has feared {value}."),
        ("What is {name} afraid of?", "What does {name} fear?"),
    ),
    Fact(
        "collects", COLLECTS,
        ("{They} collects {value}.", "A whole shelf is filled with {value} that {name} has collected.",
         "{Their} collection of {value} is known in the street."),
        ("What does {name} collect?", "Which things are in the collection of {name}?"),
    ),
    Fact(
        "year", _years(1962, 2019),
        ("{They} married in {value}.", "The wedding of {name} was in {value}.", "{name} got married in {value}."),
        ("In which year did {name} marry?", "When was the wedding of {name}?"),
    ),
    Fact(
        "trip", TOWNS,
        ("Last summer {they} travelled to {value}.", "{Their} last holiday was a week in {value}.",
         "In August {name} went to {value} by train."),
        ("Where did {name} go on the last holiday?", "To which town did {name} travel last summer?"),
    ),
    Fact(
        "book", BOOKS,
        ("{They} once wrote a novel called {value}.", "{name} is the author of the novel {value}.",
         "{Their} novel, {value}, sold four hundred copies."),
        ("What is the title of the novel by {name}?", "Which novel did {name} write?"),
    ),
)  # fmt: skip
"""All kinds of facts that a life has some of."""


@dataclass(frozen=True)
class Asked:
    """A question about a passage: what is right (`answer`), and values of its kind that stand in the passage or belong
    to others (`wrong`)."""

    kind: str
    question: str
    answer: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Life:
    """One person's passage (a few lines) and its questions."""

    name: str
    passage: str
    asked: tuple[Asked, ...]


def lives(dice: random.Random, facts: int = 7) -> Iterator[Life]:
    """Lives of people who all have other names, with so many facts each."""
    people = [f"{first} {last}" for first in FIRST for last in LAST]
    dice.shuffle(people)
    for name in people:
        yield _life(name, dice, facts)


def _life(name: str, dice: random.Random, count: int) -> Life:
    first = name.split()[0]
    they, their = dice.choice((("she", "her"), ("he", "his")))
    kinds = dice.sample(FACTS, min(count, len(FACTS)))
    sentences, asked, said = [], [], []
    towns: set[str] = set()
    for place, fact in enumerate(kinds):
        value = dice.choice([value for value in fact.values if value not in towns])
        towns.add(value)
        called = name if not place else first
        template = dice.choice([one for one in fact.tell if place or "{name}" in one] or list(fact.tell))
        told = template.format(
            name=called, they=they, They=they.capitalize(), their=their, Their=their.capitalize(), value=value
        )
        sentences.append(told if name in told or place else f"This is about {name}. {told}")
        said.append((fact, value))
    for fact, value in said:
        others = tuple(v for v in fact.values if v != value and fact.kind != "year")
        asked.append(Asked(fact.kind, dice.choice(fact.ask).format(name=name), value, others))
    dice.shuffle(asked)
    return Life(name, _wrapped(" ".join(sentences)), tuple(asked))


def _wrapped(text: str, width: int = 92) -> str:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) + 1 > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


# ---------------------------------------------------------------------- single facts


@dataclass(frozen=True)
class Record:
    """A fact that stands on one line, and its question."""

    line: str
    asked: Asked


_RECORDS = (
    (
        "code",
        "The door code of the {place} is {value}.",
        ("What is the door code of the {place}?", "Which code opens the {place}?"),
    ),
    (
        "price",
        "The repair of the {place} cost {value} crowns.",
        ("How much did the repair of the {place} cost?", "How many crowns were paid for the repair of the {place}?"),
    ),
    (
        "keeper",
        "The key of the {place} is kept by {value}.",
        ("Who keeps the key of the {place}?", "Whom does one ask for the key of the {place}?"),
    ),
    (
        "moved",
        "The meeting in the {place} was moved to {value}.",
        ("To which day was the meeting in the {place} moved?", "When does the meeting in the {place} take place now?"),
    ),
    (
        "stored",
        "The {value} are stored in the {place}.",
        ("What is stored in the {place}?", "Which things does the {place} hold?"),
    ),
    (
        "guest",
        "Tonight's guest in the {place} comes from {value}.",
        ("Where does tonight's guest in the {place} come from?", "From which town is the guest in the {place}?"),
    ),
)
_ROOMS = (
    "attic library cellar greenhouse boathouse workshop archive chapel observatory kitchen bakery stable laundry "
    "gallery studio pantry ballroom armoury dairy brewery mill smithy nursery refectory"
).split()
_SIDES = "north south east west upper lower old new inner outer small great".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def records(dice: random.Random) -> Iterator[Record]:
    """Facts of places that all have other names."""
    places = [f"{side} {room}" for side in _SIDES for room in _ROOMS]
    dice.shuffle(places)
    for place in places:
        kind, line, questions = dice.choice(_RECORDS)
        values = _values(kind, dice)
        value = dice.choice(values)
        wrong = tuple(one for one in values if one != value)
        question = dice.choice(questions).format(place=place)
        yield Record(line.format(place=place, value=value), Asked(kind, question, value, wrong))


def _values(kind: str, dice: random.Random) -> list[str]:
    if kind in ("code", "price"):
        return [str(dice.randrange(1000, 9999)) for _ in range(8)]
    if kind == "keeper":
        return [f"{first} {last}" for first, last in zip(dice.sample(FIRST, 8), dice.sample(LAST, 8), strict=True)]
    return {"moved": _DAYS, "stored": COLLECTS, "guest": TOWNS}[kind]

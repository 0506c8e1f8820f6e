"""Passages of made-up facts, and questions about them: what rows of questions and of notes are made of.

A passage is a tuple of facts: a sentence, and questions as (question, how its answer begins, what follows), with words
in braces that are drawn for each passage anew. ``{town}`` and ``{town2}`` are two different towns.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

Question = tuple[str, str, str]
Fact = tuple[str, tuple[Question, ...]]

FIRST_NAMES = (
    "Amara Benedikt Celia Dorian Edith Farid Gwen Harald Ines Jonas Katya Lorenzo Mina Nils Odile Pavel Quentin Rania "
    "Stefan Tova Ulrik Vera Wanda Xavier Yusuf Zelda Arno Bettina Cyril Delia Emil Fiona"
).split()
LAST_NAMES = (
    "Abbott Brandt Castillo Dvorak Eklund Ferrari Grant Horvat Ivanov Jansen Keller Lindgren Mercier Nowak Olsen "
    "Pereira Quist Romano Sandoval Tanaka Ueda Vogel Weaver Yilmaz Zimmer"
).split()
TOWNS = (
    "Antwerp Bergamo Cardiff Dundee Esbjerg Freiburg Granada Helsinki Innsbruck Jena Kiel Lisbon Marburg Naples Oulu "
    "Parma Quimper Rouen Salzburg Tartu Umea Vilnius Warsaw York Zurich Athens Bilbao Cologne Delft Essen"
).split()
THINGS = "lamps coins masks flutes kites maps knives buttons bottles stamps shells drums".split()
CRAFTS = "chemistry law botany music physics history medicine logic geology drawing optics".split()
_POOLS: dict[str, Sequence[str]] = {
    "name": FIRST_NAMES,
    "family": LAST_NAMES,
    "town": TOWNS,
    "things": THINGS,
    "craft": CRAFTS,
    "trade": "a baker,a potter,a farmer,a judge,a pilot,a tailor,a mason,a nurse,a printer,a weaver,a diver".split(","),
    "colour": "red blue yellow white black orange brown green grey purple pink silver golden".split(),
    "beast": "dog cat horse parrot goat rabbit donkey tortoise".split(),
    "pet": "Pepper Ginger Rusty Luna Toffee Daisy Bandit Olive Pickle Storm Hazel Copper Mango Juniper".split(),
    "dish": "onion soup,plum cake,rye bread,fried fish,lentil stew,apple pie,goat cheese,roast chicken".split(","),
    "food": "carrots,butter,rice,mushrooms,lemons,garlic,honey,spinach,walnuts,cream,potatoes,beans,eggs".split(","),
    "spice": "pepper,nutmeg,ginger,thyme,saffron,cumin,mint,paprika,basil".split(","),
    "day": "Monday Tuesday Wednesday Friday Saturday Sunday".split(),
    "month": "January March April June July September October November".split(),
    "club": "Rovers,Wanderers,United,Hornets,Eagles,Lions,Falcons,Comets,Rangers,Sharks".split(","),
    "material": "oak,steel,leather,cotton,bamboo,aluminium,wool,plastic,glass,linen".split(","),
    "gadget": "kettle,drill,camera,heater,printer,speaker,blender,radio,scanner,toaster".split(","),
    "street": "Mill Lane,High Street,Station Road,Church Hill,Park Avenue,Bridge Street,Orchard Way".split(","),
    "vehicle": "van,bicycle,taxi,lorry,motorcycle,bus,tractor".split(","),
    "plant": "roses,tomatoes,lavender,tulips,onions,cabbages,beans,sunflowers,strawberries,lettuce".split(","),
    "instrument": "piano,cello,trumpet,harp,guitar,clarinet,organ,flute".split(","),
    "module": "parser,scheduler,cache,logger,installer,router,compiler,indexer,importer".split(","),
    "problem": "a memory leak,a wrong date,a lost message,a slow start,a missing file,a broken link".split(","),
    "topic": "the new roof,the budget,the summer party,the website,the old boiler,the exhibition".split(","),
    "weather": "rain,snow,fog,heavy wind,sunshine,hail,frost".split(","),
    "shop": "bookshop,bakery,pharmacy,flower shop,bank,cinema,post office,jeweller".split(","),
}  # fmt: skip
_NUMBERS = {"count": (3, 400), "small": (2, 12), "code": (1000, 10000), "year": (1890, 2020), "hour": (1, 24),
            "minute": (10, 60), "age": (18, 90), "price": (15, 950), "version": (2, 40)}  # fmt: skip

LIFE: Sequence[Fact] = (
    ("{name} {family} was born in {town} in {year}.",
     (("Where was {name} born?", "{name} was born in", "{town}"),
      ("In which year was {name} born?", "{name} was born in", "{year}"),
      ("What is the family name of {name}?", "The family name of {name} is", "{family}"))),
    ("{name}'s mother was {trade}, and {her} father was {trade2}.",
     (("What was the mother of {name}?", "The mother of {name} was", "{trade}"),
      ("What was {name}'s father?", "{name}'s father was", "{trade2}"))),
    ("At twenty {she} went to {town2} to study {craft}.",
     (("What did {name} study?", "{name} studied", "{craft}"),
      ("In which town did {name} study?", "{name} studied in", "{town2}"))),
    ("A {beast} called {pet} lived with {name} for many years.",
     (("What was {name}'s {beast} called?", "{name}'s {beast} was called", "{pet}"),
      ("What kind of animal was {pet}?", "{pet} was a", "{beast}"))),
    ("The house had a {colour} gate and {colour2} walls.",
     (("What colour was the gate?", "The gate was", "{colour}"),
      ("What colour were the walls?", "The walls were", "{colour2}"))),
    ("{name}'s closest friend, {name2} {family2}, often came for dinner.",
     (("Who was {name}'s closest friend?", "{name}'s closest friend was", "{name2} {family2}"),)),
    ("What {she} liked best was {dish}.", (("What did {name} like to eat?", "{name} liked", "{dish}"),)),
    ("Over the years {she} gathered {count} {things}.",
     (("What did {name} gather?", "{name} gathered", "{things}"),
      ("How many {things} did {name} have?", "{name} had", "{count}"))),
    ("In the end everything went to a museum in {town3}.",
     (("In which town is the museum?", "The museum is in", "{town3}"),)),
)  # fmt: skip

RECIPE: Sequence[Fact] = (
    ("{name}'s recipe for {dish} needs {small} large {food} and a little {spice}.",
     (("Whose recipe is it?", "The recipe is that of", "{name}"),
      ("What is it a recipe for?", "It is a recipe for", "{dish}"),
      ("Which spice does it need?", "It needs a little", "{spice}"))),
    ("First the {food2} are cut and fried for {small2} minutes.",
     (("What is cut and fried first?", "First one fries the", "{food2}"),
      ("For how many minutes are they fried?", "They are fried for", "{small2} minutes"))),
    ("Then everything goes into a {colour} pot and stays in the oven for {minute} minutes.",
     (("What colour is the pot?", "The pot is", "{colour}"),
      ("How long does it stay in the oven?", "It stays in the oven for", "{minute} minutes"))),
    ("It is served with {food3}, and in {town} people add {food4} to it.",
     (("What is it served with?", "It is served with", "{food3}"),
      ("What do people in {town} add?", "In {town} people add", "{food4}"))),
    ("The recipe was first printed in {year}.", (("When was it first printed?", "It was first printed in", "{year}"),)),
)  # fmt: skip

MEETING: Sequence[Fact] = (
    ("Minutes of {day}: {name} {family} opened the meeting at {hour}:{minute} in the {colour} room.",
     (("Who opened the meeting?", "The meeting was opened by", "{name} {family}"),
      ("On which day was the meeting?", "The meeting was on", "{day}"),
      ("In which room was it?", "It was in the", "{colour} room"))),
    ("First {topic} was discussed; {name2} will write to the office in {town}.",
     (("What was discussed first?", "First they discussed", "{topic}"),
      ("Who will write to the office?", "The letter will be written by", "{name2}"),
      ("Where is the office?", "The office is in", "{town}"))),
    ("{name3} asked for {price} pounds for {topic2}, and nobody was against it.",
     (("How much money did {name3} ask for?", "{name3} asked for", "{price} pounds"),
      ("What did {name3} want the money for?", "{name3} wanted it for", "{topic2}"))),
    ("The keys of the hall stay with {name4} until {month}.",
     (("Who has the keys of the hall?", "The keys of the hall are with", "{name4}"),
      ("Until which month?", "Until", "{month}"))),
    ("{small} people were ill, and {trade} came as a guest.",
     (("How many people were ill?", "The number of people who were ill was", "{small}"),)),
    ("The next meeting is on {day2}.", (("When is the next meeting?", "The next meeting is on", "{day2}"),)),
)  # fmt: skip

MATCH: Sequence[Fact] = (
    ("The {town} {club} won against the {town2} {club2} by {small} goals on {day}.",
     (("Which team won?", "The winners were the {town}", "{club}"),
      ("Who lost?", "The losers were the {town2}", "{club2}"),
      ("On which day was the match?", "The match was on", "{day}"))),
    ("{family} scored first, after only {small2} minutes.",
     (("Who scored first?", "The first goal was scored by", "{family}"),
      ("After how many minutes did the first goal come?", "It came after", "{small2} minutes"))),
    ("The goalkeeper, {name} {family2}, hurt a hand and was replaced by {name2}.",
     (("What is the goalkeeper called?", "The goalkeeper is called", "{name} {family2}"),
      ("Who replaced the goalkeeper?", "The goalkeeper was replaced by", "{name2}"))),
    ("In spite of {weather} there were {code} people watching.",
     (("What was the weather like?", "There was", "{weather}"),
      ("How many people were watching?", "The number of people watching was", "{code}"))),
    ("The coach, who once was {trade}, praised the players in the {colour} shirts.",
     (("What was the coach before?", "Before that the coach was", "{trade}"),
      ("What colour were the shirts?", "The shirts were", "{colour}"))),
)  # fmt: skip

PRODUCT: Sequence[Fact] = (
    ("The {family} {version} is a {gadget} made of {material}, and it costs {price} euros.",
     (("What kind of product is the {family} {version}?", "The {family} {version} is a", "{gadget}"),
      ("What is it made of?", "It is made of", "{material}"),
      ("How much does it cost?", "It costs", "{price} euros"))),
    ("It comes in {colour} and in {colour2}.",
     (("In which colours does it come?", "It comes in {colour} and in", "{colour2}"),)),
    ("Its handle is of {material2}, and the battery lasts {hour} hours.",
     (("What is the handle made of?", "The handle is made of", "{material2}"),
      ("How long does the battery last?", "The battery lasts", "{hour} hours"))),
    ("It is built in {town} and was designed by {name} {family2}.",
     (("Where is it built?", "It is built in", "{town}"),
      ("Who designed it?", "It was designed by", "{name} {family2}"))),
    ("The serial number begins with {code}.",
     (("What does the serial number begin with?", "The serial number begins with", "{code}"),)),
    ("Repairs are done in {town2} on {day} mornings.",
     (("Where are repairs done?", "Repairs are done in", "{town2}"),
      ("On which day are repairs done?", "Repairs are done on", "{day}"))),
)  # fmt: skip

REPORT: Sequence[Fact] = (
    ("On a {day} in {month} a thief broke into the {shop} in {street}.",
     (("What was broken into?", "The thief broke into the", "{shop}"),
      ("In which street was it?", "It was in", "{street}"),
      ("In which month did it happen?", "It happened in", "{month}"))),
    ("He took {count} {things} and left in a {colour} {vehicle}.",
     (("What did the thief take?", "The thief took", "{count} {things}"),
      ("What did he leave in?", "He left in a {colour}", "{vehicle}"),
      ("What colour was the {vehicle}?", "The {vehicle} was", "{colour}"))),
    ("Inspector {family} talked to {name}, {trade}, who had seen everything from the window.",
     (("Who was the inspector?", "The inspector was called", "{family}"),
      ("Who had seen everything?", "Everything was seen by", "{name}"),
      ("What does {name} work as?", "{name} works as", "{trade}"))),
    ("The thief was {age} years old and had come from {town}.",
     (("How old was the thief?", "The thief was", "{age} years old"),
      ("Where had the thief come from?", "The thief had come from", "{town}"))),
    ("The {beast} of the owner, {pet}, slept all the time.",
     (("What was the {beast} called?", "The {beast} was called", "{pet}"),)),
)  # fmt: skip

LETTER: Sequence[Fact] = (
    ("Dear {name}, I am writing from {town}, where it has been {weather} since {day}.",
     (("Who is the letter to?", "The letter is to", "{name}"),
      ("Where was the letter written?", "It was written in", "{town}"),
      ("What is the weather like there?", "There is", "{weather}"))),
    ("We live with {name2} in {street}, above the {shop}.",
     (("Who do they live with?", "They live with", "{name2}"),
      ("What is below their rooms?", "Below their rooms is the", "{shop}"),
      ("In which street do they live?", "They live in", "{street}"))),
    ("Every evening somebody plays the {instrument}, and the neighbours' {beast} sings along.",
     (("Which instrument is played in the evening?", "In the evening somebody plays the", "{instrument}"),
      ("Which animal sings along?", "It is the neighbours'", "{beast}"))),
    ("Yesterday I bought {things} for {price} francs and ate {dish}.",
     (("What was bought yesterday?", "Yesterday the writer bought", "{things}"),
      ("What did they cost?", "They cost", "{price} francs"),
      ("What did the writer eat?", "The writer ate", "{dish}"))),
    ("In {month} we go on to {town2}, by {vehicle}.",
     (("Where do they go next?", "Next they go to", "{town2}"),
      ("When do they go on?", "They go on in", "{month}"))),
    ("Yours, {name3}", (("Who wrote the letter?", "The letter was written by", "{name3}"),)),
)  # fmt: skip

GARDEN: Sequence[Fact] = (
    ("The garden behind {street} belongs to {name} {family}, who is {age}.",
     (("Who does the garden belong to?", "The garden belongs to", "{name} {family}"),
      ("How old is {name}?", "{name} is", "{age}"))),
    ("Along the wall grow {plant}, and near the gate {plant2}.",
     (("What grows along the wall?", "Along the wall grow", "{plant}"),
      ("What grows near the gate?", "Near the gate grow", "{plant2}"))),
    ("In {month} {weather} killed most of the {plant3}.",
     (("What killed most of the {plant3}?", "Most of the {plant3} were killed by", "{weather}"),
      ("In which month was that?", "It was in", "{month}"))),
    ("The bench is {colour}, the shed is {colour2}, and both were built by {name2}.",
     (("What colour is the bench?", "The bench is", "{colour}"),
      ("What colour is the shed?", "The shed is", "{colour2}"),
      ("Who built the bench?", "The bench was built by", "{name2}"))),
    ("Every {day} someone from {town} comes and buys {small} baskets of {food}.",
     (("What is bought in the garden?", "What is bought is {small} baskets of", "{food}"),
      ("On which day does the buyer come?", "The buyer comes every", "{day}"),
      ("Where does the buyer come from?", "The buyer comes from", "{town}"))),
)  # fmt: skip

RELEASE: Sequence[Fact] = (
    ("Version {version} of {pet} came out in {month} {year}.",
     (("Which version came out?", "What came out was version", "{version}"),
      ("When did it come out?", "It came out in", "{month} {year}"))),
    ("It mends {problem} in the {module}, which {name} had found.",
     (("What was mended in the {module}?", "In the {module} they mended", "{problem}"),
      ("Who had found the fault in the {module}?", "It was found by", "{name}"))),
    ("The {module2} is {small} times as fast as before, and it listens on port {code}.",
     (("What became faster?", "What became faster is the", "{module2}"),
      ("Which port does it listen on?", "It listens on port", "{code}"))),
    ("{name2} {family} wrote the {module3} anew.",
     (("Who wrote the {module3} anew?", "The {module3} was written anew by", "{name2} {family}"),
      ("What was written anew?", "What was written anew is the", "{module3}"))),
    ("The default colour is now {colour}, and the limit is {count} users.",
     (("What is the default colour now?", "The default colour is now", "{colour}"),
      ("What is the limit of users?", "The limit is", "{count} users"))),
)  # fmt: skip

STORIES = (LIFE, LIFE, RECIPE, MEETING, MATCH, PRODUCT, REPORT, LETTER, GARDEN, RELEASE)
"""Passages that hang together; lives are drawn twice as often as any other."""

NOTES: Sequence[Fact] = (
    ("The meeting about {craft} takes place in {town}.",
     (("Where does the meeting about {craft} take place?", "The meeting takes place in", "{town}"),)),
    ("{name} keeps the {things} in the {colour} box.",
     (("In which box does {name} keep the {things}?", "{name} keeps the {things} in the", "{colour}"),)),
    ("The code of {name2}'s door is {code}.",
     (("What is the code of {name2}'s door?", "The code of {name2}'s door is", "{code}"),)),
    ("The {things2} cost {price} pounds.",
     (("How much did the {things2} cost?", "The {things2} cost", "{price} pounds"),)),
    ("{name3} {family} works as {trade} in {town2}.",
     (("What does {name3} work as?", "{name3} works as", "{trade}"),
      ("Where does {name3} work?", "{name3} works in", "{town2}"))),
    ("The train to {town3} leaves at {hour}:{minute}.",
     (("Where does the train at {hour} o'clock go?", "It goes to", "{town3}"),)),
    ("The book about {craft2} lies under the {things3}.",
     (("What lies under the {things3}?", "Under the {things3} lies the book about", "{craft2}"),)),
    ("The {gadget} of {name4} is broken since {day}.",
     (("What is broken?", "What is broken is the {gadget} of", "{name4}"),
      ("Since when is {name4}'s {gadget} broken?", "It is broken since", "{day}"))),
    ("The {shop} in {street} closes in {month}.",
     (("What closes in {month}?", "What closes in {month} is the", "{shop}"),
      ("In which street is the {shop}?", "The {shop} is in", "{street}"))),
    ("{name5} plays the {instrument} with {small} others.",
     (("What does {name5} play?", "{name5} plays the", "{instrument}"),)),
)  # fmt: skip
"""Facts that have nothing to do with each other."""


class _Words(dict[str, str]):
    """What the names in braces stand for, drawn when first met."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self["she"], self["her"] = draw.choice((("she", "her"), ("he", "his")))
        self._draw = draw

    def __missing__(self, name: str) -> str:
        kind = name.rstrip("0123456789")
        taken = {value for other, value in self.items() if other.rstrip("0123456789") == kind}
        if kind in _NUMBERS:
            pool: Sequence[str] = [str(self._draw.randrange(*_NUMBERS[kind]))]
        else:
            pool = [word for word in _POOLS[kind] if word not in taken]
        self[name] = self._draw.choice(pool)
        return self[name]


def story(draw: random.Random) -> list[Fact]:
    """A passage that hangs together: its first fact, and at least half of the others, in order or not."""
    first, *rest = _told(draw, draw.choice(STORIES))
    kept = sorted(draw.sample(range(len(rest)), draw.randrange((len(rest) + 1) // 2, len(rest) + 1)))
    if draw.random() < 0.3:
        draw.shuffle(kept)
    return [first, *(rest[place] for place in kept)]


def notes(draw: random.Random) -> list[Fact]:
    """Facts that have nothing to do with each other."""
    facts = _told(draw, NOTES)
    return draw.sample(facts, draw.randrange(3, len(facts) + 1))


def _told(draw: random.Random, facts: Sequence[Fact]) -> list[Fact]:
    """The facts, with words for the names in braces."""
    words = _Words(draw)
    return [
        (
            sentence.format_map(words),
            tuple(
                (question.format_map(words), beginning.format_map(words), value.format_map(words))
                for question, beginning, value in questions
            ),
        )
        for sentence, questions in facts
    ]

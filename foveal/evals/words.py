"""Names that nobody has met: keys, values and words for generated tasks, all different within one text."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator

ADJECTIVES = (
    "able aged airy alert amber ample arid ashen awake azure bald bare basic bitter blank bleak blind blunt bold "
    "bossy brave brief bright brisk broad bronze bumpy busy calm candid cheap chilly civil clean clear clever close "
    "cloudy clumsy coarse cold common cosy crisp cruel curly damp daring dark dear deep dense dim distant dizzy "
    "double dreary dry dull dusty eager early earnest easy elegant empty endless exact faint fair famous fancy fast "
    "feeble fierce fine firm flat fluffy foggy formal frail frank fresh frosty frozen full gentle giant glad gloomy "
    "golden grand grave greedy green grim handy hardy harsh hasty heavy hidden hollow honest huge humble hungry icy "
    "idle jagged jolly keen kind large lazy lean light likely lively lonely long loose loud loyal lucky magic marble "
    "mellow mild misty modest muddy narrow neat nimble noble noisy odd orange pale patient plain polite proud purple "
    "quick quiet rapid rare ready rough round royal rusty sandy scarlet secret shallow sharp shiny short shy silent "
    "silver simple sleepy slim slow smooth snowy solid sour spare stale steady steep stern sticky stormy strange "
    "sturdy subtle sunny swift tall tame tender thick thin tidy tiny tired tough tranquil upset vague vast velvet "
    "vivid warm weary wet white wide wild windy wise wooden young zealous"
).split()

NOUNS = (
    "acorn anchor apple apron arch arrow attic badge bakery balcony banjo barrel basin basket beach beacon beetle "
    "bell bench berry blanket boat bonnet bottle bowl branch breeze brick bridge broom brush bucket butter button "
    "cabin cactus camel candle canoe canvas canyon carpet castle cave cedar cellar chain chalk cherry chimney cliff "
    "clock cloak clover coast comet compass copper coral cottage cradle crane crater creek cricket crown crystal "
    "curtain dagger daisy desert diary dolphin donkey drawer drum dune eagle easel ember engine fable falcon farm "
    "feather fence fern ferry fiddle field flame flask flute forest fossil fountain garden garlic garnet gate geyser "
    "glacier glove goblet goose grape gravel guitar hammer hammock harbor harp harvest hatchet hazel hedge helmet "
    "heron hill honey hornet island ivory jacket jewel jungle kettle kitchen kite ladder lagoon lantern laurel lava "
    "leaf lemon library lily linen lizard lobster locket lotus magnet mango maple market meadow melon mill mirror "
    "monsoon moss motor mountain museum needle nest nettle oasis ocean olive orchard otter oyster paddle palace "
    "panther parcel parrot pasture pebble pepper piano pigeon pillow pine pirate planet plaza plum pocket pond poppy "
    "prairie puddle pumpkin quarry quill rabbit raft raven reef ribbon river robin rocket saddle sail salmon sandal "
    "satin scarf seal shadow shell shovel sparrow spider spoon spruce stable statue stove summit swallow table temple "
    "thimble thistle thunder ticket tiger timber tower trumpet tulip tunnel turtle valley vessel village violin "
    "walnut walrus waterfall whale wheat willow window winter yacht zebra"
).split()

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def key_words(dice: random.Random) -> Iterator[str]:
    """``eager-lantern`` and so on, each once; when they run out, two adjectives and a noun."""
    pairs = len(ADJECTIVES) * len(NOUNS)
    for number in dice.sample(range(pairs), pairs):
        yield f"{ADJECTIVES[number % len(ADJECTIVES)]}-{NOUNS[number // len(ADJECTIVES)]}"
    triples = pairs * len(ADJECTIVES)
    for number in dice.sample(range(triples), min(triples, 1 << 21)):
        first, rest = number % len(ADJECTIVES), number // len(ADJECTIVES)
        yield f"{ADJECTIVES[first]}-{ADJECTIVES[rest % len(ADJECTIVES)]}-{NOUNS[rest // len(ADJECTIVES)]}"


def numbers(dice: random.Random, digits: int = 7) -> Iterator[str]:
    """Numbers of so many digits, each once."""
    first, after = 10 ** (digits - 1), 10**digits
    seen: set[int] = set()
    while len(seen) < after - first:
        number = dice.randrange(first, after)
        if number not in seen:
            seen.add(number)
            yield str(number)


def uuids(dice: random.Random) -> Iterator[str]:
    """Random UUIDs (version 4)."""
    while True:
        yield str(uuid.UUID(int=dice.getrandbits(128), version=4))


def letters(dice: random.Random, size: int) -> Iterator[str]:
    """Upper-case names of `size` letters, each once."""
    seen: set[str] = set()
    while True:
        name = "".join(dice.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=size))
        if name not in seen:
            seen.add(name)
            yield name


def coined_words(dice: random.Random, syllables: int = 3) -> Iterator[str]:
    """Pronounceable words of so many syllables, each once, none the beginning or a part of another."""
    seen: set[str] = set()
    while True:
        word = "".join(dice.choice(_CONSONANTS) + dice.choice(_VOWELS) for _ in range(syllables))
        if word not in seen:
            seen.add(word)
            yield word

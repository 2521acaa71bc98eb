"""Text that a small model can learn from."""

import random

_NOUNS = ["river", "engine", "letter", "garden", "window", "stone", "captain", "winter", "market", "shadow"]
_VERBS = ["carries", "finds", "leaves", "opens", "follows", "repairs", "watches", "turns"]
_ADJECTIVES = ["old", "quiet", "broken", "bright", "distant", "heavy", "narrow", "careful"]


def sentences(size: int) -> str:
    """Return `size` characters of sentences, the same in every run."""
    chance = random.Random(0)
    written: list[str] = []
    length = 0
    while length < size:
        subject, thing = chance.sample(_NOUNS, 2)
        first, second = chance.sample(_ADJECTIVES, 2)
        written.append(f"The {first} {subject} {chance.choice(_VERBS)} the {second} {thing}.\n")
        length += len(written[-1])
    return "".join(written)[:size]

"""Letters as tokens: what a speech model writes, one after another."""

from collections.abc import Iterable

BLANK = 0  # CTC's token for "nothing new"
SPACE = 1  # the same in every alphabet, so that words can be told apart without one


class Letters:
    """Turns text into the numbers of its letters and back.

    Args:
        letters: The letters but the space, whose numbers follow it.
    """

    def __init__(self, letters: Iterable[str]) -> None:
        self._letters = ["", " ", *letters]
        self._numbers = {letter: number for number, letter in enumerate(self._letters) if letter}

    @property
    def vocabulary(self) -> int:
        """Return the number of distinct tokens, the blank among them."""
        return len(self._letters)

    @property
    def letters(self) -> str:
        """Return the letters in order, without the space."""
        return "".join(self._letters[2:])

    def unknown(self, text: str) -> str | None:
        """Return the first character of a text that is none of the letters, or None."""
        return next((letter for letter in text if letter not in self._numbers), None)

    def encode(self, text: str) -> list[int]:
        """Return the numbers of the text's letters; it must have no others."""
        return [self._numbers[letter] for letter in text]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of numbers; blanks and numbers of no letter give nothing."""
        return "".join(self._letters[token] for token in tokens if 0 <= token < len(self._letters))


def letters_of(texts: Iterable[str]) -> Letters:
    """Return the letters of texts, in the order of their code points."""
    return Letters(sorted(set().union(*texts) - {" "}))

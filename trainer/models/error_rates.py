"""Error rates of speech recognition: the changes that turn what a model writes into what was said.

Both divide Levenshtein's distance (1966), of insertions, deletions and substitutions, by what was said.
The model writes what connectionist temporal classification reads greedily (Graves et al. 2006, 3.2): the
likeliest token of every step, without repetitions, then without blanks.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from trainer.activation import Activation
from trainer.data.speech.letters import BLANK, SPACE
from trainer.errors import UserError


def character_error_rate(output: Activation, target: Activation) -> tuple[float, float]:
    """Return the changed letters, spaces among them, and the letters that were said.

    Args:
        output: A dict of logits [batch, time, vocabulary] and their lengths [batch].
        target: A dict of letters [batch, letters] and their lengths [batch].
    """
    return _errors(output, target, list)


def word_error_rate(output: Activation, target: Activation) -> tuple[float, float]:
    """Return the changed words and the words that were said, of what `character_error_rate` takes."""
    return _errors(output, target, _words)


def greedy(logits: Tensor) -> list[int]:
    """Return the tokens that logits [time, vocabulary] give."""
    steps = torch.unique_consecutive(logits.argmax(-1))
    return [token for token in steps.tolist() if token != BLANK]


def distance(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Return the fewest insertions, deletions and substitutions that turn one sequence into the other."""
    row = list(range(len(other) + 1))  # of the part of `one` that was seen to each beginning of `other`
    for number, item in enumerate(one, 1):
        before, row = row, [number]
        for place, theirs in enumerate(other, 1):
            row.append(min(before[place] + 1, row[-1] + 1, before[place - 1] + (item != theirs)))
    return row[-1]


def _errors(
    output: Activation, target: Activation, units: Callable[[list[int]], Sequence[Hashable]]
) -> tuple[float, float]:
    """Return the distance of all utterances and the units that were said."""
    if not _holds(output, "logits") or not _holds(target, "letters"):
        raise UserError("it takes logits and letters with their lengths, as model=speech has them")
    errors = said = 0
    written = zip(output["logits"], output["lengths"].tolist(), strict=True)
    letters = zip(target["letters"], target["lengths"].tolist(), strict=True)
    for (logits, time), (text, length) in zip(written, letters, strict=True):
        wanted = units(text[:length].tolist())
        errors += distance(units(greedy(logits[:time])), wanted)
        said += len(wanted)
    return float(errors), float(said)


def _holds(activation: Activation, name: str) -> bool:
    return isinstance(activation, dict) and {name, "lengths"} <= activation.keys()


def _words(letters: list[int]) -> list[tuple[int, ...]]:
    words: list[list[int]] = [[]]
    for letter in letters:
        if letter == SPACE:
            words.append([])
        else:
            words[-1].append(letter)
    return [tuple(word) for word in words if word]

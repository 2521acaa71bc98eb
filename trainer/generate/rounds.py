"""A round: some tokens of every group in flight, as one schedule on the engine."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.activation import Activation
from trainer.generate.sampling import Sampler
from trainer.generate.texts import GroupRound
from trainer.pipeline.source import TokenSource


@dataclass(frozen=True)
class Turn:
    """One micro-batch of a round.

    Attributes:
        part: What the round does with its group.
        step: The number of the token after those of new texts; None: their prefill.
    """

    part: GroupRound
    step: int | None


def turns_of(parts: Sequence[GroupRound]) -> list[Turn]:
    """Return the turns of a round: new texts first, then one token of every group after the other."""
    turns = [Turn(part, None) for part in parts if part.new]
    for step in range(max(part.steps for part in parts)):
        turns += [Turn(part, step) for part in parts if step < part.steps]
    return turns


class Round(TokenSource):
    """What the first stage reads and the last one writes in a round.

    Args:
        turns: The turns.
        sampler: Chooses tokens.
        whole: Whether every turn computes its texts from the first token on: nothing is cached.
        context: The most tokens that the model takes, or None.
    """

    def __init__(
        self, turns: Sequence[Turn], sampler: Sampler, *, whole: bool = False, context: int | None = None
    ) -> None:
        self._turns = turns
        self._sampler = sampler
        self._whole = whole
        self._context = context
        rows = {turn.part.number: len(turn.part.texts) for turn in turns}
        # By group and row, on the first stage and on the last, which may be in one process.
        self._received: dict[int, list[list[int]]] = {n: [[] for _ in range(r)] for n, r in rows.items()}
        self.written: dict[int, list[list[int]]] = {n: [[] for _ in range(r)] for n, r in rows.items()}

    def signatures(self) -> Sequence[Hashable]:
        """Return, for every turn, what the shapes of its activations follow from."""
        return [(turn.step is None, *self.inputs_shape(i)) for i, turn in enumerate(self._turns)]

    def inputs_shape(self, micro_batch: int) -> tuple[int, int]:
        """Return the shape of a turn's inputs, [batch, new columns]."""
        turn = self._turns[micro_batch]
        if turn.step is not None and not self._whole:
            return len(turn.part.texts), 1
        longest = max(map(len, turn.part.feed)) + (0 if turn.step is None else turn.step + 1)
        return len(turn.part.new), longest if self._context is None else min(longest, self._context)

    def inputs(self, micro_batch: int) -> Activation:
        """Return a turn's tokens, [batch, new columns]; padding is at the left."""
        turn = self._turns[micro_batch]
        part, received = turn.part, self._received[turn.part.number]
        if turn.step is None or self._whole:
            added = received[len(part.old) :]
            rows = [[*fed, *more] for fed, more in zip(part.feed, added, strict=True)]
            size = self.inputs_shape(micro_batch)[1]
            return torch.tensor([[0] * (size - len(row)) + row[-size:] for row in rows])
        texts = zip(part.texts, received, strict=True)
        return torch.tensor([[more[-1] if more else text.tokens[-1]] for text, more in texts])

    def targets(self, micro_batch: int) -> Activation:
        """Return None: generation has no targets."""
        return None

    def sample(self, micro_batch: int, output: Activation) -> Tensor:
        """Return the next token of every row, [batch], from the logits [batch, columns, vocabulary]."""
        assert isinstance(output, Tensor)
        turn = self._turns[micro_batch]
        rows = self._rows(turn)
        written = self.written[turn.part.number][rows]
        chosen = self._sampler.choose(output[:, -1], turn.part.texts[rows], written)
        for row, token in zip(written, chosen.tolist(), strict=True):
            row.append(token)
        return chosen

    def append(self, micro_batch: int, tokens: Tensor) -> None:
        """Append the tokens to the texts."""
        turn = self._turns[micro_batch]
        for row, token in zip(
            self._received[turn.part.number][self._rows(turn)], tokens.tolist(), strict=True
        ):
            row.append(token)

    def _rows(self, turn: Turn) -> slice:
        """Return the rows that a turn computes: those of new texts, or all."""
        return slice(len(turn.part.old) if turn.step is None else 0, None)

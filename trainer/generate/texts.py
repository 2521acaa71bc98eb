"""Which texts are in flight: prompts join groups as others end. Pure; every rank of a replica does the same.

A group is a batch of texts. It proceeds by rounds of a few tokens:

    [1] texts that have ended leave
    [2] waiting ones take their places, and are computed from their first token on (a prefill)
    [3] all of them are continued, token by token

A text that ends within a round is continued to the round's end, and what follows its end is dropped. What
dropped tokens were has no influence: the choice of a token depends on the text's own number and position.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

STEPS = 16  # of a round: what a text that ends is continued for nothing, at most


@dataclass
class Text:
    """A prompt and what follows it.

    Attributes:
        index: The prompt's number, which its random numbers follow from.
        tokens: Its tokens, and those that were written.
        prompt: How many of them are the prompt's.
        limit: How many to write at most.
        finish: Why it ended: "eos", "stop" or "length"; None while it has not.
    """

    index: int
    tokens: list[int]
    prompt: int
    limit: int
    finish: str | None = None

    @property
    def written(self) -> list[int]:
        """Return the tokens after the prompt."""
        return self.tokens[self.prompt :]


@dataclass
class Group:
    """Texts that are computed together.

    Attributes:
        number: Its number.
        texts: The texts whose keys and values are cached, by row.
    """

    number: int
    texts: list[Text] = field(default_factory=list)


@dataclass(frozen=True)
class GroupRound:
    """What a round does with a group.

    Attributes:
        number: The group's number.
        kept: The rows that stay.
        old: Their texts.
        new: The texts that join.
        feed: The tokens of each new text that are computed.
        columns: How many columns are cached once all have joined.
        steps: How many tokens are written after that.
    """

    number: int
    kept: tuple[int, ...]
    old: tuple[Text, ...]
    new: tuple[Text, ...]
    feed: tuple[tuple[int, ...], ...]
    columns: int
    steps: int

    @property
    def texts(self) -> tuple[Text, ...]:
        """Return the texts by row."""
        return *self.old, *self.new

    @property
    def padding(self) -> tuple[int, ...]:
        """Return the columns of padding before each text, once all have joined."""
        lengths = [len(text.tokens) - 1 for text in self.old] + [len(fed) for fed in self.feed]
        return tuple(self.columns - length for length in lengths)


class Batches:
    """The texts of one replica.

    Args:
        texts: All of them.
        batch: How many make a group.
        in_flight: How many groups there are at a time.
        context: The most tokens that the model takes; of a longer text it gets the last ones. None: no limit.
        cached: Whether keys and values are cached; if not, every token is computed from all before it.
    """

    def __init__(
        self, texts: Sequence[Text], batch: int, in_flight: int, context: int | None, *, cached: bool
    ) -> None:
        self._waiting = deque(text for text in texts if text.finish is None)
        self._batch = batch
        self._context = context
        self._cached = cached
        self._groups = [Group(number) for number in range(in_flight)]

    def next_round(self) -> list[GroupRound]:
        """Return what to do next; nothing once all texts have ended."""
        found = [self._advance(group) for group in self._groups]
        return [part for part in found if part is not None]

    def end_round(
        self,
        parts: Sequence[GroupRound],
        tokens: Sequence[Sequence[Sequence[int]]],
        finish: Callable[[Text], None],
    ) -> list[Text]:
        """Append what was written; return the texts that have ended.

        Args:
            parts: What was done.
            tokens: The tokens of each part by row.
            finish: Cuts off what follows the end of a text, if it has one, and says why it ended.
        """
        ended = []
        for part, rows in zip(parts, tokens, strict=True):
            for text, added in zip(part.texts, rows, strict=True):
                text.tokens += added
                finish(text)
                if text.finish is not None:
                    ended.append(text)
        return ended

    def _advance(self, group: Group) -> GroupRound | None:
        kept = [row for row, text in enumerate(group.texts) if text.finish is None and self._fits(text)]
        old = [group.texts[row] for row in kept]  # [1]
        new = [text for text in group.texts if text.finish is None and not self._fits(text)]
        while self._waiting and len(old) + len(new) < self._batch:  # [2]
            new.append(self._waiting.popleft())
        group.texts = [*old, *new]
        if not group.texts:
            return None
        feed = [tuple(text.tokens[-self._context :] if self._context else text.tokens) for text in new]
        lengths = [len(text.tokens) - 1 for text in old] + [len(fed) for fed in feed]
        left = [text.limit - len(text.written) for text in old]
        left += [text.limit - len(text.written) - 1 for text in new]
        steps = min(STEPS, max(left))  # [3]
        if self._cached and self._context is not None:
            steps = min(steps, *(self._context - length for length in lengths))
        return GroupRound(
            group.number, tuple(kept), tuple(old), tuple(new), tuple(feed), max(lengths), max(steps, 0)
        )

    def _fits(self, text: Text) -> bool:
        """Return whether a text's next token can be computed from what is cached."""
        return self._cached and (self._context is None or len(text.tokens) <= self._context)

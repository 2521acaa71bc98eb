"""The structures of messages: which of them both ends of a channel may take for granted."""

from typing import TypeAlias

from trainer.activation import ActivationSpec

TRIALS = 8  # messages of one signature, after which their structure counts as known

Key: TypeAlias = tuple[str, int]  # the mode, and the number of the signature


class Structures:
    """The structures of a channel's messages, by key; both ends have seen the same ones.

    Attributes:
        known: Those that are taken for granted.
    """

    def __init__(self) -> None:
        self.known: dict[Key, ActivationSpec] = {}
        self._seen: dict[Key, tuple[ActivationSpec, int]] = {}  # and how often
        self._varies = False

    def see(self, key: Key, structure: ActivationSpec) -> None:
        """Note the structure of a message that had a header."""
        if self._varies:
            return
        first, times = self._seen.get(key, (structure, 0))
        self._seen[key] = first, times + 1
        if first != structure:
            self._varies = True
            self._seen.clear()

    def begin(self) -> None:
        """Take for granted what has been seen often enough; only between steps, when both ends are even."""
        for key, (structure, times) in list(self._seen.items()):
            if times >= TRIALS:
                self.known[key] = structure
                del self._seen[key]

"""A replication strategy, added as a contributor adds one: `update.target=tests.toys.local:Local`.

Each replica steps by itself, on the mean of its own losses. Every few steps all take the mean of their
weights.
"""

from typing import Any

import torch

from trainer.replication.replication import Parts, Replication


class Local(Replication):
    def __init__(self, parts: Parts, every: int) -> None:
        self._parts = parts
        self._every = every
        self._updates = 0

    def divisor(self, mine: float, total: float) -> float:
        return mine

    @property
    def keeps_equal(self) -> bool:
        return False

    @torch.no_grad()
    def after_update(self) -> None:
        self._updates += 1
        if self._updates % self._every:
            return
        replicas = self._parts.replicas
        for layer in self._parts.layers:
            for parameter in layer.trained():
                numbers = parameter.reshape(-1).numpy()
                everyone = replicas.all_gather(numbers, [len(numbers)] * replicas.size)
                mean = torch.from_numpy(everyone).reshape(replicas.size, -1).mean(0)
                parameter.copy_(mean.view_as(parameter))

    def state(self) -> dict[str, Any]:
        return {"updates": self._updates}

    def restore(self, state: dict[str, Any]) -> None:
        self._updates = state["updates"]


class NoStrategy:
    def __init__(self, parts: Parts) -> None:
        """Take what a strategy takes."""

"""A model whose last layer does not return from one of its forward passes, or late, each in another way."""

import threading
import time
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.dataset import Data
from trainer.models.model import Layer, Model
from trainer.models.simplenet import BinaryLoss


def _sleep() -> None:
    while True:
        time.sleep(1)


def _loop() -> None:
    while True:
        pass


def _deadlock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()  # by the same thread


def _eat() -> None:
    held = []
    while True:
        held.append(bytearray(b"x") * (1 << 22))


def _work() -> None:
    end = time.monotonic() + 8
    while time.monotonic() < end:
        pass


WAYS = {"sleep": _sleep, "loop": _loop, "deadlock": _deadlock, "eat": _eat, "work": _work}


class Stuck(nn.Module):
    """A layer that does not come back.

    Args:
        way: How.
        at: In which forward.
    """

    def __init__(self, way: str, at: int) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 1)
        self._way, self._left = WAYS[way], at

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:  # not while it is costed on the meta device
            self._left -= 1
            if self._left == 0:
                self._way()
        return F.relu(self.linear(x))


def stuck(data: Data, way: str = "sleep", at: int = 11) -> Model:
    """Return a model of two layers, the second of which is stuck in a forward."""
    layers = (Layer("first", lambda: nn.Linear(10, 10)), Layer("stuck", partial(Stuck, way, at)))
    return Model(layers, BinaryLoss())

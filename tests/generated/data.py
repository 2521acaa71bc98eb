"""The samples of a sketch: a pure function of its number, read in the form that it says."""

import random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.generated.carriers import pack
from tests.generated.faults import spoil
from tests.generated.sketch import TOKENS, Sketch, sketch
from trainer.data.dataset import Data

EDGE = 3  # pixels
IGNORED = -100


def data(seed: int, least: int = 1, validation: int = 3, without: Any = ()) -> Data:
    """Return the data of a number."""
    drawn = sketch(seed, least, tuple(without))
    training, held_out = Samples(drawn, drawn.samples, 1), Samples(drawn, validation, 2)
    return Data(training, held_out, f"generated {seed}")


class Samples:
    """Numbered samples."""

    def __init__(self, drawn: Sketch, number: int, part: int) -> None:
        self.drawn = drawn
        chance = np.random.RandomState([drawn.seed & 0xFFFFFFFF, part])
        inner = {"vector": (), "sequence": (drawn.time,), "image": (EDGE, EDGE)}[drawn.kind]
        shape = (number, drawn.width, *inner) if drawn.kind == "image" else (number, *inner, drawn.width)
        self._x = chance.standard_normal(shape).astype(np.float32)
        if drawn.tokens:
            self._x = chance.randint(0, TOKENS, (number, drawn.time))
        self._lengths = chance.randint(1, drawn.time + 1, number)
        of_target = (number, drawn.time) if drawn.ends_in == "sequence" else (number,)
        self._classes = chance.randint(0, drawn.classes, of_target)
        self._classes[chance.random_sample(of_target) < 0.4] = IGNORED
        self._numbers = chance.standard_normal((*of_target, drawn.classes)).astype(np.float32)
        self._weights = chance.random_sample(of_target).astype(np.float32)

    def __len__(self) -> int:
        return len(self._x)

    def inputs(self, samples: NDArray[np.int64]) -> Any:
        """Return a batch in the sketch's carrier."""
        drawn, time = self.drawn, self._time(samples)
        x = torch.from_numpy(self._x[samples])
        x = x[:, :time].contiguous() if drawn.kind == "sequence" else x
        if not drawn.tokens and drawn.augments != "none":
            x = x * _factor(drawn.augments)
        x = spoil(drawn.fault, x)
        lengths = torch.from_numpy(self._lengths[samples]).clamp(max=time)
        available = {"mask": torch.arange(time) < lengths[:, None], "lengths": lengths}
        extras = {name: self._as_asked(available[name]) for name in drawn.extras}
        return pack(drawn.carrier, self._as_asked(x), extras)

    def targets(self, samples: NDArray[np.int64]) -> Any:
        """Return the targets that the sketch's loss takes."""
        time = self._time(samples)
        loss = self.drawn.loss
        classes, numbers, weights = (
            torch.from_numpy(of[samples])[:, :time]
            if self.drawn.ends_in == "sequence"
            else torch.from_numpy(of[samples])
            for of in (self._classes, self._numbers, self._weights)
        )
        if loss in ("masked", "target", "centres"):
            return self._as_asked(classes)
        if loss == "weighted":
            return {"y": self._as_asked(numbers), "weight": (self._as_asked(weights),)}
        if loss == "entropy":
            return [self._as_asked(classes.clamp(min=0)), None]
        factor = _factor(self.drawn.augments) if self.drawn.augments != "none" else 1.0
        return self._as_asked(numbers * factor)

    def _time(self, samples: NDArray[np.int64]) -> int:
        return int(self._lengths[samples].max()) if self.drawn.varies else self.drawn.time

    def _as_asked(self, tensor: Tensor) -> Any:
        return tensor.numpy() if self.drawn.array else tensor


def _factor(source: str) -> float:
    """Return a factor that augments a batch, drawn from a global generator."""
    draws = {
        "torch": lambda: torch.rand(()).item(),
        "numpy": np.random.random_sample,
        "random": random.random,
    }
    return 0.5 + draws[source]()

"""Models and data that a user might bring, by import path: everything that may pass between layers."""

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.data.dataset import Data
from trainer.models.gpt import MASKED, TokenLoss
from trainer.models.model import Layer, Model, Tie
from trainer.models.simplenet import BinaryLoss

VOCABULARY = 16
WIDTH = 8
LONGEST = 9  # tokens


class Ragged:
    """Sequences of 2 to `LONGEST` tokens; a micro-batch is as long as the longest of its sequences."""

    def __init__(self, samples: int, seed: int) -> None:
        chance = np.random.RandomState(seed)
        self._lengths = chance.randint(2, LONGEST + 1, samples)
        self._tokens = chance.randint(0, VOCABULARY, (samples, LONGEST + 1))

    def __len__(self) -> int:
        return len(self._lengths)

    def inputs(self, samples: NDArray[np.int64]) -> dict[str, Tensor]:
        mask = self._mask(samples)
        tokens = torch.from_numpy(self._tokens[samples, : mask.shape[1]])
        return {"tokens": tokens, "mask": mask}

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        mask = self._mask(samples)
        tokens = torch.from_numpy(self._tokens[samples, 1 : mask.shape[1] + 1])
        return tokens.masked_fill(~mask, MASKED)

    def _mask(self, samples: NDArray[np.int64]) -> Tensor:
        lengths = self._lengths[samples]
        return torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])


def ragged(samples: int = 40) -> Data:
    return Data(Ragged(samples, 1), Ragged(8, 2), f"ragged {samples}", vocabulary=VOCABULARY)


class First(nn.Module):
    """Makes, beside the vectors, a dict with a mask, integers, a skip, a number without gradient, None, and
    a tensor that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        x = self.tokens(batch["tokens"])
        mask, tokens = batch["mask"], batch["tokens"]
        others = {"mask": mask, "tokens": tokens, "nothing": None, "scales": (mask.sum(1).float(),)}
        return x, others | {"skip": x * 0.5, "spare": x + 1}


class Middle(nn.Module):
    """Uses the mask and passes everything on; one of its parameters is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.unused = nn.Parameter(torch.ones(3, 2))
        self.dropout = nn.Dropout(0.2)

    def forward(self, activation: tuple[Tensor, dict[str, Any]]) -> tuple[Tensor, dict[str, Any]]:
        x, others = activation
        assert others["mask"].dtype == torch.bool
        assert others["tokens"].dtype == torch.int64
        assert others["nothing"] is None
        assert not others["scales"][0].requires_grad
        mixed = torch.tanh(self.dropout(self.linear(x))).masked_fill(~others["mask"][..., None], 0.0)
        # Not contiguous, as what a transpose returns.
        return mixed.transpose(0, 1).contiguous().transpose(0, 1), others


class Frozen(Middle):
    """Learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Again(nn.Module):
    """Looks the tokens up once more, with the first layer's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, activation: tuple[Tensor, dict[str, Any]]) -> tuple[Tensor, dict[str, Any]]:
        x, others = activation
        return x + self.again(others["tokens"]), others


class Last(nn.Module):
    """Adds what skipped the layers between; its weights are the first layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, activation: tuple[Tensor, dict[str, Any]]) -> Tensor:
        x, others = activation
        mean = others["scales"][0][:, None, None]
        scores: Tensor = self.linear(x + others["skip"] / mean)
        return scores


def mixed(data: Data) -> Model:
    layers = (
        Layer("first", First),
        Layer("middle.0", Middle),
        Layer("frozen", Frozen),
        Layer("again", Again, (Tie("again.weight", "first", "tokens.weight"),)),
        Layer("middle.1", Middle),
        Layer("last", Last, (Tie("linear.weight", "first", "tokens.weight"),)),
    )
    return Model(layers, TokenLoss())


class Failing(nn.Module):
    """Fails in one of its forward passes."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 1)
        self._left = at

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:  # it is costed on the meta device first
            self._left -= 1
            if self._left == 0:
                raise ArithmeticError("this layer fails on purpose")
        return F.relu(self.linear(x))


def failing(data: Data, at: int = 3) -> Model:
    layers = (Layer("first", lambda: nn.Linear(10, 10)), Layer("failing", partial(Failing, at)))
    return Model(layers, BinaryLoss())

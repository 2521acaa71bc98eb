"""Layers that draw random numbers, and layers that write into what they were given."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.generated.carriers import Extras


class Dropped(nn.Module):
    """Noise from torch."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.module = {
            "module": lambda: nn.Dropout(0.3),
            "in place": lambda: nn.Dropout(0.3, inplace=True),
            "alpha": lambda: nn.AlphaDropout(0.2),
            "rrelu": nn.RReLU,
            "rrelu in place": lambda: nn.RReLU(inplace=True),
            "features": lambda: nn.Dropout1d(0.3),
        }.get(kind, nn.Identity)()

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        if self.kind == "functional":
            return F.dropout(x, 0.3, self.training)
        if self.kind == "always":
            return F.dropout(x, 0.3)
        if self.kind == "noise":
            return x + 0.1 * torch.randn_like(x)
        if self.kind == "bernoulli":
            return x * torch.bernoulli(torch.full_like(x, 0.7))
        if self.kind == "gumbel":
            return x + F.gumbel_softmax(x.float(), dim=-1, hard=True).to(x.dtype)
        return self.module(x)


class Elsewhere(nn.Module):
    """Draws from NumPy or from Python, beside a product."""

    def __init__(self, width: int, source: str) -> None:
        super().__init__()
        self.source = source
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        if self.source == "numpy":
            factor = torch.from_numpy(np.random.uniform(0.5, 1.5, x.shape[-1])).to(x)
        elif self.source == "permutation":
            return self.linear(x[..., torch.from_numpy(np.random.permutation(x.shape[-1]))])
        elif self.source == "depth":  # stochastic depth: some forwards use no weights
            return x if self.training and random.random() < 0.5 else x + self.linear(x)
        else:
            factor = random.uniform(0.5, 1.5)
        return self.linear(x) * factor


class InPlace(nn.Module):
    """Writes into its input first."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        if self.kind == "add":
            x += 1
        elif self.kind == "multiply":
            x *= 0.5
        elif self.kind == "relu":
            F.relu_(x)
        elif self.kind == "masked":
            x[x < -0.5] = 0
        elif self.kind == "column":
            x[..., 0] = 0
        elif self.kind == "view":
            x.view(-1)[:2].zero_()
        elif self.kind == "evaluating" and not self.training:
            x += 1
        elif self.kind == "mask" and "mask" in extras:
            extras["mask"][:, 0] = True
            return self.linear(x) * extras["mask"][..., None]
        elif self.kind == "skip" and "skip" in extras:
            extras["skip"].add_(1)
        return self.linear(x)


class Bounded(nn.Module):
    """Its weights are rows of a table that its forward keeps short."""

    def __init__(self, width: int, rows: int = 5) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width, max_norm=1.0)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        rows = (x.detach().float().sum(-1).abs() * 2 * len(self.table.weight)).long() % len(self.table.weight)
        return x + self.table(rows).to(x.dtype)


class Clamped(nn.Module):
    """Clamps its weights before it uses them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        with torch.no_grad():
            self.linear.weight.clamp_(-0.2, 0.2)
        return self.linear(x)


class Table(nn.Module):
    """An embedding of what a tensor is nearest to; its gradients may be sparse."""

    def __init__(self, width: int, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(5, width, sparse=sparse, padding_idx=0)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        ids = extras.get("ids")
        if ids is None:
            ids = (x.detach().float().sum(-1).abs() * 10).long()
        return x + self.table(ids % 5).to(x.dtype)

"""Layers about what passes between layers: skips, masks, selected rows, what has no gradient or no use."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.generated.carriers import Extras, pack, unpack


class Block(nn.Module):
    """A layer: takes any carrier, runs its part, and returns a carrier of its own."""

    def __init__(self, part: nn.Module, form: str, hook: str = "none") -> None:
        super().__init__()
        self.part = part
        self.form = form
        if hook == "before":
            self.register_forward_pre_hook(lambda module, given: None)
        elif hook == "after":
            self.register_forward_hook(lambda module, given, result: result)
        elif hook == "backward":
            self.register_full_backward_hook(lambda module, into, out: None)

    def forward(self, activation: Any) -> Any:
        x, extras = unpack(activation)
        y = self.part(x, extras)
        return pack(self.form, y, extras)


class Stem(nn.Module):
    """The first layer where the data has numbers of tokens."""

    def __init__(self, width: int, tokens: int, sparse: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width, sparse=sparse)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        extras["ids"] = x
        return self.tokens(x)


class Head(nn.Module):
    """The last layer; puts selected rows back."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        y = self.linear(x)
        extras.clear()
        return y


class Pass(nn.Module):
    """Adds something to the extras, beside a product."""

    def __init__(self, width: int, what: str) -> None:
        super().__init__()
        self.what = what
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        y = self.linear(x)
        extras[self.what] = {
            "skip": lambda: y * 0.5,
            "same": lambda: y,
            "spare": lambda: x + 1,
            "nothing": lambda: None,
            "number": lambda: 3,
            "fraction": lambda: 0.25,
            "word": "word".strip,
            "flag": lambda: True,
            "type": lambda: torch.float32,
            "constant": lambda: x.detach().float().sum(-1),
            "whole": lambda: (x.detach() > 0).sum(-1),
            "many": lambda: [y.sum(), {"a": (x.detach(), None)}, 2],
            "complex": lambda: torch.complex(y.float(), x.float()),
            "double": lambda: y.double() * 2,
            "empty": lambda: y[:0],
            "scalar": y.mean,
            "view": lambda: y[..., :1],
            "first": lambda: y[:1],
        }[self.what]()
        return y


class Use(nn.Module):
    """Takes some of the extras out, and computes with them."""

    def __init__(self, width: int, drop: bool) -> None:
        super().__init__()
        self.drop = drop
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        y = self.linear(x)
        for name in ("skip", "same", "double"):
            if name in extras and extras[name].shape == y.shape:
                y = y + extras[name].to(y.dtype)
        y = y * extras["fraction"] if "fraction" in extras else y
        if "scalar" in extras:
            y = y + extras["scalar"].to(y.dtype)
        if "constant" in extras and extras["constant"].shape == y.shape[:-1]:
            y = y + 0.1 * extras["constant"][..., None].to(y.dtype)
        if "mask" in extras and y.dim() == 3:
            y = y.masked_fill(~extras["mask"][..., None], 0.0)
        if self.drop:
            for name in [name for name in extras if name not in ("mask", "lengths", "time", "ids")]:
                del extras[name]
        return y


class Unused(nn.Module):
    """Its input does not reach its output."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.start = nn.Parameter(torch.randn(width))
        self.spare = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        if self.kind == "detached":
            return x.detach() * self.start.to(x.dtype)
        if self.kind == "constant":  # nothing that follows trains what came before
            return x.detach() * 0.5
        return x * 0 + self.start.to(x.dtype)


class Select(nn.Module):
    """Goes on with the rows whose first number is positive; how many that are depends on their values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        keep = x.detach().reshape(len(x), -1)[:, 0] > 0
        extras["all"], extras["rows"] = x, keep
        return self.linear(x[keep])


class Restore(nn.Module):
    """Puts selected rows back among the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        every, rows = extras.pop("all"), extras.pop("rows")
        y = every.clone()
        y[rows] = y[rows] + x.to(y.dtype)
        return self.linear(y)


class Pool(nn.Module):
    """From a sequence or an image to a vector."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        extras.clear()
        if x.dim() == 4:
            return x.flatten(2).mean(2) if self.kind == "mean" else x.flatten(2).amax(2)
        return x.mean(1) if self.kind == "mean" else x[:, -1]

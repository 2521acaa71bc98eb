"""Layers that compute: products, norms, recurrences, convolutions, attention; weights of several types."""

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.generated.carriers import Extras

ACTIVATIONS = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "leaky in place": lambda: nn.LeakyReLU(0.2, inplace=True),
    "silu": nn.SiLU,
}


class Linear(nn.Module):
    """A product and an activation function, optionally beside a skip."""

    def __init__(self, width: int, activation: str, skip: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.skip = skip

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        y = self.activation(self.linear(x))
        return x + y if self.skip else y


class Norm(nn.Module):
    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        makers = {
            "layer": lambda: nn.LayerNorm(width),
            "plain": lambda: nn.LayerNorm(width, elementwise_affine=False),
            "rms": lambda: nn.RMSNorm(width),
        }
        self.norm = makers[kind]()

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        return self.norm(x)


class Recurrent(nn.Module):
    """An LSTM or a GRU; packed, its sequences travel to the next layer as they are."""

    def __init__(self, width: int, kind: str, packed: bool, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        make = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
        self.net = make(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.packed = packed

    def forward(self, x: Tensor, extras: Extras) -> Any:
        if self.packed and "lengths" in extras:
            extras["time"] = x.shape[1]
            packed = pack_padded_sequence(x, extras["lengths"].cpu(), batch_first=True, enforce_sorted=False)
            return self.net(packed)[0]
        y, state = self.net(x)
        extras["state"] = state
        return y


class Convolution(nn.Module):
    """Over time, or over an image."""

    def __init__(self, width: int, dimensions: int, activation: str) -> None:
        super().__init__()
        make = nn.Conv1d if dimensions == 1 else nn.Conv2d
        self.convolution = make(width, width, 3, padding=1)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        channels_last = x.dim() == 3
        y = self.convolution(x.transpose(1, 2) if channels_last else x)
        return self.activation(y.transpose(1, 2) if channels_last else y)


class Attention(nn.Module):
    def __init__(self, width: int, dropout: float, fused: bool) -> None:
        super().__init__()
        self.fused, self.dropout = fused, dropout
        if fused:
            self.widen = nn.Linear(width, 3 * width)
        else:
            self.attention = nn.MultiheadAttention(width, 2, dropout, batch_first=True)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        if not self.fused:
            mask = extras.get("mask")
            padding = None if mask is None else ~mask
            return x + self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        query, key, value = self.widen(x).chunk(3, -1)
        dropout = self.dropout if self.training else 0.0
        return x + F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)


class Typed(nn.Module):
    """A product with weights in a type of their own."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.type = {"bfloat16": torch.bfloat16, "float64": torch.float64, "complex64": torch.complex64}[kind]
        self.weight = nn.Parameter((torch.randn(width, width) / width).to(self.type))
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        y = x.to(self.type) @ self.weight
        return (y.real if y.is_complex() else y).to(x.dtype) * self.scale.to(x.dtype)


class Drawn(nn.Module):
    """Weights that NumPy, Python or torch has drawn."""

    def __init__(self, width: int, source: str) -> None:
        super().__init__()
        values = {
            "numpy": lambda: torch.from_numpy(np.random.randn(width, width).astype(np.float32)),
            "random": lambda: torch.tensor(
                [[random.gauss(0, 1) for _ in range(width)] for _ in range(width)]
            ),
            "torch": lambda: torch.nn.init.orthogonal_(torch.empty(width, width)),
        }[source]()
        self.weight = nn.Parameter(values / width**0.5)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        return x @ self.weight.to(x.dtype)


class Twice(nn.Module):
    """A weight used twice, one of them after the other, and a shared submodule."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one = nn.Linear(width, width)
        self.other = self.one if kind == "module" else nn.Linear(width, width)
        if kind == "weight":
            self.other.weight = self.one.weight

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        y = self.other(torch.tanh(self.one(x)))
        return y @ self.one.weight.to(y.dtype) if self.kind == "product" else y


class Frozen(nn.Module):
    """Some weights, or all, do not train."""

    def __init__(self, width: int, every: bool) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(width, width), nn.Linear(width, width)
        self.one.requires_grad_(False)
        if every:
            self.other.requires_grad_(False)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        return self.other(torch.tanh(self.one(x)))


class Free(nn.Module):
    """No weights: something that PyTorch users write without thinking, some of it not contiguous."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        if self.kind == "strided":
            return torch.stack([x, x + 1], -1)[..., 0].transpose(0, 1).contiguous().transpose(0, 1)
        if self.kind == "expanded":
            return x.mean(-1, keepdim=True).expand_as(x)
        if self.kind == "view":
            return x.flip(-1).view(x.shape)
        return x if self.kind == "same" else torch.tanh(x)

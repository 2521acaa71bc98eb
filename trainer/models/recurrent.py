"""Recurrent layers over padded sequences: LSTM and GRU, whose weight gradients a split backward can defer.

torch's own fused kernels (oneDNN's and cuDNN's LSTM) compute all gradients of a layer in one call. Here the
loop over time is written out, and computes what each step needs from the one before: the states forward, the
gradients of the gates backward. All other products take all steps at once:

    inputs x --- [1] x W_ih + b_ih, all steps --- [2] loop over steps: h W_hh + b_hh, gates, next h --- h
             |
             +-- [3] backward, loop over steps: gradient of the gates, of the h before
             +-- [4] backward, all steps: gradient of x
             +-- [5] all steps: gradients of W_ih, b_ih, W_hh, b_hh; deferred where a backward is split

A sequence is padded at its end. The other direction of a bidirectional layer reads each sequence from its own
last step, so its padding comes last too, and no step of a sequence depends on padding. Both directions run in
one loop, as a batch of two.

Names, shapes and equations of the parameters are those of `torch.nn.LSTM` and `torch.nn.GRU`.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.models.cells import GATES, scan, scan_back
from trainer.models.deferring import defer

_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Recurrent(nn.Module):
    """A recurrent layer; its parameters are those of a `torch.nn.LSTM` or `torch.nn.GRU` of one layer.

    Args:
        cell: "lstm" or "gru".
        inputs: Features of a step.
        width: Units of each direction.
        bidirectional: Whether there is a second direction, from each sequence's end to its beginning.
        fused: Whether torch's kernels run the loop, which are faster on a GPU, and defer less.
    """

    def __init__(
        self, cell: str, inputs: int, width: int, *, bidirectional: bool = False, fused: bool = False
    ) -> None:
        super().__init__()
        self.cell, self.width, self.fused = cell, width, fused
        self.names = [
            f"{name}_l0{end}" for end in ("", "_reverse")[: 1 + bidirectional] for name in _PARAMETERS
        ]
        rows, limit = GATES[cell] * width, 1 / math.sqrt(width)
        shapes = {"weight_ih": (rows, inputs), "weight_hh": (rows, width)}
        for name in self.names:
            shape = shapes.get(name[: len("weight_ih")], (rows,))
            self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-limit, limit)))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the states after every step; those of padding have no meaning.

        Args:
            x: Sequences [batch, time, inputs], padded at their ends.
            lengths: Their lengths, int64 [batch].

        Returns:
            [batch, time, directions * width].
        """
        steps = x.transpose(0, 1)
        backwards = len(self.names) > len(_PARAMETERS)
        inputs = torch.stack((steps, reverse(steps, lengths))) if backwards else steps[None]
        states = self._fused(inputs) if self.fused else self._scan(inputs)
        joined = torch.cat((states[0], reverse(states[1], lengths)), -1) if backwards else states[0]
        return joined.transpose(0, 1)

    def _scan(self, inputs: Tensor) -> Tensor:
        weights = [self.get_parameter(name) for name in self.names]
        states: Tensor = _Scan.apply(self.cell, _product_type(inputs), inputs, *weights)  # type: ignore[no-untyped-call]
        return states

    def _fused(self, inputs: Tensor) -> Tensor:
        states = []
        for direction, x in enumerate(inputs):
            names = self.names[len(_PARAMETERS) * direction :][: len(_PARAMETERS)]
            first = x.new_zeros(1, x.shape[1], self.width)
            weights: list[Tensor] = [self.get_parameter(name) for name in names]
            settings = (
                True,
                1,
                0.0,
                self.training,
                False,
                False,
            )  # biases; one layer, without dropout, one way
            if self.cell == "lstm":
                states.append(torch.lstm(x, (first, first), weights, *settings)[0])
            else:
                states.append(torch.gru(x, first, weights, *settings)[0])
        return torch.stack(states)


def reverse(steps: Tensor, lengths: Tensor) -> Tensor:
    """Return sequences [time, batch, features], each in reverse up to its length; padding stays in place."""
    time, batch, _ = steps.shape
    t = torch.arange(time, device=steps.device)[:, None]
    taken = torch.where(t < lengths, lengths - 1 - t, t)
    rows = taken * batch + torch.arange(batch, device=steps.device)
    return steps.flatten(0, 1).index_select(0, rows.flatten()).view_as(steps)


class _Scan(torch.autograd.Function):
    """The layer without its reversals; inputs and states are [directions, time, batch, ...]."""

    @staticmethod
    def forward(ctx: Any, cell: str, kind: torch.dtype, x: Tensor, *weights: Tensor) -> Tensor:
        x = x.to(kind)
        w_ih, w_hh, b_ih, b_hh = _stacked(weights)
        with _full_precision(x):
            inputs = torch.baddbmm(b_ih[:, None].to(kind), x.flatten(1, 2), w_ih.to(kind).mT)  # [1]
            shaped = inputs.view(*x.shape[:-1], -1)
            states, *saved = scan(cell, at_least_single(shaped), w_hh.to(kind), b_hh)  # [2]
        ctx.save_for_backward(x, states, *saved, *weights)
        ctx.cell, ctx.weights = cell, weights
        output: Tensor = states[:, 1:]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, states, *rest = ctx.saved_tensors
        saved, weights = rest[: -len(ctx.weights)], rest[-len(ctx.weights) :]
        w_ih, w_hh, *_ = _stacked(weights)
        with _full_precision(x):
            gates = scan_back(ctx.cell, at_least_single(gradient), w_hh.to(x.dtype), states, saved)  # [3]
            to_inputs, to_states = gates[0], gates[-1]
            to_inputs = to_inputs.flatten(1, 2).to(x.dtype)
            dx = torch.bmm(to_inputs, w_ih.to(x.dtype)).view_as(x) if ctx.needs_input_grad[2] else None  # [4]
        x = x.flatten(1, 2)
        before = states[:, :-1].flatten(1, 2).to(x.dtype)
        to_states = to_states.flatten(1, 2).to(x.dtype)
        gradients: list[Tensor | None] = []
        for place, weight in enumerate(ctx.weights):  # [5]
            direction, which = divmod(place, len(_PARAMETERS))
            rows = (to_states if which % 2 else to_inputs)[direction]
            columns = (x, before)[which][direction] if which < 2 else None  # noqa: PLR2004
            make = partial(_weight_gradient, rows, columns)
            wanted = ctx.needs_input_grad[3 + place]
            can_wait = weight.is_leaf and isinstance(weight, nn.Parameter)
            gradients.append(None if not wanted or (can_wait and defer(weight, make)) else make())
        return None, None, dx, *gradients


def _weight_gradient(rows: Tensor, columns: Tensor | None) -> Tensor:
    """Return a weight's gradient from those of the gates [steps, gates]; of a bias without columns."""
    return rows.sum(0) if columns is None else rows.t() @ columns


def _stacked(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the weights of all directions: [directions, ...] each."""
    each = [torch.stack(list(weights)[place :: len(_PARAMETERS)]) for place in range(len(_PARAMETERS))]
    return each[0], each[1], each[2], each[3]


def _product_type(x: Tensor) -> torch.dtype:
    """Return the type of matrix products: that of autocast, or else that of the inputs."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if _is_autocast(device) else x.dtype


def _is_autocast(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)


def _full_precision(x: Tensor) -> Any:
    """Return a context in which operations take the types of their inputs."""
    return torch.autocast(x.device.type, enabled=False) if _is_autocast(x.device.type) else nullcontext()


def at_least_single(x: Tensor) -> Tensor:
    """Return numbers in float32, or in their own type if it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

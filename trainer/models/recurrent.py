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
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.models.deferring import defer

_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Cell(Protocol):
    """The equations of one kind of cell, for all steps of all directions.

    `gates` is the number of its gates, whose rows follow one another in its weights.
    """

    gates: int

    def forward(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the loop [2].

        Args:
            inputs: What the gates get from the inputs, float32 [directions, time, batch, gates * width].
            weight: W_hh [directions, gates * width, width], in the type of the products.
            bias: b_hh, float32 [directions, gates * width].

        Returns:
            The states [directions, 1 + time, batch, width], beginning with zeros, and what `backward` needs.
        """

    def backward(
        self, gradient: Tensor, weight: Tensor, states: Tensor, saved: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Run the loop [3].

        Args:
            gradient: That of the states but the first, float32 [directions, time, batch, width].
            weight: As in `forward`.
            states: What `forward` returned.
            saved: What `forward` returned.

        Returns:
            The gradients of the gates' two parts, from inputs and from states: [directions, time, batch,
            gates * width] each.
        """


class LSTMCell:
    """A long short-term memory; gates i, f, g, o (Hochreiter and Schmidhuber 1997; Gers et al. 2000)."""

    gates = 4

    def forward(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the loop of `Cell.forward`; it saves the gates, the memories and their tanh."""
        activations = inputs + bias[:, None, None]
        states = _states(inputs, self.gates)
        memories, squashed = torch.zeros_like(states), torch.empty_like(states[:, 1:])
        width, turned = states.shape[-1], weight.mT
        i, f, g, o = (part.unbind(1) for part in activations.chunk(self.gates, -1))
        sigmoids = activations[..., : 2 * width].unbind(1)
        steps, h, c, tanh_c = (each.unbind(1) for each in (activations, states, memories, squashed))
        for t in range(len(steps)):
            steps[t].add_(torch.bmm(h[t].to(turned.dtype), turned))
            sigmoids[t].sigmoid_()
            g[t].tanh_()
            o[t].sigmoid_()
            torch.mul(f[t], c[t], out=c[t + 1]).addcmul_(i[t], g[t])
            torch.tanh(c[t + 1], out=tanh_c[t])
            torch.mul(o[t], tanh_c[t], out=h[t + 1])
        return states, (activations, memories, squashed)

    def backward(
        self, gradient: Tensor, weight: Tensor, states: Tensor, saved: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Run the loop of `Cell.backward`; both parts of the gates have one gradient."""
        activations, memories, squashed = saved
        i, f, g, o = activations.chunk(self.gates, -1)
        # What the gradients of c and h are multiplied by, for all steps at once.
        by_memory = torch.stack(
            (g * _slope(i), memories[:, :-1] * _slope(f), i * (1 - g * g)), dim=-2
        ).unbind(1)
        by_state = (squashed * _slope(o)).unbind(1)
        through_tanh = (o * (1 - squashed * squashed)).unbind(1)
        gates = torch.empty_like(activations).view(*states[:, 1:].shape[:-1], self.gates, -1)
        memory_gates, output_gate = gates[..., :3, :].unbind(1), gates[..., 3, :].unbind(1)
        rows = gates.flatten(-2)
        all_gates, forget, out = rows.unbind(1), f.unbind(1), gradient.unbind(1)
        dh, dc = torch.zeros_like(states[:, 0]), torch.zeros_like(states[:, 0])
        for t in reversed(range(len(out))):
            dh = out[t] + dh
            dc = torch.addcmul(dc, dh, through_tanh[t])
            torch.mul(dc.unsqueeze(-2), by_memory[t], out=memory_gates[t])
            torch.mul(dh, by_state[t], out=output_gate[t])
            dc = dc * forget[t]
            dh = torch.bmm(all_gates[t].to(weight.dtype), weight)
        return rows, rows


class GRUCell:
    """A gated recurrent unit; gates r, z, n (Cho et al. 2014, with torch's reset after the product)."""

    gates = 3

    def forward(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the loop of `Cell.forward`; it saves the gates, and what n gets from the state."""
        activations = inputs.clone()
        states = _states(inputs, self.gates)
        width, turned = states.shape[-1], weight.mT
        ours = torch.empty_like(states[:, 1:])
        activations[..., : 2 * width] += bias[:, None, None, : 2 * width]
        gates = activations[..., : 2 * width].unbind(1)
        r, z, n = (part.unbind(1) for part in activations.chunk(self.gates, -1))
        h, from_state, bias_n = states.unbind(1), ours.unbind(1), bias[:, None, 2 * width :]
        for t in range(len(gates)):
            product = torch.bmm(h[t].to(turned.dtype), turned)
            gates[t].add_(product[..., : 2 * width]).sigmoid_()
            torch.add(product[..., 2 * width :], bias_n, out=from_state[t])
            n[t].addcmul_(r[t], from_state[t]).tanh_()
            torch.lerp(n[t], h[t], z[t], out=h[t + 1])
        return states, (activations, ours)

    def backward(
        self, gradient: Tensor, weight: Tensor, states: Tensor, saved: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Run the loop of `Cell.backward`."""
        activations, ours = saved
        width = states.shape[-1]
        r, z, n = activations.chunk(self.gates, -1)
        # What the gradient of h is multiplied by, for all steps at once.
        by_n, by_z = (1 - z) * (1 - n * n), (states[:, :-1] - n) * _slope(z)
        by_r, out, keep, reset = (each.unbind(1) for each in (ours * _slope(r), gradient, z, r))
        factors = torch.stack((by_z, by_n), dim=-2).unbind(1)
        # The gradients of r, z, what n gets from the state, and n: W_hh takes the first three, W_ih others.
        gates = activations.new_empty(*activations.shape[:-1], 4, width)
        dr, _, from_state, dn = (part.unbind(1) for part in gates.unbind(-2))
        z_and_n, to_states = gates[..., 1::2, :].unbind(1), gates.flatten(-2)[..., : 3 * width].unbind(1)
        dh = torch.zeros_like(states[:, 0])
        for t in reversed(range(len(out))):
            dh = out[t] + dh
            torch.mul(dh.unsqueeze(-2), factors[t], out=z_and_n[t])
            torch.mul(dn[t], by_r[t], out=dr[t])
            torch.mul(dn[t], reset[t], out=from_state[t])
            product = torch.bmm(to_states[t].to(weight.dtype), weight)
            dh = torch.addcmul(product.to(dh.dtype), dh, keep[t])
        return gates[..., [0, 1, 3], :].flatten(-2), gates[..., :3, :].flatten(-2)


CELLS: dict[str, Cell] = {"lstm": LSTMCell(), "gru": GRUCell()}


class Recurrent(nn.Module):
    """A recurrent layer; its parameters are those of a `torch.nn.LSTM` or `torch.nn.GRU` of one layer.

    Args:
        cell: "lstm" or "gru".
        inputs: Features of a step.
        width: Units of each direction.
        bidirectional: Whether there is a second direction, from each sequence's end to its beginning.
    """

    def __init__(self, cell: str, inputs: int, width: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.cell = CELLS[cell]
        self.names = [
            f"{name}_l0{end}" for end in ("", "_reverse")[: 1 + bidirectional] for name in _PARAMETERS
        ]
        rows, limit = self.cell.gates * width, 1 / math.sqrt(width)
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
        weights = [self.get_parameter(name) for name in self.names]
        states: Tensor = _Scan.apply(self.cell, _product_type(x), inputs, *weights)  # type: ignore[no-untyped-call]
        joined = torch.cat((states[0], reverse(states[1], lengths)), -1) if backwards else states[0]
        return joined.transpose(0, 1)


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
    def forward(ctx: Any, cell: Cell, kind: torch.dtype, x: Tensor, *weights: Tensor) -> Tensor:
        x = x.to(kind)
        w_ih, w_hh, b_ih, b_hh = _stacked(weights)
        with _full_precision(x):
            inputs = torch.baddbmm(b_ih[:, None].to(kind), x.flatten(1, 2), w_ih.to(kind).mT)  # [1]
            shaped = inputs.view(*x.shape[:-1], -1)
            states, saved = cell.forward(_at_least_single(shaped), w_hh.to(kind), b_hh)  # [2]
        ctx.save_for_backward(x, states, *saved, *weights)
        ctx.cell, ctx.weights = cell, weights
        return states[:, 1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, states, *rest = ctx.saved_tensors
        saved, weights = rest[: -len(ctx.weights)], rest[-len(ctx.weights) :]
        w_ih, w_hh, *_ = _stacked(weights)
        with _full_precision(x):
            gradient = _at_least_single(gradient)
            to_inputs, to_states = ctx.cell.backward(gradient, w_hh.to(x.dtype), states, saved)  # [3]
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


def _states(inputs: Tensor, gates: int) -> Tensor:
    """Return room for the states before and after every step, the first of them zero."""
    directions, time, batch, rows = inputs.shape
    states = inputs.new_empty(directions, time + 1, batch, rows // gates)
    states[:, 0] = 0
    return states


def _at_least_single(x: Tensor) -> Tensor:
    """Return numbers in float32, or in their own type if it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _slope(sigmoid: Tensor) -> Tensor:
    """Return the derivative of a sigmoid, given its value."""
    return sigmoid * (1 - sigmoid)

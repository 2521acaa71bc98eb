"""The loops over time of LSTM and GRU, forward and backward.

Each loop is one operation of torch's, `trainer::scan` and `trainer::scan_back`: what counts operations, or
compares them, sees one where there are thousands, and on the meta device one step stands for all.

The equations are those of `torch.nn.LSTM` and `torch.nn.GRU`.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


class Cell(Protocol):
    """The equations of one kind of cell, for all steps of all directions.

    `gates` is the number of its gates, whose rows follow one another in its weights.
    """

    gates: int

    def forward(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        """Run the loop of `scan`.

        Args:
            inputs: What the gates get from the inputs, float32 [directions, time, batch, gates * width].
            weight: W_hh [directions, gates * width, width], in the type of the products.
            bias: b_hh, float32 [directions, gates * width].

        Returns:
            The states [directions, 1 + time, batch, width], beginning with zeros; and what `backward` needs.
        """

    def backward(
        self, gradient: Tensor, weight: Tensor, states: Tensor, saved: Sequence[Tensor]
    ) -> list[Tensor]:
        """Run the loop of `scan_back`.

        Args:
            gradient: That of the states but the first, float32 [directions, time, batch, width].
            weight: As in `forward`.
            states: The first of what `forward` returned.
            saved: The rest of it.

        Returns:
            The gradients of what the gates get from inputs, and of what they get from states, if they differ:
            [directions, time, batch, gates * width].
        """


class LSTMCell:
    """A long short-term memory; gates i, f, g, o (Hochreiter and Schmidhuber 1997; Gers et al. 2000)."""

    gates = 4

    def forward(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        """Run the loop forward; it saves the gates, the memories and their tanh."""
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
        return [states, activations, memories, squashed]

    def backward(
        self, gradient: Tensor, weight: Tensor, states: Tensor, saved: Sequence[Tensor]
    ) -> list[Tensor]:
        """Run the loop backward; both parts of the gates have one gradient."""
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
        return [rows]


class GRUCell:
    """A gated recurrent unit; gates r, z, n (Cho et al. 2014, with torch's reset after the product)."""

    gates = 3

    def forward(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        """Run the loop forward; it saves the gates, and what n gets from the state."""
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
        return [states, activations, ours]

    def backward(
        self, gradient: Tensor, weight: Tensor, states: Tensor, saved: Sequence[Tensor]
    ) -> list[Tensor]:
        """Run the loop backward."""
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
        return [gates[..., [0, 1, 3], :].flatten(-2), gates[..., :3, :].flatten(-2)]


def _states(inputs: Tensor, gates: int) -> Tensor:
    """Return room for the states before and after every step, the first of them zero."""
    directions, time, batch, rows = inputs.shape
    states = inputs.new_empty(directions, time + 1, batch, rows // gates)
    states[:, 0] = 0
    return states


def _slope(sigmoid: Tensor) -> Tensor:
    """Return the derivative of a sigmoid, given its value."""
    return sigmoid * (1 - sigmoid)


_CELLS: dict[str, Cell] = {"lstm": LSTMCell(), "gru": GRUCell()}
GATES = {name: cell.gates for name, cell in _CELLS.items()}


def _scan(cell: str, inputs: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return _CELLS[cell].forward(inputs, weight, bias)


def _scan_back(
    cell: str, gradient: Tensor, weight: Tensor, states: Tensor, saved: Sequence[Tensor]
) -> list[Tensor]:
    return _CELLS[cell].backward(gradient, weight, states, saved)


def _scan_shapes(cell: str, inputs: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return _longer(_scan(cell, inputs[:, :1], weight, bias), inputs.shape[1] - 1)


def _scan_back_shapes(
    cell: str, gradient: Tensor, weight: Tensor, states: Tensor, saved: Sequence[Tensor]
) -> list[Tensor]:
    more = gradient.shape[1] - 1
    states, *saved = (each[:, : each.shape[1] - more] for each in (states, *saved))
    return _longer(_scan_back(cell, gradient[:, :1], weight, states, saved), more)


def _longer(tensors: Sequence[Tensor], more: int) -> list[Tensor]:
    """Return room for as many steps more."""
    return [each.new_empty(each.shape[0], each.shape[1] + more, *each.shape[2:]) for each in tensors]


# Not by `torch.library.custom_op`, whose first call imports torch's compiler, which takes seconds.
_library = torch.library.Library("trainer", "FRAGMENT")  # type: ignore[no-untyped-call]
for _declared, _function, _shapes in (
    ("scan(str cell, Tensor inputs, Tensor weight, Tensor bias)", _scan, _scan_shapes),
    (
        "scan_back(str cell, Tensor gradient, Tensor weight, Tensor states, Tensor[] saved)",
        _scan_back,
        _scan_back_shapes,
    ),
):
    _name = _library.define(f"{_declared} -> Tensor[]")  # type: ignore[no-untyped-call]
    _library.impl(_name, _function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    _library.impl(_name, _shapes, "Meta")  # type: ignore[no-untyped-call]

scan = torch.ops.trainer.scan
scan_back = torch.ops.trainer.scan_back


@register_flop_formula([scan, scan_back])
def _products(_cell: str, steps: Sequence[int], weight: Sequence[int], *_: Any, **_named: Any) -> int:
    """Return the operations of the products, given shapes: the loops multiply every state by W_hh."""
    return 2 * math.prod(steps[:3]) * math.prod(weight[1:])

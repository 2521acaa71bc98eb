"""torch's recurrences on the meta device, where all steps are taken at once.

There torch runs `nn.LSTM`, `nn.GRU` and `nn.RNN` step by step, in Python: a thousand frames take seconds for
every layer and pass. Without numbers one product over all steps has the same shapes, as many operations and
as much memory, so that is what runs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Let tensors be made on the meta device, and recurrences take all steps at once."""
    with torch.device("meta"), _AllSteps():
        yield


class _AllSteps(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        cell = _CELLS.get(func)
        # A packed sequence has its batch sizes in the second place, and weights one place later.
        if cell is None or not isinstance(args[2], list | tuple) or not args[0].is_meta:
            return func(*args, **(kwargs or {}))
        return _layers(cell, args)


# Called with the gates of all steps, from inputs and from states, and the states before: next states.
_Cell = Callable[[Tensor, Tensor, Sequence[Tensor]], tuple[Tensor, ...]]


def _layers(cell: _Cell, given: Sequence[Any]) -> tuple[Tensor, ...]:
    """Run a recurrence of some layers, given the arguments of `torch.lstm` and its like; return the same."""
    x, first, weights, has_biases, number, dropout, training, bidirectional, batch_first = given
    steps = x.transpose(0, 1) if batch_first else x
    states = [first] if isinstance(first, Tensor) else list(first)
    directions = 1 + bidirectional
    each = len(weights) // (number * directions)
    last: list[tuple[Tensor, ...]] = []
    for layer in range(number):
        outputs = []
        for place in range(layer * directions, (layer + 1) * directions):
            own = weights[place * each : (place + 1) * each]
            begin = [state[place] for state in states]
            output = _all_steps(cell, steps, begin, own, has_biases=has_biases)
            outputs.append(output[0])
            last.append(tuple(state[-1] for state in output))
        steps = torch.cat(outputs, -1) if bidirectional else outputs[0]
        if dropout and training and layer < number - 1:
            steps = F.dropout(steps, dropout)
    ends = [torch.stack(state) for state in zip(*last, strict=True)]
    return (steps.transpose(0, 1) if batch_first else steps, *ends)


def _all_steps(
    cell: _Cell, x: Tensor, first: Sequence[Tensor], weights: Sequence[Tensor], *, has_biases: bool
) -> tuple[Tensor, ...]:
    """Return the states after all steps of one direction of a layer, each [time, batch, width]."""
    of_inputs, of_states = (weights[2], weights[3]) if has_biases else (None, None)
    from_inputs = F.linear(x, weights[0], of_inputs)
    before = [state.expand(*x.shape[:2], -1) for state in first]
    # The states before all steps but the first follow from the inputs, so gradients pass through them.
    hidden = before[0][1:] + from_inputs[1:, :, : first[0].shape[-1]]
    from_states = [F.linear(state, weights[1], of_states) for state in (first[0][None], hidden)]
    states = cell(from_inputs, torch.cat(from_states), before)
    projected = weights[-1] if len(weights) in (3, 5) else None
    return states if projected is None else (F.linear(states[0], projected), *states[1:])


def _lstm(from_inputs: Tensor, from_states: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, ...]:
    enter, forget, new, leave = (from_inputs + from_states).chunk(4, -1)
    cells = forget.sigmoid() * before[1] + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * cells.tanh(), cells


def _gru(from_inputs: Tensor, from_states: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, ...]:
    reset, update, new = from_inputs.chunk(3, -1)
    of_reset, of_update, of_new = from_states.chunk(3, -1)
    proposed = (new + (reset + of_reset).sigmoid() * of_new).tanh()
    share = (update + of_update).sigmoid()
    return (share * before[0] + (1 - share) * proposed,)


def _plain(activation: Callable[[Tensor], Tensor]) -> _Cell:
    return lambda from_inputs, from_states, _: (activation(from_inputs + from_states),)


_CELLS: dict[Any, _Cell] = {
    torch.lstm: _lstm,
    torch.gru: _gru,
    torch.rnn_tanh: _plain(torch.tanh),
    torch.rnn_relu: _plain(torch.relu),
}

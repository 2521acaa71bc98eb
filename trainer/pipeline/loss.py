"""The loss of the last stage, run as a layer is: seeded, free to write into its inputs, named in errors."""

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from trainer.activation import Activation, flatten, unflatten
from trainer.errors import UserError, add_note
from trainer.models.model import Loss
from trainer.pipeline.inputs import WritableInputs
from trainer.pipeline.randomness import Randomness

_CLOSE = 0.01  # relative: rounding is smaller, and the difference between a sum and a mean larger


class LossForward:
    """Runs a loss.

    Args:
        loss: The loss; a module moves to the device.
        device: The device of the last stage.
        randomness: Seeds what it draws from.
    """

    def __init__(self, loss: Loss, device: torch.device, randomness: Randomness) -> None:
        self._loss = loss.to(device) if isinstance(loss, nn.Module) else loss
        self._device = device
        self._randomness = randomness
        self._inputs = WritableInputs()
        self._checked = False

    def train(self, mode: bool) -> None:
        """Set a loss that is a module to training or to inference."""
        if isinstance(self._loss, nn.Module):
            self._loss.train(mode)

    def run(self, micro_batch: int, output: Activation, target: Activation) -> Tensor:
        """Return the sum of the terms of a micro-batch, a 0-dimensional tensor.

        Raises:
            UserError: The loss returns something else, or a mean.
        """
        try:
            total = self._total(micro_batch, output, target)
            if not self._checked and torch.is_grad_enabled():
                self._checked = True
                self._check_sum(micro_batch, output, target, total.item())
        except Exception as error:
            add_note(error, f"in the loss: {self._randomness.place(micro_batch)}")
            raise
        return total

    def _total(self, micro_batch: int, output: Activation, target: Activation) -> Tensor:
        outputs, output_nest = flatten(output)
        targets, target_nest = flatten(target)
        number = len(outputs)

        def call(tensors: list[Tensor]) -> Tensor:
            self._randomness.seed_loss(micro_batch, self._device)
            total = self._loss(
                unflatten(tensors[:number], output_nest), unflatten(tensors[number:], target_nest)
            )
            return _scalar(total)

        return self._inputs.call(call, [*outputs, *targets])

    @torch.no_grad()
    def _check_sum(self, micro_batch: int, output: Activation, target: Activation, whole: float) -> None:
        """Check that the losses of two halves add up to the whole's, where a micro-batch has two halves.

        A mean gives twice the whole. A loss that compares samples with one another gives something else,
        which is legitimate: it follows the size of a micro-batch, and so does its training.

        Raises:
            UserError: It is a mean.
        """
        tensors = [tensor.detach() for part in (output, target) for tensor in flatten(part)[0]]
        size = len(tensors[0]) if tensors and tensors[0].dim() else 0
        if size < 2 or any(tensor.dim() == 0 or len(tensor) != size for tensor in tensors):  # noqa: PLR2004
            return
        halves: list[float] = []
        try:
            copy = LossForward(deepcopy(self._loss), self._device, self._randomness)  # it may count its calls
            for rows in (slice(size // 2), slice(size // 2, None)):
                parts = [_rows(part, rows) for part in (output, target)]
                if copy._loss.count(parts[1]) == 0:
                    return
                halves.append(copy._total(micro_batch, *parts).item())
        except Exception:  # whatever a custom loss needs a full micro-batch for
            return
        both = halves[0] + halves[1]
        if math.isclose(both, 2 * whole, rel_tol=_CLOSE) and not math.isclose(both, whole, rel_tol=_CLOSE):
            raise UserError(
                f"the loss returned the mean of its terms: {whole:.4g} for a micro-batch, {halves[0]:.4g} "
                f"and {halves[1]:.4g} for its halves. It must return their sum (reduction='sum'), and its "
                "`count` how many there are: micro-batches are added, and divided by the count of the whole "
                "batch"
            )


def _scalar(total: object) -> Tensor:
    if isinstance(total, Tensor) and total.numel() == 1:
        return total.reshape(())
    what = f"a tensor of shape {tuple(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
    raise UserError(
        f"the loss returned {what}: it must return the sum of its terms, a tensor with a single number"
    )


def _rows(part: Activation, rows: slice) -> Activation:
    tensors, nest = flatten(part)
    return unflatten([tensor.detach()[rows] for tensor in tensors], nest)


def added(numbers: Iterable[float]) -> float:
    """Return a sum, added in order; from Python 3.12 on, the builtin `sum` compensates: other bits."""
    return reduce(add, numbers, 0.0)


def count_of(loss: Loss, targets: Sequence[Activation]) -> float:
    """Return the number of terms of some micro-batches' losses.

    Raises:
        UserError: A count is negative, or no number.
    """
    total = 0.0
    for target in targets:
        count = loss.count(target)
        try:
            number = float(count)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if not (math.isfinite(number) and number >= 0):
            raise UserError(
                f"the loss's count returned {count!r}: it must return the number of terms of the sum, 0 or "
                "more"
            )
        total += number
    return total

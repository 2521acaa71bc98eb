"""The metrics of the last stage, run on its outputs in a validation, and once in the first training step."""

import logging
import math

import torch
from torch import Tensor

from trainer.activation import Activation, flatten, unflatten
from trainer.errors import UserError, add_note
from trainer.models.metrics import Metrics
from trainer.pipeline.inputs import WritableInputs
from trainer.pipeline.randomness import Randomness

_log = logging.getLogger(__name__)

Measured = dict[str, tuple[float, float]]


class Measures:
    """Runs metrics.

    Args:
        metrics: The metrics.
        device: The device of the last stage.
        randomness: Seeds what they draw from.
    """

    def __init__(self, metrics: Metrics, device: torch.device, randomness: Randomness) -> None:
        self._functions = dict(metrics.functions)
        self._asked = metrics.asked  # if not, one may not fit, and is left out
        self._device = device
        self._randomness = randomness
        self._inputs = {name: WritableInputs() for name in self._functions}
        self._checked = False

    def check(self, micro_batch: int, output: Activation, target: Activation) -> None:
        """Run them once, as a metric that fails should do so before hours of training, not after."""
        if not self._checked:
            self.run(micro_batch, output, target)

    @torch.no_grad()
    def run(self, micro_batch: int, output: Activation, target: Activation) -> Measured:
        """Return the sum and the count of every metric that fits the output.

        Raises:
            UserError: A metric returns something else.
        """
        measured = {}
        for name in list(self._functions):
            try:
                measured[name] = self._measure(name, micro_batch, output, target)
            except Exception as error:
                if self._asked or self._checked:
                    add_note(error, f"in the metric {name!r}: {self._randomness.place(micro_batch)}")
                    raise
                _log.info("metric %s left out, as it does not fit the model's output: %s", name, error)
                del self._functions[name]
        self._checked = True
        return measured

    def _measure(
        self, name: str, micro_batch: int, output: Activation, target: Activation
    ) -> tuple[float, float]:
        function = self._functions[name]
        outputs, output_nest = flatten(output)
        targets, target_nest = flatten(target)

        def call(tensors: list[Tensor]) -> tuple[float, float]:
            self._randomness.seed_loss(micro_batch, self._device)
            number = len(outputs)
            result = function(
                unflatten(tensors[:number], output_nest), unflatten(tensors[number:], target_nest)
            )
            return _pair(result)

        return self._inputs[name].call(call, [tensor.detach() for tensor in (*outputs, *targets)])


def _pair(result: object) -> tuple[float, float]:
    try:
        total, count = (float(each) for each in result)  # type: ignore[attr-defined]
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the metric returned {type(result).__name__}: it must return a sum and a count, two numbers"
        ) from error
    if not (math.isfinite(count) and count >= 0):
        raise UserError(f"the metric returned the count {count:g}: it must be 0 or greater")
    return total, count

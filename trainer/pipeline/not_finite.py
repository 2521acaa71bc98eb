"""Finds where numbers stop being finite: the step runs once more, and every layer is watched.

Looking costs a step, and nothing until then. A step's loss and gradient norm, which every rank knows before
the update, tell whether there is something to find. The step is the same when it is repeated: samples,
weights and random numbers are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainer.activation import Activation, flatten
from trainer.models.names import plain_parameters
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.recomputation import recomputing
from trainer.pipeline.tensor_bytes import tensors_in

_WEIGHTS, _FORWARD, _BACKWARD = range(3)
_LOSS = 1 << 30  # after every layer


@dataclass(frozen=True, order=True)
class Finding:
    """A place where numbers are not finite; the smallest one is where they first were not.

    Attributes:
        phase: Weights, forward or backward.
        micro_batch: The micro-batch, as the whole run numbers them.
        position: The layer's index; negative in a backward, which begins with the last.
        words: The place in words.
    """

    phase: int
    micro_batch: int
    position: int
    words: str


class Search:
    """Watches the layers of a rank while a step is repeated.

    Args:
        layers: The layers.
        first_micro_batch: The index of this replica's micro-batch 0 within the global batch.
    """

    def __init__(self, layers: Sequence[BuiltLayer], first_micro_batch: int) -> None:
        self._layers = layers
        self._first_micro_batch = first_micro_batch
        self._forwards: dict[tuple[str, bool], int] = {}  # by layer and whether recomputed: how many so far
        self._backward = 0  # the micro-batch whose gradient has come last
        self._findings: list[Finding] = []

    def look(
        self, train: Callable[[], Mapping[int, Tensor]], inputs: Mapping[int, Activation]
    ) -> Finding | None:
        """Run a step's forwards and backwards; return where numbers first stop being finite, if they do here.

        Args:
            train: Runs them, and returns the losses by micro-batch.
            inputs: The data's inputs by micro-batch; empty on ranks that read none.
        """
        for layer in self._layers:
            for name, parameter in plain_parameters(layer.module).items():
                if not _finite(parameter):
                    self._note(_WEIGHTS, 0, layer.index, f"the weights {layer.name}/{name}")
        for micro_batch, activation in inputs.items():
            if not all_finite(flatten(activation)[0]):
                self._note(_FORWARD, micro_batch, -1, "the data's inputs")
        with self._watching():
            losses = train()
        for micro_batch, loss in losses.items():
            if not _finite(loss):
                self._note(_FORWARD, micro_batch, _LOSS, "the loss")
        return min(self._findings, default=None)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        with ExitStack() as hooks:
            for layer in self._layers:
                hook = layer.module.register_forward_hook(partial(self._forward, layer))
                hooks.callback(hook.remove)
                for name, parameter in plain_parameters(layer.module).items():
                    if parameter.requires_grad:
                        watch = partial(self._weight_gradient, layer, name)
                        seen = parameter.register_hook(watch)  # type: ignore[no-untyped-call]
                        hooks.callback(seen.remove)
            yield

    def _forward(self, layer: BuiltLayer, _module: Any, _inputs: Any, output: Any) -> None:
        run = layer.name, recomputing()
        micro_batch = self._forwards.get(run, 0)  # both kinds of forwards come in the order of micro-batches
        self._forwards[run] = micro_batch + 1
        tensors = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
        if not recomputing() and not all_finite(tensors):
            self._note(_FORWARD, micro_batch, layer.index, f"the output of layer {layer.name!r}")
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._gradient, layer, micro_batch))  # type: ignore[no-untyped-call]

    def _gradient(self, layer: BuiltLayer, micro_batch: int, gradient: Tensor) -> None:
        self._backward = micro_batch
        if not _finite(gradient):
            words = f"the gradient of the output of layer {layer.name!r}"
            self._note(_BACKWARD, micro_batch, -2 * layer.index, words)

    def _weight_gradient(self, layer: BuiltLayer, name: str, gradient: Tensor) -> None:
        if not _finite(gradient):
            words = f"the gradient of {layer.name}/{name}"
            self._note(_BACKWARD, self._backward, -2 * layer.index + 1, words)

    def _note(self, phase: int, micro_batch: int, position: int, words: str) -> None:
        index = self._first_micro_batch + micro_batch
        place = "" if phase == _WEIGHTS else f", in micro-batch {index}"
        self._findings.append(Finding(phase, index, position, words + place))


def _finite(tensor: Tensor) -> bool:
    inexact = tensor.is_floating_point() or tensor.is_complex()
    values = tensor.detach()
    values = values.coalesce().values() if values.is_sparse else values
    return not inexact or bool(torch.isfinite(values).all())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether every number of some tensors is finite."""
    return all(map(_finite, tensors))

"""A stage: consecutive layers, each with its own graph, run forward and backward by micro-batch.

Autograd's graph never spans two layers. So the computation inside a layer cannot depend on where the model
is cut, a layer's memory is free as soon as its backward is done, and a layer's gradients are complete when
its last backward returns, with no need for hooks.

        inputs      [1] leaf     layer 0     [2] contiguous, cut     leaf     layer 1     ...
    forward  ------->  x0 ---------------->  y0 . . . . . . . . . .>  x1 ---------------->
    backward <-------  x0.grad <-----------  y0 <. . . . . . . . . .  x1.grad <-----------
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from trainer.activation import Activation, TreeSpec, flatten, unflatten
from trainer.models.model import Loss
from trainer.pipeline.graph import run_backward
from trainer.pipeline.layer import BuiltLayer, works_in_place
from trainer.pipeline.precision import Precision
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.recomputation import Recompute, Repeatable
from trainer.pipeline.weight_gradients import Deferral, Deferred, add_weight_gradients


@dataclass
class _Tape:
    """The tensors that a micro-batch's backward needs: every layer's leaves and outputs."""

    split: bool
    leaves: list[list[Tensor]] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)
    # By layer: the forward that a split backward has to recompute first.
    recompute: dict[int, Callable[[], tuple[list[Tensor], TreeSpec]]] = field(default_factory=dict)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


class Stage:
    """Consecutive layers on one device.

    Args:
        index: The stage's number.
        layers: Its layers, in order.
        device: The device of the layers.
        loss: The model's loss on the last stage; None elsewhere.
        randomness: Seeds the device before every layer's forward.
        on_layer_done: Called after every layer, to progress pending messages.
        recompute: By layer, what its backward recomputes; None: nothing.
        precision: The precision of the layers.
    """

    def __init__(
        self,
        index: int,
        layers: Sequence[BuiltLayer],
        device: torch.device,
        *,
        loss: Loss | None,
        randomness: Randomness,
        on_layer_done: Callable[[], None],
        recompute: Sequence[Recompute] | None = None,
        precision: Precision = Precision(),  # noqa: B008  (frozen)
    ) -> None:
        self.index = index
        self.layers = tuple(layers)
        self.device = device
        self.loss = loss
        self._randomness = randomness
        self._on_layer_done = on_layer_done
        self._recompute = tuple(recompute or [Recompute.NONE] * len(layers))
        self._precision = precision
        # By layer: the conversion of its outputs.
        self._convert = [precision.between_layers] * len(self.layers)
        if loss is not None:
            self._convert[-1] = precision.for_loss
        self._tapes: dict[int, _Tape] = {}
        self._deferral = Deferral(layer.module for layer in layers)
        self._deferred: dict[int, list[Deferred]] = {}  # by micro-batch, then by layer
        # Autograd forbids writes into a leaf, so these layers get copies.
        self._copied = [works_in_place(layer.module) for layer in layers]

    def train(self, mode: bool) -> None:
        """Set the layers to training (dropout on) or to inference."""
        for layer in self.layers:
            layer.module.train(mode)

    def forward(
        self, micro_batch: int, tensors: list[Tensor], nest: TreeSpec, *, split: bool = False
    ) -> tuple[list[Tensor], TreeSpec]:
        """Run the layers on a flattened activation; save tensors for the backward if gradients are enabled.

        Args:
            micro_batch: The micro-batch.
            tensors: The activation.
            nest: Its tree spec.
            split: Whether its backward will be split.
        """
        tape, saving = _Tape(split), torch.is_grad_enabled()
        for number, recompute in enumerate(self._recompute):
            leaves = [_leaf(tensor) for tensor in tensors]  # [1]
            if saving and recompute is not Recompute.NONE:
                run = partial(self._run_layer, number, micro_batch, nest)
                layer = Repeatable(recompute, run, *leaves)
                tensors, nest = layer.run()
                if split:
                    tape.recompute[number] = layer.recompute
            else:
                tensors, nest = self._run_layer(number, micro_batch, nest, *leaves)
            tape.leaves.append([leaf for leaf in leaves if leaf.requires_grad])
            tape.outputs.append([tensor for tensor in tensors if tensor.requires_grad])
            self._on_layer_done()
        if saving:
            self._tapes[micro_batch] = tape
        return tensors, nest

    def _run_layer(
        self, number: int, micro_batch: int, nest: TreeSpec, *leaves: Tensor
    ) -> tuple[list[Tensor], TreeSpec]:
        """Run a layer; a backward that recomputes calls this again with the same arguments."""
        layer = self.layers[number]
        inputs = [leaf.clone() for leaf in leaves] if self._copied[number] else list(leaves)
        if layer.module.training:
            self._randomness.seed_layer(layer.name, micro_batch, self.device)
        with self._precision.autocast(self.device):
            tensors, nest = flatten(layer.module(unflatten(inputs, nest)))
        return [self._convert[number](tensor).contiguous() for tensor in tensors], nest  # [2]

    def loss_sum(self, micro_batch: int, output: Activation, target: Activation) -> Tensor:
        """Return the sum of the losses of the last layer's output, recorded as the tape's last step."""
        assert self.loss is not None, f"stage {self.index} is not the last"
        tensors, nest = flatten(output)
        leaves = [_leaf(tensor) for tensor in tensors]
        total = self.loss(unflatten(leaves, nest), target)
        if torch.is_grad_enabled():
            self._tapes[micro_batch].leaves.append([leaf for leaf in leaves if leaf.requires_grad])
            self._tapes[micro_batch].outputs.append([total] if total.requires_grad else [])
        return total.detach()

    def backward(
        self,
        micro_batch: int,
        gradients: list[Tensor],
        complete: Callable[[BuiltLayer], None] | None = None,
    ) -> list[Tensor]:
        """Run the layers backward, and add to the parameters' gradients those that are not deferred.

        Args:
            micro_batch: The micro-batch.
            gradients: One for every differentiable output; on the last stage one for the sum of the losses.
            complete: Called with each layer after its backward; only given for the stage's last backward.

        Returns:
            One gradient for every differentiable input.
        """
        tape = self._tapes.pop(micro_batch)
        if not tape.split:
            return self._unwind(tape, gradients, complete)
        deferred: list[Deferred] = [[] for _ in self.layers]
        self._deferred[micro_batch] = deferred
        return self._unwind(tape, gradients, None, deferred)

    def _unwind(
        self,
        tape: _Tape,
        gradients: list[Tensor],
        complete: Callable[[BuiltLayer], None] | None,
        deferred: Sequence[Deferred] = (),
    ) -> list[Tensor]:
        for step in reversed(range(len(tape.outputs))):
            outputs, leaves = tape.outputs.pop(), tape.leaves.pop()
            if outputs and step in tape.recompute:
                outputs = [tensor for tensor in tape.recompute.pop(step)()[0] if tensor.requires_grad]
            if outputs and step < len(deferred):
                self._deferral.backward(self.layers[step].name, outputs, gradients, deferred[step])
            elif outputs:
                run_backward(outputs, gradients)
            # An output that nothing used has a gradient of zero, within a rank as across ranks.
            gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
            if complete is not None and step < len(self.layers):
                complete(self.layers[step])
            self._on_layer_done()
        return gradients

    def weight_gradients(
        self, micro_batch: int, complete: Callable[[BuiltLayer], None] | None = None
    ) -> None:
        """Compute the weight gradients that a split backward deferred, and add them to the parameters'.

        Args:
            micro_batch: The micro-batch.
            complete: As in `backward`.
        """
        deferred = self._deferred.pop(micro_batch)
        for layer in reversed(self.layers):
            add_weight_gradients(deferred.pop())
            if complete is not None:
                complete(layer)
            self._on_layer_done()

"""A stage: consecutive layers, each with a graph of its own, run forward and backward by micro-batch.

The graph of autograd never spans two layers. So what happens inside a layer cannot depend on where the
model is cut, a layer's memory is free as soon as its backward is done, and the gradients of a layer are
known to be complete, without any hook, when its last backward returns.

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
    """What a micro-batch's backward needs: of every layer, its leaves and its outputs."""

    split: bool
    leaves: list[list[Tensor]] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)
    # By layer, where a split backward begins with a forward once more: it.
    recompute: dict[int, Callable[[], tuple[list[Tensor], TreeSpec]]] = field(default_factory=dict)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


class Stage:
    """Consecutive layers on one device.

    Args:
        index: The stage's number.
        layers: Its layers, in order.
        device: Where they are.
        loss: The model's loss, on the last stage; else None.
        randomness: Seeds the device before every layer's forward.
        on_layer_done: Called behind every layer: the time for messages to move on.
        recompute: By layer, what its backward computes again; None: nothing.
        precision: What the layers compute in.
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
        # What becomes of a tensor that a layer returns.
        self._hand_on = [precision.between_layers] * len(self.layers)
        if loss is not None:
            self._hand_on[-1] = precision.for_loss
        self._tapes: dict[int, _Tape] = {}
        self._deferral = Deferral(layer.module for layer in layers)
        self._deferred: dict[int, list[Deferred]] = {}  # by micro-batch: what each layer has put off
        # Autograd forbids to write into a leaf: these layers get copies.
        self._copied = [works_in_place(layer.module) for layer in layers]

    def train(self, mode: bool) -> None:
        """Set the layers to train (dropout on, graphs kept) or to infer."""
        for layer in self.layers:
            layer.module.train(mode)

    def forward(
        self, micro_batch: int, tensors: list[Tensor], nest: TreeSpec, *, split: bool = False
    ) -> tuple[list[Tensor], TreeSpec]:
        """Run the layers on a flattened activation; keep what the backward needs while gradients are on.

        Args:
            micro_batch: The micro-batch.
            tensors: The activation.
            nest: How its tensors nest.
            split: Whether its backward will come in two parts.
        """
        tape, learning = _Tape(split), torch.is_grad_enabled()
        for number, recompute in enumerate(self._recompute):
            leaves = [_leaf(tensor) for tensor in tensors]  # [1]
            if learning and recompute is not Recompute.NONE:
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
        if learning:
            self._tapes[micro_batch] = tape
        return tensors, nest

    def _run_layer(
        self, number: int, micro_batch: int, nest: TreeSpec, *leaves: Tensor
    ) -> tuple[list[Tensor], TreeSpec]:
        """Run a layer; called again with the same where its backward recomputes."""
        layer = self.layers[number]
        inputs = [leaf.clone() for leaf in leaves] if self._copied[number] else list(leaves)
        if layer.module.training:
            self._randomness.seed_layer(layer.name, micro_batch, self.device)
        with self._precision.autocast(self.device):
            tensors, nest = flatten(layer.module(unflatten(inputs, nest)))
        return [self._hand_on[number](tensor).contiguous() for tensor in tensors], nest  # [2]

    def loss_sum(self, micro_batch: int, output: Activation, target: Activation) -> Tensor:
        """Return the loss's sum on the last layer's output, as one more step of the tape."""
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
        """Run the layers backward, adding to the parameters' gradients, all but what is put off.

        Args:
            micro_batch: Whose forward is undone.
            gradients: One for every differentiable output; on the last stage one for the loss's sum.
            complete: Called with each layer behind its backward, on the stage's last backward only.

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
        """Add to the parameters' gradients what a split backward has put off.

        Args:
            micro_batch: Whose backward was split.
            complete: As in `backward`.
        """
        deferred = self._deferred.pop(micro_batch)
        for layer in reversed(self.layers):
            add_weight_gradients(deferred.pop())
            if complete is not None:
                complete(layer)
            self._on_layer_done()

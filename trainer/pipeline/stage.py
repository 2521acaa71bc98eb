"""A stage: consecutive layers, each with its own graph, run forward and backward by micro-batch.

Autograd's graph never spans two layers. So the computation inside a layer cannot depend on where the model
is cut, a layer's memory is free as soon as its backward is done, and a layer's gradients are complete when
its last backward returns, with no need for hooks.

        inputs      [1] leaf     layer 0     [2] contiguous, cut     leaf     layer 1     ...
    forward  ------->  x0 ---------------->  y0 . . . . . . . . . .>  x1 ---------------->
    backward <-------  x0.grad <-----------  y0 <. . . . . . . . . .  x1.grad <-----------
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from trainer.activation import Activation, TreeSpec, flatten, unflatten
from trainer.errors import UserError, add_note
from trainer.models.deferring import Deferred
from trainer.models.metrics import Metrics
from trainer.models.model import Loss
from trainer.pipeline.forward import LayerForward
from trainer.pipeline.graph import run_backward
from trainer.pipeline.layer import BuiltLayer, limits_weights
from trainer.pipeline.loss import LossForward
from trainer.pipeline.measures import Measured, Measures
from trainer.pipeline.precision import Precision
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.recomputation import Recompute, Repeatable
from trainer.pipeline.weight_gradients import Deferral, add_weight_gradients


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
        metrics: What the last stage measures beside it.
        randomness: Seeds the device before every layer's forward.
        on_layer_done: Called after every layer, to progress pending messages.
        recompute: By layer, what its backward recomputes; None: nothing.
        precision: The precision of the layers.
        loss_layer: The loss, if it has parameters; else None.
        writes: By layer, whether it is known to write into its inputs.

    Attributes:
        parts: What has parameters: the layers and, if it has some, the loss.
        forwards: The forward of each layer.
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
        loss_layer: BuiltLayer | None = None,
        writes: Sequence[bool] | None = None,
        metrics: Metrics = Metrics(),  # noqa: B008  (frozen)
    ) -> None:
        self.index = index
        self.layers = tuple(layers)
        self.parts = self.layers if loss_layer is None else (*self.layers, loss_layer)
        self.device = device
        self._on_layer_done = on_layer_done
        self._recompute = tuple(
            Recompute.NONE if limits_weights(layer.module) else asked
            for layer, asked in zip(layers, recompute or [Recompute.NONE] * len(layers), strict=True)
        )
        self.forwards = [
            LayerForward(
                layer,
                index,
                device,
                randomness=randomness,
                precision=precision,
                convert=precision.for_loss
                if loss is not None and layer is layers[-1]
                else precision.between_layers,
                recomputed=recompute is not Recompute.NONE,
                writes=writes,
            )
            for layer, recompute, writes in zip(
                self.layers, self._recompute, writes or [False] * len(layers), strict=True
            )
        ]
        self._loss = None if loss is None else LossForward(loss, device, randomness)
        self._measures = Measures(metrics, device, randomness)
        self._mode: bool | None = None  # that the layers were set to
        self._tapes: dict[int, _Tape] = {}
        self._deferral = Deferral(layer.module for layer in layers)
        self._deferred: dict[int, list[Deferred]] = {}  # by micro-batch, then by layer

    def train(self, mode: bool) -> None:
        """Set the layers to training (dropout on) or to inference."""
        if mode is self._mode and all(layer.module.training is mode for layer in self.layers):
            return  # every step calls this, and it goes through every module
        self._mode = mode
        for layer in self.layers:
            layer.module.train(mode)
        if self._loss is not None:
            self._loss.train(mode)

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
                run = partial(self.forwards[number].run, micro_batch, nest)
                layer = Repeatable(recompute, run, *leaves)
                tensors, nest = layer.run()
                if split:
                    tape.recompute[number] = layer.recompute
            else:
                tensors, nest = self.forwards[number].run(micro_batch, nest, *leaves)
            tape.leaves.append([leaf for leaf in leaves if leaf.requires_grad])
            tape.outputs.append([tensor for tensor in tensors if tensor.requires_grad])
            self._on_layer_done()
        if saving:
            self._tapes[micro_batch] = tape
        return tensors, nest

    def loss_sum(self, micro_batch: int, output: Activation, target: Activation) -> Tensor:
        """Return the sum of the losses of the last layer's output, recorded as the tape's last step."""
        assert self._loss is not None, f"stage {self.index} is not the last"
        tensors, nest = flatten(output)
        leaves = [_leaf(tensor) for tensor in tensors]
        total = self._loss.run(micro_batch, unflatten(leaves, nest), target)
        if torch.is_grad_enabled():
            self._tapes[micro_batch].leaves.append([leaf for leaf in leaves if leaf.requires_grad])
            self._tapes[micro_batch].outputs.append([total] if total.requires_grad else [])
            self._measures.check(micro_batch, output, target)
        return total.detach()

    def measure(self, micro_batch: int, output: Activation, target: Activation) -> Measured:
        """Return the sum and the count of every metric of the last layer's output."""
        return self._measures.run(micro_batch, output, target)

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
            try:
                if outputs and step in tape.recompute:
                    outputs = [tensor for tensor in tape.recompute.pop(step)()[0] if tensor.requires_grad]
                if outputs and step < len(deferred):
                    self._deferral.backward(outputs, gradients, deferred[step])
                elif outputs:
                    run_backward(outputs, gradients)
            except RuntimeError as error:
                if step < len(self.layers):
                    self._explain(error, self.forwards[step])
                raise
            # An output that nothing used has a gradient of zero, within a rank as across ranks.
            gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
            if complete is not None and step < len(self.parts):
                complete(self.parts[step])
            self._on_layer_done()
        return gradients

    def _explain(self, error: RuntimeError, forward: LayerForward) -> None:
        """Add the layer's name to an error of its backward.

        Raises:
            UserError: The layer has changed weights that the backward needs.
        """
        add_note(error, f"in the backward of layer {forward.layer.name!r}")
        if forward.buffers.changes_weights and "modified by an inplace operation" in str(error):
            raise UserError(
                f"layer {forward.layer.name!r} changes its weights in its forward, and the backward of an "
                "earlier micro-batch needs them as they were: change them in the optimizer, or use a changed "
                "copy (weight.clamp(...), torch.nn.utils.parametrize)"
            ) from error

    def weight_gradients(
        self, micro_batch: int, complete: Callable[[BuiltLayer], None] | None = None
    ) -> None:
        """Compute the weight gradients that a split backward deferred, and add them to the parameters'.

        Args:
            micro_batch: The micro-batch.
            complete: As in `backward`.
        """
        deferred = self._deferred.pop(micro_batch)
        for part in self.parts[len(self.layers) :]:
            if complete is not None:
                complete(part)  # nothing of a loss is deferred
        for layer in reversed(self.layers):
            add_weight_gradients(deferred.pop())
            if complete is not None:
                complete(layer)
            self._on_layer_done()


def refuse_changed_weights(forwards: Iterable[LayerForward]) -> None:
    """Refuse layers that have changed their weights in a forward: replicas would do so differently.

    Raises:
        UserError: There is one.
    """
    for forward in forwards:
        if forward.buffers.changes_weights:
            raise UserError(
                f"layer {forward.layer.name!r} changes its weights in its forward, as "
                "nn.Embedding(max_norm=...) does. Replicas see different samples, so their weights would no "
                "longer be equal: train with one replica (layout.stages=<number of ranks>), or limit the "
                "weights where the layer uses them"
            )

"""Split backwards: input gradients first, deferred weight gradients later.

A forward is plain PyTorch and leaves autograd's graph. Some of its nodes have weights as inputs, and their
weight gradients can be deferred (`weight_nodes.py`):

         gradient of y                 first part: autograd runs the graph without the edges from these nodes
               |                       to their weights; each node saves x and the gradient of y
    x <---- [ node ] - - -> weight     second part: the weight gradients, by the kernels that autograd would
                                       have called, added in autograd's order

So the bits are those of a full backward. The first part computes all other gradients: of weights that are
computed from others (by a parametrisation, say) or also used elsewhere, of norms, of anything compiled.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from trainer.models.deferring import Deferred, Gradient, collecting, converted
from trainer.pipeline.graph import run_backward
from trainer.pipeline.weight_nodes import WEIGHT_NODES, WeightNode

# Computes the gradient of an operation between a node and a parameter.
Step: TypeAlias = Callable[[Gradient, Tensor], Tensor | None]


def add_weight_gradients(deferred: Deferred) -> None:
    """Compute the deferred gradients, freeing each as it is done, and add them to the parameters'."""
    uses: dict[nn.Parameter, list[Gradient]] = {}
    for parameter, gradient in deferred:
        uses.setdefault(parameter, []).append(gradient)
    deferred.clear()
    with torch.no_grad():
        for parameter in list(uses):
            total = _sum(uses.pop(parameter))  # as autograd does: sum the uses first
            if total is None:
                continue
            if parameter.grad is not None:
                parameter.grad.add_(total)
            elif total.stride() == parameter.stride():
                parameter.grad = total
            else:  # autograd gives a gradient its parameter's layout
                parameter.grad = torch.empty_like(parameter).copy_(total)


class Deferral:
    """Runs the first parts of split backwards.

    Args:
        layers: The modules of all layers whose backwards will be split.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        owners = Counter(parameter for layer in layers for parameter in layer.parameters())
        # Whether a parameter's gradients are added in the second part: never if several layers share it, else
        # as its first backward decided. If one micro-batch's were and the next one's were not, they would not
        # be added in order.
        self._defers = {parameter: False for parameter, number in owners.items() if number > 1}

    def backward(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor], deferred: Deferred) -> None:
        """Run the first part of a layer's backward.

        Args:
            outputs: The outputs of its graph.
            gradients: The gradient of each output.
            deferred: Receives the deferred gradients.
        """
        plan = _Plan(outputs, self._can_defer)
        postponed = self._decide(plan)
        before = [parameter.grad for parameter in postponed]
        for parameter in postponed:
            parameter.grad = None
        with collecting(deferred):
            plan.run(outputs, gradients)
        deferred += plan.deferred
        for parameter, gradient in zip(postponed, before, strict=True):
            deferred.append((parameter, partial(_itself, parameter.grad)))
            parameter.grad = gradient

    def _can_defer(self, leaf: Tensor) -> bool:
        return _is_free_parameter(leaf) and self._defers.get(leaf, True)  # type: ignore[call-overload]

    def _decide(self, plan: "_Plan") -> list[nn.Parameter]:
        """Return the parameters whose gradients come now, but must be added later.

        An earlier micro-batch used them otherwise (its sequences had another length, say), and deferred them.
        """
        for parameter, _ in plan.deferred:
            self._defers[parameter] = True
        parameters = [leaf for leaf in plan.immediate if isinstance(leaf, nn.Parameter)]
        return [parameter for parameter in parameters if self._defers.setdefault(parameter, False)]


class _Plan:
    """The division of one backward into two parts.

    Args:
        outputs: The outputs of the graph.
        can_defer: Whether nothing about a leaf itself prevents deferring its gradient.

    Attributes:
        deferred: The gradients of the second part, which can be computed once the first part has run.
        immediate: The leaves whose gradients the first part computes.
    """

    def __init__(self, outputs: Iterable[Tensor], can_defer: Callable[[Tensor], bool]) -> None:
        self.deferred: Deferred = []
        self.immediate: list[Tensor] = []
        self._nodes: dict[Any, WeightNode] = {}
        self._graph = graph = _Graph(outputs)
        for node in graph.leaves:
            leaf = node.variable
            deferrable = can_defer(leaf) and not graph.has_reentrant_checkpoint
            gradient = self._gradient_into(node, leaf, _STEPS) if deferrable else None
            if gradient is None:
                self.immediate.append(leaf)
            else:
                self.deferred.append((leaf, gradient))

    def run(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Run the first part."""
        if not self.deferred:
            run_backward(outputs, gradients)
            return
        # Asking for a node's edge makes autograd run the node, even if no input before it requires gradients.
        edges = [weights.edge for weights in self._nodes.values()]
        for node, weights in self._nodes.items():
            node.register_prehook(weights.save)
        run_backward(outputs, gradients, [*self.immediate, *edges])  # type: ignore[list-item]

    def _gradient_into(self, node: Any, leaf: Tensor, steps: Mapping[str, Step]) -> Gradient | None:
        """Return the function that computes the gradient flowing into a node; None if it cannot be deferred.

        Args:
            node: A leaf's node, or a step's between a weight node and the leaf.
            leaf: The leaf.
            steps: The steps that may still lie between.
        """
        gradients = []
        for user, place in self._graph.users(node):
            gradient = self._gradient_from(user, place, leaf, steps)
            if gradient is None:
                return None
            gradients.append(gradient)
        return gradients[0] if len(gradients) == 1 else partial(_sum, gradients)

    def _gradient_from(
        self, node: Any, place: int, leaf: Tensor, steps: Mapping[str, Step]
    ) -> Gradient | None:
        """Return the function that computes the gradient of a node's input; None if it cannot be deferred."""
        name = type(node).__name__
        if name in steps:
            rest = {other: step for other, step in steps.items() if other != name}
            gradient = self._gradient_into(node, leaf, rest)
            return gradient and partial(steps[name], gradient, leaf)
        kind = WEIGHT_NODES.get(name)
        if kind is None or not kind.takes(node, place, leaf):
            return None
        if node not in self._nodes:
            if not kind.can_defer(node):
                return None
            self._nodes[node] = kind(node)
        return partial(self._nodes[node].gradient, place)


class _Graph:
    """An autograd graph, traversed from its outputs.

    Args:
        outputs: The outputs.

    Attributes:
        leaves: The nodes of the leaves.
        has_reentrant_checkpoint: Whether a node runs a backward of its own, which cannot be split.
    """

    def __init__(self, outputs: Iterable[Tensor]) -> None:
        self.leaves: list[Any] = []
        self.has_reentrant_checkpoint = False
        # For every node: the nodes that it is an input of, and at which place; None stands for the outside.
        users: dict[Any, list[tuple[Any, int]]] = {
            tensor.grad_fn or get_gradient_edge(tensor).node: [(None, 0)] for tensor in outputs
        }
        self._users = users
        left = list(users)
        while left:
            node = left.pop()
            name = type(node).__name__
            if name == "AccumulateGrad":
                self.leaves.append(node)
            elif name == "CheckpointFunctionBackward":
                self.has_reentrant_checkpoint = True
            for place, (before, _) in enumerate(node.next_functions):
                if before in users:
                    users[before].append((node, place))
                elif before is not None:
                    users[before] = [(node, place)]
                    left.append(before)

    def users(self, node: Any) -> list[tuple[Any, int]]:
        """Return the nodes that a node is an input of, and at which place, in backward order."""
        users = self._users[node]
        if len(users) == 1 or (None, 0) in users:
            return users
        return sorted(users, key=lambda user: -user[0]._sequence_nr())  # the latest operation first


def _itself(gradient: Tensor | None) -> Tensor | None:
    return gradient


def _sum(gradients: Iterable[Gradient]) -> Tensor | None:
    """Return the sum in order, without those that are None; None if all are."""
    total = None
    for make in gradients:
        gradient = make()
        if gradient is not None:
            total = gradient if total is None else total + gradient
    return total


def _transposed(make: Gradient, _leaf: Tensor) -> Tensor | None:
    gradient = make()
    return None if gradient is None else gradient.t()


# The steps that may lie between a node and a parameter, each once: nn.Linear's transpose, autocast's copy.
_STEPS: Mapping[str, Step] = {"TBackward0": _transposed, "ToCopyBackward0": converted}


def _is_free_parameter(leaf: Tensor) -> bool:
    """Return whether a leaf is a parameter without gradient hooks."""
    hooked = leaf._backward_hooks or leaf._post_accumulate_grad_hooks
    return isinstance(leaf, nn.Parameter) and not hooked

"""Weight gradients as work for later: what splits a backward in two.

A forward is plain PyTorch's, and leaves autograd's graph. In it some nodes meet weights (`weight_nodes.py`):

         gradient of y                 first part: autograd's own run of the graph, but for the way from these
               |                       nodes to their weights; each keeps x and the gradient of y
    x <---- [ node ] - - -> weight     second part: the gradients of the weights, by the kernels that autograd
                                       would have called, added up in the order in which it would

So not a bit is different. What a node here does not explain has its gradient in the first part: weights that
are computed from others (parametrised ones, say) or also used elsewhere, norms, whatever is compiled.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from trainer.errors import UserError
from trainer.pipeline.graph import run_backward
from trainer.pipeline.weight_nodes import WEIGHT_NODES, WeightNode

# Makes a gradient; None where there is none after all.
Gradient: TypeAlias = Callable[[], Tensor | None]
# Does a step between a node and a parameter, too.
Step: TypeAlias = Callable[[Gradient, Tensor], Tensor | None]
# A parameter and what makes its gradient, for every use of a micro-batch in the order of the backward.
Deferred: TypeAlias = list[tuple[nn.Parameter, Gradient]]

_collecting: list[Deferred] = []  # where what is put off goes; empty outside of a split backward


def defer(parameter: nn.Parameter, gradient: Callable[[], Tensor]) -> bool:
    """Add a gradient to a parameter's in the second part of the backward under way, if it is split.

    For the `backward` of a `torch.autograd.Function` of one's own:

        x, weight = ctx.saved_tensors
        later = defer(ctx.weight, lambda: product(gradient, x))
        return gradient_of_x, None if later else product(gradient, x)

    Args:
        parameter: Whose gradient it is; all its uses put theirs off, or none does.
        gradient: Makes the gradient of this use, a new tensor in the parameter's shape; called with
            gradients off. Of another type it is converted, as autograd would.

    Returns:
        Whether it will be done: False where the backward is whole, and autograd adds up.
    """
    if not _collecting:
        return False
    _collecting[-1].append((parameter, partial(_cast, gradient, parameter)))
    return True


@contextmanager
def collecting(deferred: Deferred) -> Iterator[None]:
    """Let what the backwards within this context put off go into a list."""
    _collecting.append(deferred)
    try:
        yield
    finally:
        _collecting.pop()


def add_weight_gradients(deferred: Deferred) -> None:
    """Do what was put off, and forget it bit by bit."""
    uses: dict[nn.Parameter, list[Gradient]] = {}
    for parameter, gradient in deferred:
        uses.setdefault(parameter, []).append(gradient)
    deferred.clear()
    with torch.no_grad():
        for parameter in list(uses):
            total = _sum(uses.pop(parameter))  # first to one another, as autograd does
            if total is None:
                continue
            if parameter.grad is not None:
                parameter.grad.add_(total)
            elif total.stride() == parameter.stride():
                parameter.grad = total
            else:  # autograd lays gradients out as their parameters
                parameter.grad = torch.empty_like(parameter).copy_(total)


class Deferral:
    """Runs the first parts of split backwards.

    Args:
        layers: The modules of all layers whose backwards it will split.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        owners = Counter(parameter for layer in layers for parameter in layer.parameters())
        # Whether a parameter's gradients are put off. The first backward says it for all: where one waits and
        # the next one does not, micro-batches are not added in their order.
        self._put_off = {parameter: False for parameter, number in owners.items() if number > 1}

    def backward(
        self, layer: str, outputs: Sequence[Tensor], gradients: Sequence[Tensor], deferred: Deferred
    ) -> None:
        """Run a layer backward, all but what can be put off.

        Args:
            layer: The layer's name.
            outputs: The ends of its graph.
            gradients: One for each.
            deferred: Gets what is put off.

        Raises:
            UserError: The layer uses a weight in one micro-batch as it did not in an earlier one.
        """
        plan = _Plan(outputs, self._may_wait)
        self._decide(layer, plan)
        with collecting(deferred):
            plan.run(outputs, gradients)
        deferred += plan.deferred

    def _may_wait(self, leaf: Tensor) -> bool:
        return _may_wait(leaf) and self._put_off.get(leaf, True)  # type: ignore[call-overload]

    def _decide(self, layer: str, plan: "_Plan") -> None:
        for parameter, _ in plan.deferred:
            self._put_off[parameter] = True
        for leaf in plan.whole:
            if isinstance(leaf, nn.Parameter) and self._put_off.setdefault(leaf, False):
                raise UserError(
                    f"layer {layer!r} uses a weight of shape {tuple(leaf.shape)} in one micro-batch in a way "
                    "in which it did not in an earlier one, so its backward cannot be split: use a schedule "
                    "with whole backwards (schedule=1f1b)"
                )


class _Plan:
    """What the first part of a backward runs, and what it puts off.

    Args:
        outputs: The ends of the graph.
        may_wait: Whether a leaf's gradient may be put off, as far as the leaf is concerned.

    Attributes:
        deferred: The parameters whose gradients wait, and what makes them once the first part has run.
        whole: The leaves that have theirs in the first part.
    """

    def __init__(self, outputs: Iterable[Tensor], may_wait: Callable[[Tensor], bool]) -> None:
        self.deferred: Deferred = []
        self.whole: list[Tensor] = []
        self._nodes: dict[Any, WeightNode] = {}
        self._graph = graph = _Graph(outputs)
        for node in graph.leaves:
            leaf = node.variable
            waits = may_wait(leaf) and not graph.runs_its_own
            gradient = self._into(node, leaf, _STEPS) if waits else None
            if gradient is None:
                self.whole.append(leaf)
            else:
                self.deferred.append((leaf, gradient))

    def run(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Run the first part."""
        if not self.deferred:
            run_backward(outputs, gradients)
            return
        # A node that is asked for is run, also where nothing before it learns.
        asked = [weights.edge for weights in self._nodes.values()]
        for node, weights in self._nodes.items():
            node.register_prehook(weights.keep)
        run_backward(outputs, gradients, [*self.whole, *asked])  # type: ignore[list-item]

    def _into(self, node: Any, leaf: Tensor, steps: Mapping[str, Step]) -> Gradient | None:
        """Return what makes the gradient that flows into a node, if all of it can wait.

        Args:
            node: A leaf's node, or one on the way to it.
            leaf: The leaf.
            steps: What the way may still lead through.
        """
        gradients = []
        for user, place in self._graph.users(node):
            gradient = self._from(user, place, leaf, steps)
            if gradient is None:
                return None
            gradients.append(gradient)
        return gradients[0] if len(gradients) == 1 else partial(_sum, gradients)

    def _from(self, node: Any, place: int, leaf: Tensor, steps: Mapping[str, Step]) -> Gradient | None:
        """Return what makes the gradient of the input of a node at a place, if it can wait."""
        name = type(node).__name__
        if name in steps:
            rest = {other: step for other, step in steps.items() if other != name}
            gradient = self._into(node, leaf, rest)
            return gradient and partial(steps[name], gradient, leaf)
        kind = WEIGHT_NODES.get(name)
        if kind is None or not kind.fits(node, place, leaf):
            return None
        if node not in self._nodes:
            if not kind.can_wait(node):
                return None
            self._nodes[node] = kind(node)
        return partial(self._nodes[node].gradient, place)


class _Graph:
    """A graph of autograd, read from its end.

    Args:
        outputs: The ends.

    Attributes:
        leaves: The nodes of the leaves.
        runs_its_own: Whether a node runs a backward within, as reentrant checkpoints do, which must be whole.
    """

    def __init__(self, outputs: Iterable[Tensor]) -> None:
        self.leaves: list[Any] = []
        self.runs_its_own = False
        # For every node, which nodes it is an input of, and at which place; None is the outside.
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
                self.runs_its_own = True
            for place, (before, _) in enumerate(node.next_functions):
                if before in users:
                    users[before].append((node, place))
                elif before is not None:
                    users[before] = [(node, place)]
                    left.append(before)

    def users(self, node: Any) -> list[tuple[Any, int]]:
        """Return which nodes a node is an input of, and at which place, in the order of their backwards."""
        users = self._users[node]
        if len(users) == 1 or (None, 0) in users:
            return users
        return sorted(users, key=lambda user: -user[0]._sequence_nr())  # the latest operation first


def _sum(gradients: Iterable[Gradient]) -> Tensor | None:
    """Return the sum of those that there are, from the first to the last."""
    total = None
    for make in gradients:
        gradient = make()
        if gradient is not None:
            total = gradient if total is None else total + gradient
    return total


def _transposed(make: Gradient, _leaf: Tensor) -> Tensor | None:
    gradient = make()
    return None if gradient is None else gradient.t()


def _cast(make: Gradient, leaf: Tensor) -> Tensor | None:
    gradient = make()
    return None if gradient is None else gradient.to(leaf)


# What may stand between a node and a parameter, each once: nn.Linear's transposition, and autocast's copy.
_STEPS: Mapping[str, Step] = {"TBackward0": _transposed, "ToCopyBackward0": _cast}


def _may_wait(leaf: Tensor) -> bool:
    """Return whether a leaf is a parameter that has nothing done to its gradient by the way."""
    hooked = leaf._backward_hooks or leaf._post_accumulate_grad_hooks
    return isinstance(leaf, nn.Parameter) and not hooked

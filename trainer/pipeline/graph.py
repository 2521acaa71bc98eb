"""Runs of autograd's graph, as `torch.autograd.backward` starts them, without its checks in Python.

These take 0.1 to 0.2 ms of a call where the caches are full of numbers, and a layer is called once for every
micro-batch: 1 % of a step of a small GPT on a CPU. What is given here has its shape and type from the very
tensors that it is the gradient of.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.graph import GradientEdge, _engine_run_backward


def run_backward(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor], inputs: Sequence[Tensor | GradientEdge] = ()
) -> None:
    """Run the graph of some outputs backward, once.

    Args:
        outputs: Its ends.
        gradients: One for each, in its shape.
        inputs: What gets gradients, or is run; empty: all leaves.
    """
    _engine_run_backward(
        tuple(outputs),
        tuple(gradients),
        False,  # free the graph
        False,  # make no graph of the backward
        tuple(inputs),
        allow_unreachable=True,
        accumulate_grad=True,
    )

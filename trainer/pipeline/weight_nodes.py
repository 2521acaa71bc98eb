"""The nodes of autograd's graph whose weight gradients can be deferred.

An operation of the forward leaves a node in the graph, with the saved tensors of its backward. The classes
here compute weight gradients from the same tensors, with the kernels that autograd would have called. So the
bits are the same, whichever module ran the operation, in whichever precision.

    node                   operation                            inputs, weights in brackets
    AddmmBackward0         F.linear with a bias; addmm          [bias] x [weight]
    MmBackward0            F.linear without one; mm             x [weight]
    ConvolutionBackward0   convolutions, transposed ones too    x [weight] [bias]
    EmbeddingBackward0     F.embedding                          [weight]
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge


class WeightNode:
    """A node that has weights as inputs, from the first part of its backward to the second.

    Args:
        node: Autograd's node.

    Attributes:
        places: The indices of the inputs that may be weights.
        saved: The node's saved tensors that their gradients need.
        edge: The node, until the first part of the backward runs it.
    """

    places: ClassVar[tuple[int, ...]]
    saved: ClassVar[tuple[str, ...]]

    def __init__(self, node: Any) -> None:
        self.edge: GradientEdge | None = GradientEdge(node, 0)
        self._gradient: Tensor | None = None  # of the output
        self._tensors: list[Tensor | None] = []
        self._versions: list[int] = []
        self._made: dict[int, Tensor] = {}

    @classmethod
    def can_defer(cls, node: Any) -> bool:
        """Return whether such a node's weight gradients can be deferred.

        Saved tensors with unpack hooks, such as a checkpoint's, can be unpacked only once, and the node does.
        """
        hooks = [getattr(node, f"_raw_saved_{name}").unpack_hook for name in cls.saved]
        return all(hook is None for hook in hooks)

    @classmethod
    def takes(cls, _node: Any, place: int, _weight: Tensor) -> bool:
        """Return whether the gradient of a weight at this input can be deferred."""
        return place in cls.places

    def save(self, gradients: tuple[Tensor | None]) -> None:
        """Save the tensors for the second part; called before the node runs, with its output's gradient."""
        assert self.edge is not None, "a node runs once"
        node, self.edge = self.edge.node, None  # breaks a cycle: the graph refers to this by a hook
        (self._gradient,) = gradients
        if self._gradient is None:
            return
        for name in self.saved:
            tensor = getattr(node, f"_saved_{name}")
            self._tensors.append(None if tensor is None else tensor.detach())  # without the graph
        self._versions = _versions(self._tensors)
        self._save_settings(node)

    def gradient(self, place: int) -> Tensor | None:
        """Return the gradient of an input, once; None if the output has no gradient.

        Raises:
            RuntimeError: A tensor that it is computed from has been overwritten since.
        """
        if self._gradient is None:
            return None
        if place not in self._made:
            if _versions(self._tensors) != self._versions:
                raise RuntimeError(
                    "a weight gradient cannot be computed: a tensor that it needs has been modified by an "
                    "in-place operation since the first part of the backward"
                )
            self._made.update(self._make(self._gradient, place))
        return self._made.pop(place)

    def _save_settings(self, node: Any) -> None:
        """Save the settings of the operation, such as strides."""

    def _make(self, gradient: Tensor, place: int) -> dict[int, Tensor]:
        """Return the gradient of an input, with any others that the same kernel computes, by place."""
        raise NotImplementedError


def _versions(tensors: Iterable[Tensor | None]) -> list[int]:
    return [tensor._version for tensor in tensors if tensor is not None]


class _Mm(WeightNode):
    """x [rows, inputs] times a weight [inputs, outputs]."""

    places: ClassVar[tuple[int, ...]] = (1,)
    saved: ClassVar[tuple[str, ...]] = ("self",)

    def _save_settings(self, node: Any) -> None:
        # The layout of nn.Linear's weight, which is transposed before it gets here.
        self._by_columns = node._saved_mat2_sym_strides == (1, node._saved_mat2_sym_sizes[0])

    def _make(self, gradient: Tensor, place: int) -> dict[int, Tensor]:
        (x,) = self._tensors
        assert x is not None
        # As in autograd, the gradient has the layout of the weight.
        return {place: gradient.t().mm(x).t() if self._by_columns else x.t().mm(gradient)}


class _Addmm(_Mm):
    """The same product plus a bias."""

    places = (0, 2)
    saved = ("mat1",)

    @classmethod
    def can_defer(cls, node: Any) -> bool:
        return node._saved_alpha == node._saved_beta == 1 and super().can_defer(node)

    @classmethod
    def takes(cls, node: Any, place: int, weight: Tensor) -> bool:
        if place == 0:  # only a bias that is broadcast over rows
            return bool(tuple(weight.shape) == node._saved_mat2_sym_sizes[1:])
        return place in cls.places

    def _make(self, gradient: Tensor, place: int) -> dict[int, Tensor]:
        return {0: gradient.sum(0)} if place == 0 else super()._make(gradient, place)


class _Convolution(WeightNode):
    places = (1, 2)
    saved = ("input", "weight")

    def _save_settings(self, node: Any) -> None:
        self._settings = (
            node._saved_bias_sym_sizes_opt,
            node._saved_stride,
            node._saved_padding,
            node._saved_dilation,
            node._saved_transposed,
            node._saved_output_padding,
            node._saved_groups,
        )
        _, weight, bias = (function is not None for function, _ in node.next_functions)
        self._wanted = [False, weight, bias]

    def _make(self, gradient: Tensor, place: int) -> dict[int, Tensor]:
        made = torch.ops.aten.convolution_backward(gradient, *self._tensors, *self._settings, self._wanted)
        return {place: made[place] for place in self.places if self._wanted[place]}


class _Embedding(WeightNode):
    places = (0,)
    saved = ("indices",)

    @classmethod
    def can_defer(cls, node: Any) -> bool:
        return not node._saved_sparse and super().can_defer(node)

    def _save_settings(self, node: Any) -> None:
        padding = node._saved_padding_idx  # -1 means none, and may be read as an unsigned number
        self._settings = (
            node._saved_weight_sym_argsize_0,
            padding if padding < 1 << 63 else -1,
            node._saved_scale_grad_by_freq,
            False,  # not sparse
        )

    def _make(self, gradient: Tensor, place: int) -> dict[int, Tensor]:
        return {0: torch.ops.aten.embedding_backward(gradient, *self._tensors, *self._settings)}


WEIGHT_NODES: dict[str, type[WeightNode]] = {
    "AddmmBackward0": _Addmm,
    "MmBackward0": _Mm,
    "ConvolutionBackward0": _Convolution,
    "EmbeddingBackward0": _Embedding,
}

"""Where autograd's graph meets weights: the nodes whose weights can have their gradients later.

A node is what an operation of the forward leaves in the graph, with the tensors that its backward takes.
Those here make the gradients of their weights by the kernels that autograd would have called, on the same
tensors: so not a bit is different, whatever module ran the operation, and in whatever precision it ran.

    node                   operation                            its inputs, weights in brackets
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
    """A node that meets weights, from the first part of its backward to the second.

    Args:
        node: Autograd's.

    Attributes:
        places: Which of the node's inputs may be weights.
        saved: The tensors that the node has saved for their gradients.
        edge: The node, until its turn in the backward has come.
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
    def can_wait(cls, node: Any) -> bool:
        """Return whether weights of such a node can have their gradients later.

        What hooks unpack, as a checkpoint's do, can be asked for once, and the node asks for all of it.
        """
        hooks = [getattr(node, f"_raw_saved_{name}").unpack_hook for name in cls.saved]
        return all(hook is None for hook in hooks)

    @classmethod
    def fits(cls, _node: Any, place: int, _weight: Tensor) -> bool:
        """Return whether a weight that is the node's input at a place can, too."""
        return place in cls.places

    def keep(self, gradients: tuple[Tensor | None]) -> None:
        """Keep what the second part takes, as the node is given the gradient of its output."""
        assert self.edge is not None, "a node has one turn"
        node, self.edge = self.edge.node, None  # which holds the graph, which holds this
        (self._gradient,) = gradients
        if self._gradient is None:
            return
        for name in self.saved:
            tensor = getattr(node, f"_saved_{name}")
            self._tensors.append(None if tensor is None else tensor.detach())  # free of the graph
        self._versions = _versions(self._tensors)
        self._keep_settings(node)

    def gradient(self, place: int) -> Tensor | None:
        """Return the gradient of the input at a place, once; None if the output has none.

        Raises:
            RuntimeError: What it is made of has been written to since.
        """
        if self._gradient is None:
            return None
        if place not in self._made:
            if _versions(self._tensors) != self._versions:
                raise RuntimeError(
                    "a tensor that a weight's gradient is made of has been modified by an in-place operation "
                    "since the first part of the backward"
                )
            self._made.update(self._make(self._gradient, place))
        return self._made.pop(place)

    def _keep_settings(self, node: Any) -> None:
        """Keep what the node has saved beside tensors."""

    def _make(self, gradient: Tensor, place: int) -> dict[int, Tensor]:
        """Return by place what gradients of inputs come of making one."""
        raise NotImplementedError


def _versions(tensors: Iterable[Tensor | None]) -> list[int]:
    return [tensor._version for tensor in tensors if tensor is not None]


class _Mm(WeightNode):
    """x [rows, inputs] times a weight [inputs, outputs]."""

    places: ClassVar[tuple[int, ...]] = (1,)
    saved: ClassVar[tuple[str, ...]] = ("self",)

    def _keep_settings(self, node: Any) -> None:
        # As the weight of nn.Linear lies, which is transposed on the way here.
        self._by_columns = node._saved_mat2_sym_strides == (1, node._saved_mat2_sym_sizes[0])

    def _make(self, gradient: Tensor, place: int) -> dict[int, Tensor]:
        (x,) = self._tensors
        assert x is not None
        # Autograd lets the product's layout follow the weight's.
        return {place: gradient.t().mm(x).t() if self._by_columns else x.t().mm(gradient)}


class _Addmm(_Mm):
    """The same plus a bias."""

    places = (0, 2)
    saved = ("mat1",)

    @classmethod
    def can_wait(cls, node: Any) -> bool:
        return node._saved_alpha == node._saved_beta == 1 and super().can_wait(node)

    @classmethod
    def fits(cls, node: Any, place: int, weight: Tensor) -> bool:
        if place == 0:  # not one that is broadcast in another way, or not at all
            return bool(tuple(weight.shape) == node._saved_mat2_sym_sizes[1:])
        return place in cls.places

    def _make(self, gradient: Tensor, place: int) -> dict[int, Tensor]:
        return {0: gradient.sum(0)} if place == 0 else super()._make(gradient, place)


class _Convolution(WeightNode):
    places = (1, 2)
    saved = ("input", "weight")

    def _keep_settings(self, node: Any) -> None:
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
    def can_wait(cls, node: Any) -> bool:
        return not node._saved_sparse and super().can_wait(node)

    def _keep_settings(self, node: Any) -> None:
        padding = node._saved_padding_idx  # -1, which is none, may be read as an unsigned number
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

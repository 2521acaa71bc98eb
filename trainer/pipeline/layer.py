"""A layer of the model that this rank has built."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.models.model import Tie
from trainer.models.names import plain_parameters


@dataclass(frozen=True)
class BuiltLayer:
    """A layer with its module.

    Attributes:
        index: Its index in the model, from 0.
        name: Its name in the model.
        module: The module.
        ties: Its parameters that are copies of an earlier layer's.
    """

    index: int
    name: str
    module: nn.Module
    ties: tuple[Tie, ...] = ()

    @property
    def tied(self) -> frozenset[str]:
        """Return the names of the parameters that another layer owns."""
        return frozenset(tie.parameter for tie in self.ties)

    def owned(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters that this layer owns, by name, in the module's order."""
        return [(name, p) for name, p in plain_parameters(self.module).items() if name not in self.tied]

    def trained(self) -> list[nn.Parameter]:
        """Return the owned parameters that are not frozen."""
        return [parameter for _, parameter in self.owned() if parameter.requires_grad]


def dense_gradient(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's gradient as the norm, the average and most optimizers take it: dense.

    Without a gradient it gets zeros. `nn.Embedding(sparse=True)` gives sparse ones, to which the
    micro-batches of a step have added.
    """
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    elif parameter.grad.layout is not torch.strided:
        parameter.grad = parameter.grad.to_dense()
    return parameter.grad


def limits_weights(layer: nn.Module) -> bool:
    """Return whether a forward may scale weights, as `nn.Embedding(max_norm=...)` does.

    Doing so twice may give other bits than once, so such a forward is not recomputed.
    """
    return any(getattr(module, "max_norm", None) is not None for module in layer.modules())

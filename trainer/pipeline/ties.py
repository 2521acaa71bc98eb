"""Parameters that several layers share, within a stage or across stages.

Every use of a tied parameter is a copy with its own gradient, even within one process, so that every layout
adds in the same order. The uses' gradients are added to the owner's in the order of layers, the owner's sum
is averaged over the replicas, and every copy updates with that same gradient. A frozen parameter has no
gradient, and its stages exchange none.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from trainer.models.model import Layer
from trainer.models.names import plain_parameters
from trainer.pipeline.layer import BuiltLayer, dense_gradient
from trainer.pipeline.stage import Stage
from trainer.schedule.actions import Tied


def tied_stages(layers: Sequence[Layer], stage_of: Sequence[int]) -> tuple[Tied, ...]:
    """Return the pairs of stages that share parameters, in the order of the uses' layers."""
    index = {layer.name: i for i, layer in enumerate(layers)}
    pairs = [
        Tied(owner=stage_of[index[tie.owner]], use=stage_of[i])
        for i, layer in enumerate(layers)
        for tie in layer.ties
    ]
    return tuple(dict.fromkeys(pairs))


class TiedParameters:
    """The tied parameters of this rank's stages, both owners and uses.

    Args:
        stages: This rank's stages.
        layers: Every layer of the model.
        stage_of: The stage of every layer.
    """

    def __init__(self, stages: Mapping[int, Stage], layers: Sequence[Layer], stage_of: Sequence[int]) -> None:
        modules = {layer.name: layer.module for stage in stages.values() for layer in stage.layers}
        stage_by_name = {layer.name: stage_of[i] for i, layer in enumerate(layers)}
        self._owners: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        self._uses: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        self._owner_names = {tie.owner for layer in layers for tie in layer.ties}
        for layer in layers:
            for tie in layer.ties:
                pair = stage_by_name[tie.owner], stage_by_name[layer.name]
                if tie.owner in modules:
                    owned = plain_parameters(modules[tie.owner])[tie.owner_parameter]
                    self._owners[pair] += [owned] if owned.requires_grad else []
                if layer.name in modules:
                    used = plain_parameters(modules[layer.name])[tie.parameter]
                    self._uses[pair] += [used] if used.requires_grad else []

    def is_owner(self, layer: BuiltLayer) -> bool:
        """Return whether another layer uses a parameter of this one."""
        return layer.name in self._owner_names

    def gradients_of_uses(self, *, owner: int, use: int) -> list[Tensor]:
        """Return the gradients that a stage's uses send to the owning stage."""
        return [dense_gradient(parameter) for parameter in self._uses[owner, use]]

    def gradients_of_owners(self, *, owner: int, use: int) -> list[Tensor]:
        """Return the averaged gradients that the owning stage sends to a stage's uses."""
        return [dense_gradient(parameter) for parameter in self._owners[owner, use]]

    def add_to_owners(self, received: Sequence[Tensor], *, owner: int, use: int) -> None:
        """Add the uses' gradients to the owners'."""
        for parameter, gradient in zip(self._owners[owner, use], received, strict=True):
            dense_gradient(parameter).add_(gradient)

    def give_to_uses(self, received: Sequence[Tensor], *, owner: int, use: int) -> None:
        """Replace the uses' gradients by the owners' averaged ones."""
        for parameter, gradient in zip(self._uses[owner, use], received, strict=True):
            dense_gradient(parameter).copy_(gradient)

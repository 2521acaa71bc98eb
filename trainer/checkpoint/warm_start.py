"""A warm start: step 0 with the weights of a checkpoint and nothing else of it, for new data or new tasks."""

from collections.abc import Collection, Sequence
from pathlib import Path

from trainer.checkpoint.checkpoint import Checkpoint, checkpoint_at
from trainer.config.schema import CheckpointConfig
from trainer.errors import UserError
from trainer.models.model import Model
from trainer.models.names import choose_layers, own_name
from trainer.pipeline.layer import BuiltLayer


def warm_start(config: CheckpointConfig, layers: Sequence[BuiltLayer], model: Model) -> Path | None:
    """Put the weights and buffers of `checkpoint.warm_start`, if there is one, into layers.

    `checkpoint.warm_start_layers` says which layers take theirs; the others keep what they have. A tied
    parameter goes with its owner: it takes the owner's weight if the owner takes it, and only then. The
    checkpoint may be of another layout, optimizer, seed or data.

    Args:
        config: The run's.
        layers: What this process holds of the model, as `build_layer` makes them.
        model: The model.

    Returns:
        The checkpoint, or None if the configuration has none.

    Raises:
        UserError: There is no checkpoint, a pattern matches no layer, or a layer that is to take its weights
            is not in the checkpoint or has other parameters there.
    """
    if config.warm_start is None:
        return None
    names = [layer.name for layer in model.layers]
    key = "checkpoint.warm_start_layers"
    chosen = {name for pattern in config.warm_start_layers for name in choose_layers(names, pattern, key)}
    checkpoint = Checkpoint(checkpoint_at(config.warm_start, "checkpoint.warm_start"))
    for name in names:
        if name in chosen and name not in checkpoint.layers:
            raise _differs(checkpoint, f"there is no layer {name!r} among its {len(checkpoint.layers)}")
    for layer in layers:
        _check(layer, checkpoint, chosen)
    checkpoint.restore_weights(layers, chosen)
    return checkpoint.path


def _check(layer: BuiltLayer, checkpoint: Checkpoint, chosen: Collection[str]) -> None:
    """Raise a UserError unless the layer has the parameters that it takes, and no others are left behind."""
    for name, parameter in layer.module.named_parameters():
        owner, owner_name = own_name(layer.name, name, layer.ties)
        if owner in chosen:
            there = checkpoint.shapes(owner).get(owner_name)
            _compare(checkpoint, f"{owner}: {owner_name}", there, tuple(parameter.shape))
    if layer.name in chosen:
        ours = [name for name, _ in layer.owned()]
        for name, there in checkpoint.shapes(layer.name).items():
            if name not in ours:
                _compare(checkpoint, f"{layer.name}: {name}", there, None)


def _compare(
    checkpoint: Checkpoint, name: str, there: tuple[int, ...] | None, here: tuple[int, ...] | None
) -> None:
    if there != here:
        words = ["no parameter" if shape is None else f"of shape {shape}" for shape in (there, here)]
        raise _differs(checkpoint, f"{name} is {words[0]} there, and {words[1]} here")


def _differs(checkpoint: Checkpoint, what: str) -> UserError:
    return UserError(
        f"checkpoint.warm_start={checkpoint.path}: {what}; "
        "name in checkpoint.warm_start_layers only layers that are the same in both models"
    )

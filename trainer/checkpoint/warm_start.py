"""Warm starts: step 0 with only the weights of a checkpoint, for new data or new tasks."""

from collections.abc import Collection, Sequence
from pathlib import Path

from trainer.checkpoint.checkpoint import Checkpoint
from trainer.checkpoint.folders import checkpoint_at
from trainer.config.schema import CheckpointConfig
from trainer.errors import UserError
from trainer.models.model import Model
from trainer.models.names import choose_layers, own_name, plain_parameters
from trainer.pipeline.layer import BuiltLayer


def warm_start(config: CheckpointConfig, layers: Sequence[BuiltLayer], model: Model) -> Path | None:
    """Load the weights and buffers of `checkpoint.warm_start`, if it is set, into layers.

    `checkpoint.warm_start_layers` chooses the layers that load theirs; the others keep their own. A tied
    parameter follows its owner: it gets the owner's weight if and only if the owner is chosen. The checkpoint
    may come from another layout, optimizer, seed or data.

    Args:
        config: The run's.
        layers: The layers that this process holds, from `build_layer`.
        model: The model.

    Returns:
        The checkpoint's path, or None if none is configured.

    Raises:
        UserError: There is no checkpoint, a pattern matches no layer, or a chosen layer is missing from the
            checkpoint or has other parameters there.
    """
    if config.warm_start is None:
        return None
    names = [layer.name for layer in model.parts]
    key = "checkpoint.warm_start_layers"
    chosen = {name for pattern in config.warm_start_layers for name in choose_layers(names, pattern, key)}
    checkpoint = Checkpoint(checkpoint_at(config.warm_start, "checkpoint.warm_start"))
    for name in names:
        if name in chosen and name not in checkpoint.layers:
            raise _differs(
                checkpoint, f"there is no layer {name!r} among its {len(checkpoint.layers)} layers"
            )
    for layer in layers:
        _check(layer, checkpoint, chosen)
    checkpoint.restore_weights(layers, chosen)
    return checkpoint.path


def _check(layer: BuiltLayer, checkpoint: Checkpoint, chosen: Collection[str]) -> None:
    """Raise a UserError unless a chosen layer has exactly the parameters that the checkpoint has for it."""
    for name, parameter in plain_parameters(layer.module).items():
        owner, owner_name = own_name(layer.name, name, layer.ties)
        if owner in chosen:
            saved = checkpoint.shapes(owner).get(owner_name)
            _compare(checkpoint, f"{owner}/{owner_name}", saved, tuple(parameter.shape))
    if layer.name in chosen:
        owned = [name for name, _ in layer.owned()]
        for name, saved in checkpoint.shapes(layer.name).items():
            if name not in owned:
                _compare(checkpoint, f"{layer.name}/{name}", saved, None)


def _compare(
    checkpoint: Checkpoint, name: str, saved: tuple[int, ...] | None, ours: tuple[int, ...] | None
) -> None:
    if saved != ours:
        words = ["no such parameter" if shape is None else f"shape {shape}" for shape in (saved, ours)]
        raise _differs(checkpoint, f"{name}: {words[0]} in the checkpoint, {words[1]} in this model")


def _differs(checkpoint: Checkpoint, what: str) -> UserError:
    return UserError(
        f"checkpoint.warm_start={checkpoint.path}: {what}; "
        "name in checkpoint.warm_start_layers only layers that are the same in both models"
    )

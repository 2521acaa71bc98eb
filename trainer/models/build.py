"""Builds the configured model and checks it."""

import re
from collections.abc import Mapping
from dataclasses import replace

from trainer.config.check import check_part
from trainer.config.registry import chosen, import_builder
from trainer.config.schema import LossConfig, ModelConfig
from trainer.data.dataset import Data
from trainer.errors import UserError
from trainer.models.losses import build_loss
from trainer.models.model import LOSS, Layer, Model

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # safe as a file name


def build_model(config: ModelConfig, data: Data, loss: LossConfig | None = None) -> Model:
    """Return the configured model for this data, with the configured loss, if there is one.

    Raises:
        UserError: No model has a configuration of this class, a value is out of range or does not fit the
            data, a custom target cannot be imported or called, or the model is invalid.
    """
    choice = chosen("model", config)
    check_part(config, "model.")
    model: Model = import_builder(choice.build)(config, data)
    own = None if loss is None else build_loss(loss)
    model = model if own is None else replace(model, loss=own)
    check_model(model)
    return model


def check_model(model: Model) -> None:
    """Raise a UserError unless the layers have distinct names, and every tie's owner is an earlier layer."""
    if not model.layers:
        raise UserError("the model has no layers: it needs at least one")
    earlier: dict[str, Layer] = {}
    for layer in model.layers:
        if not _NAME.fullmatch(layer.name):
            raise UserError(
                f"the model's layer name {layer.name!r} cannot name a file: "
                "use letters, digits, '_', '-' and '.', and do not start with '.' or '-'"
            )
        if layer.name in earlier:
            raise UserError(f"two of the model's layers are named {layer.name!r}: names must be distinct")
        _check_ties(layer, earlier)
        earlier[layer.name] = layer
    if LOSS in earlier and len(model.parts) > len(model.layers):
        raise UserError(f"a layer of the model is named {LOSS!r}, as its loss is, which has parameters too")


def _check_ties(layer: Layer, earlier: Mapping[str, Layer]) -> None:
    """Raise a UserError unless each tied parameter of a layer has one owner, which is not tied itself.

    Args:
        layer: The layer.
        earlier: The layers before it, by name; their ties are checked already.
    """
    owners: dict[str, str] = {}
    for tie in layer.ties:
        if tie.owner not in earlier:
            raise UserError(
                f"layer {layer.name!r} ties its {tie.parameter!r} to layer {tie.owner!r}, which does not "
                f"come before it; the layers before it are {', '.join(sorted(earlier)) or 'none'}"
            )
        owner = f"{tie.owner_parameter!r} of layer {tie.owner!r}"
        if tie.parameter in owners:
            raise UserError(
                f"layer {layer.name!r} ties its {tie.parameter!r} twice, to {owners[tie.parameter]} and to "
                f"{owner}: a parameter has one owner, so remove one of the two ties"
            )
        owners[tie.parameter] = owner
        for other in earlier[tie.owner].ties:
            if other.parameter == tie.owner_parameter:
                raise UserError(
                    f"layer {layer.name!r} ties its {tie.parameter!r} to {owner}, which is itself tied: "
                    f"tie it to the owner of both, {other.owner_parameter!r} of layer {other.owner!r}"
                )

"""From the configuration to the model it names."""

import re

from trainer.config import CustomModelConfig, GPTConfig, ModelConfig, SimpleNetConfig
from trainer.data.dataset import Data
from trainer.errors import UserError
from trainer.imports import call, load
from trainer.models.gpt import gpt
from trainer.models.model import Model
from trainer.models.simplenet import simplenet

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # fit for a file name


def build_model(config: ModelConfig, data: Data) -> Model:
    """Return the configured model for this data.

    Raises:
        UserError: The configuration does not fit the data, the user's own target cannot be imported or
            called, or what it returns is not a sound model.
    """
    if isinstance(config, GPTConfig):
        model = gpt(config, data)
    elif isinstance(config, SimpleNetConfig):
        model = simplenet(config, data)
    elif isinstance(config, CustomModelConfig):
        model = call(load(config.target, "model.target"), config.target, "model", data, **config.options)
        if not isinstance(model, Model):
            raise UserError(
                f"model.target={config.target} returned {type(model).__name__}: "
                "it must return a trainer.models.model.Model"
            )
    else:
        raise UserError(f"model.name={config.name} is none of gpt, simplenet, custom")
    check_model(model)
    return model


def check_model(model: Model) -> None:
    """Raise a UserError unless the layers have distinct names and ties that point to earlier layers."""
    if not model.layers:
        raise UserError("the model has no layers: it needs at least one")
    earlier: set[str] = set()
    for layer in model.layers:
        if not _NAME.fullmatch(layer.name):
            raise UserError(
                f"the model's layer name {layer.name!r} cannot name a file: "
                "use letters, digits, '_', '-' and '.', and do not begin with '.' or '-'"
            )
        if layer.name in earlier:
            raise UserError(f"two of the model's layers are called {layer.name!r}: names must be distinct")
        for tie in layer.ties:
            if tie.owner not in earlier:
                raise UserError(
                    f"layer {layer.name!r} ties its {tie.parameter!r} to layer {tie.owner!r}, which does not "
                    f"come before it; the layers before it are {', '.join(sorted(earlier)) or 'none'}"
                )
        earlier.add(layer.name)

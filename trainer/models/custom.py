"""A custom model, by import path."""

from trainer.config.import_path import call, load
from trainer.config.schema import CustomModelConfig
from trainer.data.dataset import Data
from trainer.errors import UserError
from trainer.models.model import Model


def custom(config: CustomModelConfig, data: Data) -> Model:
    """Return the model that the configured target makes for the data.

    Raises:
        UserError: The target cannot be imported or called, or does not return a model.
    """
    model = call(load(config.target, "model.target"), config.target, "model.target", data, **config.options)
    if not isinstance(model, Model):
        raise UserError(
            f"model.target={config.target} returned {type(model).__name__}: "
            "it must return a trainer.models.model.Model"
        )
    return model

"""The model of a run, from the configuration in its folder."""

import importlib.util
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trainer.config.schema import HFConfig
from trainer.errors import UserError


def read_model(checkpoint: Path) -> HFConfig:
    """Return the configuration of the model of a checkpoint within its run's folder.

    Raises:
        UserError: The run's configuration is not there, its model is not one of Hugging Face's, or
            `transformers` is not installed.
    """
    file = checkpoint.parent.parent / "config.yaml"
    try:
        model: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(file))["model"]  # type: ignore[call-overload, index, assignment]
    except Exception as error:
        raise UserError(f"{file}, the run's configuration, cannot be read: {error}") from error
    name = model.get("name")
    if name != HFConfig.name:
        raise UserError(
            f"the run's model is {name}: only models of Hugging Face's (model=hf) are exported; the weights "
            "of others are in the checkpoint's safetensors files"
        )
    if importlib.util.find_spec("transformers") is None:
        raise UserError("this needs transformers: pip install 'transformers>=5.24' (Python 3.11 or newer)")
    known = {field.name for field in fields(HFConfig)}
    return HFConfig(**{key: value for key, value in model.items() if key in known})

"""What the configurations of custom models, data and optimizers have in common."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from trainer.config.fields import plain


@dataclass
class CustomConfig:
    """Something custom, by import path."""

    name: str = "custom"
    target: str = plain(MISSING, "what to call, as `package.module:callable`")
    options: dict[str, Any] = plain({}, "keyword arguments for the target")

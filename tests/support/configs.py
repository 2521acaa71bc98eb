"""Configurations to change and check."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from trainer.config.compose import register
from trainer.config.schema import AdamWConfig, Config, GPTConfig, TextConfig

CONF = Path(__file__).parents[2] / "conf"


def composed(*overrides: str, conf: Path = CONF) -> DictConfig:
    """Return the configuration of a command line, as Hydra composes it."""
    register()
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("config", overrides=["run.dir=run", *overrides])


def valid() -> Config:
    """Return the schema's defaults, with values for the keys that have none."""
    config = Config(
        model=GPTConfig(),
        data=TextConfig(path="text", cache="cache"),
        optimizer=AdamWConfig(),
        schedule="1f1b",
    )
    config.train.steps = 1
    config.run.dir = "run"
    return config

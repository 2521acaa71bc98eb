"""The configuration of how replicas stay together. To add a way: its module, and its declaration here."""

from dataclasses import dataclass

from omegaconf import MISSING

from trainer.config.custom import CustomConfig
from trainer.config.fields import plain
from trainer.config.registry import choice


@dataclass
class UpdateConfig:
    """What every way to update replicas has."""

    name: str = plain(MISSING, "how replicas stay together; `update=...` sets it")


@choice("update", build="trainer.replication.synchronous:Synchronous")
@dataclass
class SynchronousConfig(UpdateConfig):
    """Every step averages the gradients of all replicas: see `averaging` and `optimizer.sharded`."""

    name: str = "sync"


@choice("update", build="trainer.replication.custom:custom")
@dataclass
class CustomUpdateConfig(CustomConfig, UpdateConfig):
    """Custom: `target(parts, **options)` returns a `trainer.replication.replication.Replication`."""

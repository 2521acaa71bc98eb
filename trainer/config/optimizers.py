"""The configuration of every optimizer. To add one: its builder, and its declaration here."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from trainer.config.custom import CustomConfig
from trainer.config.fields import below_one, not_negative, one_of, plain, positive, share, text
from trainer.config.registry import choice


@dataclass
class LRScheduleConfig:
    """The learning rate over the steps."""

    name: str = one_of("constant", ("constant", "cosine", "linear"), "how the learning rate decays")
    warmup: int = not_negative(0, "steps over which the learning rate grows linearly from 0")
    final: float = share(0.0, "share of the peak learning rate at which a decay ends")


@dataclass
class GroupConfig:
    """Parameters with settings of their own."""

    match: str = text(MISSING, "pattern of their names, as in `train.freeze`", "a pattern, such as block.*")
    lr: float | None = not_negative(None, "peak learning rate; null takes the optimizer's")
    weight_decay: float | None = not_negative(None, "weight decay, of biases too; null takes the optimizer's")


@dataclass
class OptimizerConfig:
    """What every optimizer has."""

    name: str = plain(MISSING, "the optimizer's name; `optimizer=...` sets it")
    lr: float = not_negative(MISSING, "peak learning rate")
    weight_decay: float = not_negative(0.0, "weight decay; spares biases and normalisation weights")
    clip: float | None = positive(None, "largest global gradient norm; null does not clip")
    lr_schedule: LRScheduleConfig = field(default_factory=LRScheduleConfig)
    groups: list[Any] = plain(
        [], "parameters with settings of their own, as `{match, lr, weight_decay}`; the first match wins"
    )
    sharded: bool = plain(False, "whether replicas share out the optimizer's state; the results are the same")

    def state_per_weight(self) -> int:
        """Return how many numbers the optimizer keeps for each weight."""
        return 2  # as Adam does; a custom one cannot be asked


@choice("optimizer", build="trainer.optim.optimizers:adamw")
@dataclass
class AdamWConfig(OptimizerConfig):
    """Adam with decoupled weight decay."""

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.1
    clip: float | None = 1.0
    beta1: float = below_one(0.9, "decay of the mean of the gradients")
    beta2: float = below_one(0.95, "decay of the mean of their squares")
    epsilon: float = positive(1e-8, "added to the denominator")


@choice("optimizer", build="trainer.optim.optimizers:sgd")
@dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent."""

    name: str = "sgd"
    lr: float = 0.01
    momentum: float = below_one(0.0, "share of the last update that the next one keeps")
    nesterov: bool = plain(False, "whether the momentum is Nesterov's")

    def state_per_weight(self) -> int:
        """Return how many numbers the optimizer keeps for each weight."""
        return int(self.momentum > 0)


@choice("optimizer", build="trainer.optim.optimizers:custom")
@dataclass
class CustomOptimizerConfig(CustomConfig, OptimizerConfig):
    """A custom optimizer: `target(parameter_groups, lr=..., **options)` returns a torch Optimizer.

    Where it is sharded, it sees on each replica the parameters of one shard alone: what it computes from
    several parameters together, such as a norm of them all, then depends on the number of replicas.
    """

"""Builds the optimizer of a rank's parameters, in groups that share a learning rate and a weight decay."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.registry import chosen, import_builder
from trainer.config.schema import GroupConfig, OptimizerConfig
from trainer.errors import UserError
from trainer.models.model import Model
from trainer.models.names import Name, Parameters, chooses, own_name, plain_parameters
from trainer.optim.initial import remember_initial_values
from trainer.optim.modes import has_modes
from trainer.pipeline.layer import BuiltLayer


def build_optimizer(
    config: OptimizerConfig,
    layers: Sequence[BuiltLayer],
    has: Callable[[nn.Parameter], bool] = lambda _: True,
) -> torch.optim.Optimizer | None:
    """Return the optimizer of a rank's parameters, or None if the rank has none to train.

    Weight decay excludes parameters with fewer than two dimensions (biases, normalisation weights), unless an
    entry of `config.groups` sets a decay for them. Every group of the optimizer stores its peak learning rate
    as "peak", for `set_learning_rates`.

    Args:
        config: The optimizer's settings.
        layers: The rank's layers.
        has: Whether this replica's optimizer updates a trained parameter, rather than another replica's.

    Its initial groups and attributes are remembered: a checkpoint holds what steps change in them. One that
    trains other weights than it evaluates (see `trainer.optim.modes`) starts in training mode.

    Raises:
        UserError: No optimizer has a configuration of this class, or a custom one cannot be imported or needs
            something that the trainer does not do.
    """
    members: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for layer in layers:
        for name, parameter in plain_parameters(layer.module).items():
            if parameter.requires_grad and has(parameter):
                settings = _settings(config, own_name(layer.name, name, layer.ties), parameter)
                members.setdefault((*settings, parameter.is_complex()), []).append(parameter)
    if not members:
        return None
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": lr,
            "weight_decay": decay,
            **({"fused": False} if is_complex else {}),  # torch's fused optimizers have no complex numbers
        }
        for (lr, decay, is_complex), parameters in members.items()
    ]
    build = import_builder(chosen("optimizer", config).build)
    optimizer: torch.optim.Optimizer = build(config, groups)
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    _start_training(optimizer, config)
    remember_initial_values(optimizer)
    return optimizer


def _start_training(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> None:
    """Switch an optimizer that has modes to training."""
    if has_modes(optimizer):
        if config.sharded:
            raise UserError(
                f"optimizer.sharded=true does not work with {type(optimizer).__name__}, which trains other "
                "weights than it evaluates, and could switch only its own share: set optimizer.sharded=false"
            )
        optimizer.train()  # type: ignore[attr-defined]


def state_per_weight(config: OptimizerConfig) -> int:
    """Return the number of elements of optimizer state for each weight; for a custom optimizer, Adam's."""
    return config.state_per_weight()


def _settings(config: OptimizerConfig, name: Name, parameter: nn.Parameter) -> tuple[float, float]:
    """Return a parameter's peak learning rate and weight decay."""
    lr, decay = config.lr, config.weight_decay if parameter.dim() >= 2 else 0.0  # noqa: PLR2004
    entry = next((entry for entry in config.groups if chooses(entry.match, name)), None)
    if entry is not None:
        lr = lr if entry.lr is None else entry.lr
        decay = decay if entry.weight_decay is None else entry.weight_decay
    return lr, decay


def check_groups(groups: Sequence[GroupConfig], model: Model) -> None:
    """Raise a UserError if an entry of `optimizer.groups` matches no parameter of the model."""
    parameters = Parameters(model)
    for number, entry in enumerate(groups):
        parameters.choose(entry.match, f"optimizer.groups.{number}.match")


def state_bytes(optimizer: torch.optim.Optimizer | None) -> int:
    """Return the bytes of an optimizer's state."""
    states = optimizer.state.values() if optimizer is not None else ()
    return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))

"""The buffers of the reference: running statistics, from a step's inputs at once; each replica's others."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.verify.replica_sum import Named


class Statistics:
    """The running statistics of a batch normalization, computed from all its inputs of a step at once."""

    def __init__(self, module: Any, *, frozen: bool) -> None:
        self.module = module
        self._frozen = frozen
        self._before = _copies(module)
        self._inputs: list[Tensor] = []
        module.register_forward_pre_hook(self._record)

    def update(self, *, skipped: bool) -> None:
        """Undo the forwards' updates and, unless the step is skipped, update the statistics once."""
        module = self.module
        for name, buffer in module.named_buffers():
            buffer.copy_(self._before[name])
        if self._inputs and not self._frozen and not skipped:  # a custom train() may leave it evaluating
            values = torch.cat(self._inputs, dim=1)
            module.num_batches_tracked += 1
            momentum = module.momentum
            if momentum is None:  # a mean over all steps
                momentum = 1 / int(module.num_batches_tracked)
            module.running_mean.lerp_(values.mean(1).to(module.running_mean), momentum)
            module.running_var.lerp_(values.var(1).to(module.running_var), momentum)
        self._inputs = []
        self._before = _copies(module)

    def take(self, seen: Named) -> None:
        """Replace the statistics computed here with the launch's.

        Args:
            seen: The launch's, by their names in the module.
        """
        for name, buffer in self.module.named_buffers():
            buffer.copy_(seen[name])
        self._before = _copies(self.module)

    def _record(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:  # [batch, channel, ...] as [channel, everything else]
            self._inputs.append(inputs[0].detach().double().transpose(0, 1).flatten(1))


def _copies(module: nn.Module) -> Named:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def statistics_of(modules: dict[str, nn.Module]) -> list[Statistics]:
    """Return the running statistics of all batch normalizations of layers."""
    found = []
    for layer in modules.values():
        parameters = list(layer.parameters())
        frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        for module in layer.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                found.append(Statistics(module, frozen=frozen))
    return found


class ReplicaBuffers:
    """What forwards change in buffers, apart for each replica, whose forwards see its own samples only.

    Args:
        modules: The layers.
        replicas: The number of replicas.
    """

    def __init__(self, modules: Iterable[nn.Module], replicas: int) -> None:
        self._owners = [
            module
            for layer in modules
            for module in layer.modules()
            if not (isinstance(module, _BatchNorm) and module.running_mean is not None)
        ]
        self._of = [self._copies() for _ in range(replicas)]
        self._before = self._of
        self._now = 0

    def switch_to(self, replica: int) -> None:
        """Put the buffers of a replica into the modules."""
        self._of[self._now] = [dict(module._buffers) for module in self._owners]
        self._now = replica
        for module, buffers in zip(self._owners, self._of[replica], strict=True):
            module._buffers.update(buffers)

    def begin_step(self) -> None:
        """Copy the buffers of every replica, for a step that may be skipped."""
        self._before = []
        for replica in range(len(self._of)):
            self.switch_to(replica)
            self._before.append(self._copies())

    def forget_step(self) -> None:
        """Return the buffers of every replica to what they were when the step began."""
        self._of = self._before
        for module, buffers in zip(self._owners, self._of[self._now], strict=True):
            module._buffers.update(buffers)

    def _copies(self) -> list[dict[str, Tensor | None]]:
        """Return copies; modules that share a buffer share its copy."""
        buffers = [buffer for module in self._owners for buffer in module._buffers.values()]
        made = {id(buffer): buffer.clone() for buffer in buffers if buffer is not None}
        return [
            {name: made.get(id(buffer)) for name, buffer in module._buffers.items()}
            for module in self._owners
        ]

"""Running statistics of batch normalisation: once a step, from the whole global batch, in every layout.

While it trains, batch normalisation normalises each micro-batch by itself. What it keeps for evaluation must
not follow from how micro-batches are dealt to replicas, nor from how often a forward is run. So its forward
leaves the running statistics alone, and writes the micro-batch's mean and variance into scratch buffers
instead, as it would with a momentum of 1: that costs nothing. Sums of them, over micro-batches in their order
and then over replicas in theirs, give the mean and the unbiased variance of the global batch, and these move
the running statistics by the module's momentum, once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from trainer.distributed.world import Communicator
from trainer.errors import UserError
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.recomputation import recomputing


class RunningStatistics:
    """The running statistics of a rank's layers.

    A layer that is frozen, with no parameter that learns, keeps its own.

    Args:
        layers: The layers; their modules get hooks.

    Raises:
        UserError: A layer has a normalisation whose statistics would follow the layout.
    """

    def __init__(self, layers: Sequence[BuiltLayer]) -> None:
        self._norms: list[_Norm] = []
        self._others: dict[str, nn.Module] = {}
        for layer in layers:
            parameters = list(layer.module.parameters())
            frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
            for name, module in layer.module.named_modules():
                _refuse_others(f"{layer.name}/{name}", module)
                if isinstance(module, _BatchNorm) and module.running_mean is not None:
                    self._norms.append(_Norm(module, frozen))
                else:
                    self._others[f"{layer.name}/{name}"] = module

    def versions_of_others(self) -> dict[str, tuple[int, int]]:
        """Return by name what changes with every other buffer that is saved: forwards must leave it alone."""
        return {
            f"{place}: {name}": (id(buffer), buffer._version)
            for place, module in self._others.items()
            for name, buffer in module._buffers.items()
            if buffer is not None and name not in module._non_persistent_buffers_set
        }

    def update(self, replicas: Communicator) -> None:
        """Move the running statistics by what a step has seen; all ranks of a data-parallel group call it."""
        if not self._norms:
            return
        mine = np.concatenate([norm.take_sums() for norm in self._norms])
        everyone = replicas.all_gather(mine, [len(mine)] * replicas.size).reshape(replicas.size, -1)
        total = np.zeros_like(mine)
        for sums in everyone:
            total += sums
        ends = np.cumsum([norm.length for norm in self._norms])
        for norm, end in zip(self._norms, ends, strict=True):
            norm.move(torch.from_numpy(total[end - norm.length : end]))

    def forget(self) -> None:
        """Leave the running statistics as they are: the step that was seen does not count."""
        for norm in self._norms:
            norm.take_sums()


class _Norm:
    """One module's sums: [count, count * mean per channel, sum of squares per channel] in float64."""

    def __init__(self, module: _BatchNorm, frozen: bool) -> None:
        assert module.running_mean is not None
        self._module = module
        self._frozen = frozen
        self._channels = len(module.running_mean)
        self.length = 1 + 2 * self._channels
        self._kept: dict[str, Any] = {}
        self._momentum = module.momentum
        self._sums = self._no_sums()
        module.register_forward_pre_hook(self._before)
        # Also where a forward that runs again stops early: all that the backward needs is there.
        module.register_forward_hook(self._behind, always_call=True)

    def take_sums(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the sums of the step, and begin the next step's."""
        sums, self._sums = self._sums, self._no_sums()
        taken: np.ndarray[Any, np.dtype[np.float64]] = sums.cpu().numpy()
        return taken

    def move(self, sums: Tensor) -> None:
        """Move the running statistics towards a global batch's."""
        count = float(sums[0])
        if self._frozen or count < 2:  # noqa: PLR2004  (no variance)
            return
        mean, squares = sums[1:].chunk(2)
        mean = mean / count
        variance = (squares / count - mean * mean).clamp_(min=0) * (count / (count - 1))
        tracked = self._module.num_batches_tracked
        assert tracked is not None
        tracked += 1
        # Without a momentum, the mean over all steps.
        momentum = 1 / tracked.item() if self._momentum is None else self._momentum
        for running, seen in ((self._module.running_mean, mean), (self._module.running_var, variance)):
            assert running is not None
            running.mul_(1 - momentum).add_(seen.to(running), alpha=momentum)

    def _no_sums(self) -> Tensor:
        running = self._module.running_mean
        assert running is not None
        return torch.zeros(self.length, dtype=torch.float64, device=running.device)

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if module.training:
            # New ones each time: the backward insists that they have not changed since.
            self._kept = dict(module._buffers)
            module._buffers.update(
                {name: torch.zeros_like(b) for name, b in self._kept.items() if b is not None}
            )
            self._module.momentum = 1.0

    def _behind(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if not module.training:
            return
        mean, variance = (module.get_buffer(f"running_{name}").double() for name in ("mean", "var"))
        module._buffers.update(self._kept)
        self._module.momentum = self._momentum
        if recomputing():
            return
        count = inputs[0].numel() // self._channels
        self._sums[0] += count
        self._sums[1:].add_(torch.cat([mean * count, variance * (count - 1) + mean * mean * count]))


def _refuse_others(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.SyncBatchNorm):
        raise UserError(
            f"{name} is a SyncBatchNorm, which needs torch.distributed and would normalise by whatever "
            "micro-batches run at once: use BatchNorm, whose running statistics follow the global batch"
        )
    if isinstance(module, _InstanceNorm) and module.track_running_stats:
        raise UserError(
            f"{name} is an InstanceNorm that tracks running statistics, which would follow the layout: "
            "use track_running_stats=False"
        )

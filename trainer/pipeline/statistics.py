"""Running statistics of batch normalisation: updated once a step, from the full global batch, in any layout.

In training, batch normalisation normalises each micro-batch by itself. But the running statistics that it
keeps for evaluation must not depend on the assignment of micro-batches to replicas, nor on how often a
forward runs. So its forward does not update them. Scratch buffers take their place, with a momentum of 1, and
the same kernel writes the micro-batch's mean and variance there at no extra cost. Their sums, over
micro-batches in order and then over replicas in order, give the mean and the unbiased variance of the global
batch. These update the running statistics once, by the module's momentum.
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

    A frozen layer, which has parameters but trains none of them, keeps its statistics.

    Args:
        layers: The layers; their normalisations get forward hooks.

    Raises:
        UserError: A layer has a normalisation whose statistics would depend on the layout.
    """

    def __init__(self, layers: Sequence[BuiltLayer]) -> None:
        self._norms: list[_Norm] = []
        for layer in layers:
            parameters = list(layer.module.parameters())
            frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
            for name, module in layer.module.named_modules():
                _refuse_others(f"{layer.name}/{name}", module)
                if isinstance(module, _BatchNorm) and module.running_mean is not None:
                    self._norms.append(_Norm(module, frozen))

    def update(self, replicas: Communicator) -> None:
        """Update the running statistics from a step; all ranks of a data-parallel group call this."""
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
        """Discard the sums of a skipped step, and keep the running statistics."""
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
        self._buffers: dict[str, Any] = {}
        self._momentum = module.momentum
        self._sums = self._no_sums()
        module.register_forward_pre_hook(self._before)
        # Always: a recomputed forward raises to stop early, once it has all that the backward needs.
        module.register_forward_hook(self._after, always_call=True)

    def take_sums(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the sums of the step, and reset them."""
        sums, self._sums = self._sums, self._no_sums()
        taken: np.ndarray[Any, np.dtype[np.float64]] = sums.cpu().numpy()
        return taken

    def move(self, sums: Tensor) -> None:
        """Move the running statistics towards those of a global batch.

        Args:
            sums: The sums over the global batch.
        """
        count = float(sums[0])
        if self._frozen or count < 2:  # noqa: PLR2004  (one value has no variance)
            return
        mean, squares = sums[1:].chunk(2)
        mean = mean / count
        variance = (squares / count - mean * mean).clamp_(min=0) * (count / (count - 1))
        tracked = self._module.num_batches_tracked
        assert tracked is not None
        tracked += 1
        # Momentum None means a mean over all steps.
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
            # New buffers each time: the backward checks that they have not changed since.
            self._buffers = dict(module._buffers)
            module._buffers.update(
                {name: torch.zeros_like(b) for name, b in self._buffers.items() if b is not None}
            )
            self._module.momentum = 1.0

    def _after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if not module.training:
            return
        mean, variance = (module.get_buffer(f"running_{name}").double() for name in ("mean", "var"))
        module._buffers.update(self._buffers)
        self._module.momentum = self._momentum
        if recomputing():
            return
        count = inputs[0].numel() // self._channels
        self._sums[0] += count
        self._sums[1:].add_(torch.cat([mean * count, variance * (count - 1) + mean * mean * count]))


def _refuse_others(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.SyncBatchNorm):
        raise UserError(
            f"{name} is a SyncBatchNorm, which needs torch.distributed and would normalise across whichever "
            "micro-batches run at once: use BatchNorm, whose running statistics are those of the global batch"
        )
    if isinstance(module, _InstanceNorm) and module.track_running_stats:
        raise UserError(
            f"{name} is an InstanceNorm that tracks running statistics, which would depend on the layout: "
            "use track_running_stats=False"
        )

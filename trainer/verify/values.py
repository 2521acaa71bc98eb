"""Gradients, weights and buffers of a rank after a step: gathered on rank 0, or as digests."""

import hashlib
from collections.abc import Iterator

from safetensors.torch import load, save
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.models.names import plain_name, plain_parameters
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.tensor_bytes import bytes_of
from trainer.run import Run
from trainer.verify.comparison import one_nan

KINDS = ("gradient", "weight", "buffer")
Named = dict[str, Tensor]  # by "layer/name"


class Values:
    """Gradients, weights and buffers of a rank's layers, including copies of tied parameters."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._gradients: Named = {}

    def keep_gradients(self) -> None:
        """Copy the gradients before they are clipped."""
        self._gradients = {
            f"{layer.name}/{name}": parameter.grad.clone()
            for layer in self._run.layers
            for name, parameter in plain_parameters(layer.module).items()
            if parameter.grad is not None
        }

    def gather(self, kind: str) -> Iterator[tuple[str, Named]]:
        """Yield the name and the values of each of the first replica's layers on rank 0; nothing elsewhere.

        Every rank must call it and exhaust it. Only one layer at a time is in memory.
        """
        run = self._run
        if run.replica > 0:
            return
        group = run.groups.model_parallel
        mine = {layer.index: layer for layer in run.layers}
        stage_of = [*run.plan.partition.stage_of, run.plan.layout.stages - 1]  # the last is the loss's
        for index, (part, stage) in enumerate(zip(run.model.parts, stage_of, strict=False)):
            name, owner = part.name, run.plan.layout.group_rank_of(stage)
            if group.rank == 0:
                yield name, self._of(mine[index], kind) if owner == 0 else load(group.receive_bytes(owner))
            elif group.rank == owner:
                named = self._of(mine[index], kind)
                on_host = {name: value.cpu().contiguous() for name, value in named.items()}
                group.send_bytes(save(on_host), 0)

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of every value, by "kind layer/name".

        The kinds are those of `KINDS`, and "statistic" for buffers that are running statistics.
        """
        return {
            f"{'statistic' if kind == 'buffer' and _is_statistic(layer, value) else kind} {name}": sha256(
                value
            )
            for layer in self._run.layers
            for kind in KINDS
            for name, value in self._of(layer, kind).items()
        }

    def _of(self, layer: BuiltLayer, kind: str) -> Named:
        if kind == "gradient":
            names = [f"{layer.name}/{name}" for name in plain_parameters(layer.module)]
            return {name: self._gradients[name] for name in names if name in self._gradients}
        module = layer.module
        named = module.named_buffers() if kind == "buffer" else module.named_parameters()
        return {f"{layer.name}/{plain_name(name)}": value.detach() for name, value in named}


def _is_statistic(layer: BuiltLayer, value: Tensor) -> bool:
    norms = (module for module in layer.module.modules() if isinstance(module, _BatchNorm))
    return any(buffer.data_ptr() == value.data_ptr() for norm in norms for buffer in norm.buffers())


def sha256(tensor: Tensor) -> str:
    """Return the digest of a tensor's bits; all NaNs count as the same."""
    return hashlib.sha256(bytes_of(one_nan(tensor.cpu()))).hexdigest()

"""The same training in a single process: a plain loop over replicas and micro-batches.

It shares only the layers, the loss, the data, and the optimizer and its settings with the code that it
checks. Seeds, initial weights, ties, the assignment of micro-batches, the counts, the sum over replicas, the
norm, clipping, precision, the loss scale and running statistics are implemented here a second time, from the
documentation, so that a mistake in either implementation shows. Keep it that way. Autograd sees the full
model as one graph.
"""

import math
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from trainer.activation import Activation
from trainer.checkpoint.warm_start import warm_start
from trainer.config.schema import Config
from trainer.data.dataset import Data, Dataset
from trainer.models.model import Model
from trainer.optim.build import build_optimizer
from trainer.optim.learning_rate import set_learning_rates
from trainer.pipeline.layer import BuiltLayer
from trainer.verify.replica_sum import Named, ReplicaSum


class Reference:
    """The full model, trained in a plain loop.

    Args:
        config: The run's configuration.
        model: The run's model.
        data: The run's data.
        replicas: The launch's number of replicas.
        steps: The number of steps of the full run, which learning-rate schedules depend on.
        device: The device to compute on, of the same kind as the launch's.
    """

    def __init__(
        self, config: Config, model: Model, data: Data, *, replicas: int, steps: int, device: torch.device
    ) -> None:
        self._config = config
        self._model = model
        self._data = data
        self._replicas = replicas
        self._steps = steps
        self._device = device
        self._modules = _build_modules(model, config.train.seed, device)
        layers = [
            BuiltLayer(i, layer.name, self._modules[layer.name], layer.ties)
            for i, layer in enumerate(model.layers)
        ]
        warm_start(config.checkpoint, layers, model)
        self._optimizer = build_optimizer(config.optimizer, layers)
        self._parameters = {
            f"{layer}/{name}": parameter
            for layer, module in self._modules.items()
            for name, parameter in module.named_parameters()
        }
        self._buffers = {
            f"{layer}/{name}": buffer
            for layer, module in self._modules.items()
            for name, buffer in module.named_buffers()
        }
        self._owners = {  # by copy of a tied parameter
            f"{layer.name}/{tie.parameter}": f"{tie.owner}/{tie.owner_parameter}"
            for layer in model.layers
            for tie in layer.ties
        }
        self._statistics = _running_statistics(self._modules)
        self._compute = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision, torch.float32)
        self._loss_scale = 2.0**16 if config.precision == "fp16" else 1.0
        self._gradients: Named = {}
        self._errors: Named = {}

    def step(self, number: int, samples: NDArray[np.int64]) -> float:
        """Compute the gradients of a step; return its loss, the mean over the global batch.

        Args:
            number: The step, counted from 1.
            samples: The indices of the global batch's samples.
        """
        for module in self._modules.values():
            module.train()
        averaging, size = self._config.averaging, self._config.batch.micro_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        counts = [int(self._model.loss.count(self._data.training.targets(batch))) for batch in batches]
        loss = 0.0
        total = ReplicaSum(averaging, self._replicas, skips=self._config.precision == "fp16")
        for indices in np.array_split(np.arange(len(batches)), self._replicas):
            divisor = sum(counts[i] for i in indices) if averaging.op == "adasum" else sum(counts)
            for parameter in self._parameters.values():
                parameter.grad = None
            for i in indices:
                loss += self._forward_backward(number, i, batches[i], 1 / divisor if divisor else 0.0)
            total.add(self._gradients_of_owners())
        self._gradients = self._with_copies(self._unscaled(total.result()))
        self._errors = self._with_copies(self._unscaled(total.errors()))
        return loss / sum(counts) if sum(counts) else 0.0

    def take_gradients(self, gradients: Named) -> None:
        """Replace the gradients computed here with the launch's for the next update."""
        for name, gradient in gradients.items():
            self._parameters[name].grad = gradient.to(self._device, copy=True)

    def update(self, step: int) -> float:
        """Clip the gradients and update the weights; return the norm before clipping.

        With precision=fp16 a step whose norm is not finite is skipped, and halves the loss scale. (The scale
        would double after 2,000 good steps; no verification is that long.)
        """
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        own = [gradient for name, gradient in gradients.items() if name not in self._owners]
        squares = 0.0
        for gradient in own:  # the built-in `sum` compensates from Python 3.12 on
            squares += float(torch._foreach_norm([gradient])[0]) ** 2
        norm = math.sqrt(squares)
        skipped = self._config.precision == "fp16" and not math.isfinite(norm)
        for statistics in self._statistics:
            statistics.update(skipped=skipped)
        if skipped:
            self._loss_scale /= 2
            return norm
        largest = self._config.optimizer.clip
        if largest is not None and norm > largest:
            for gradient in gradients.values():
                gradient.mul_(largest / norm)
        if self._optimizer is not None:
            set_learning_rates(self._optimizer, self._config.optimizer.lr_schedule, step, self._steps)
            self._optimizer.step()
        return norm

    def values(self, kind: str, layer: str | None = None) -> Named:
        """Return every "gradient", "weight" or "buffer" of all layers, or of one, by "layer/name"."""
        named: Named
        if kind == "gradient":
            named = self._gradients
        elif kind == "weight":
            named = {name: parameter.detach() for name, parameter in self._parameters.items()}
        else:
            named = self._buffers
        return {n: tensor for n, tensor in named.items() if layer is None or n.startswith(f"{layer}/")}

    def allowed(self, kind: str, name: str) -> Tensor | None:
        """Return the bound on a value's difference, by element; None: equal bits.

        Running statistics differ by rounding: this class computes them from all inputs at once, the launch
        from sums.
        """
        if kind == "gradient":
            return self._errors.get(name)
        return self._buffers[name].abs() * 1e-5 + 1e-6 if kind == "buffer" and name in self._buffers else None

    @torch.no_grad()
    def validate(self, samples: int) -> float:
        """Return the mean loss on the first validation samples."""
        for module in self._modules.values():
            module.eval()
        size, dataset = self._config.batch.micro_size, self._data.validation
        total, count = 0.0, 0
        for start in range(0, samples, size):
            batch = np.arange(start, min(start + size, samples))
            total += self._loss(dataset, batch, None).item()
            count += int(self._model.loss.count(dataset.targets(batch)))
        return total / count if count else 0.0

    def _forward_backward(self, step: int, index: int, batch: NDArray[np.int64], scale: float) -> float:
        loss = self._loss(self._data.training, batch, (step, index))
        if loss.requires_grad:
            torch.autograd.backward(loss, torch.full_like(loss, scale * self._loss_scale))
        return loss.item()

    def _loss(self, dataset: Dataset, batch: NDArray[np.int64], place: tuple[int, int] | None) -> Tensor:
        """Return the sum of a micro-batch's loss.

        Args:
            dataset: Its samples.
            batch: Their indices.
            place: The step, and the micro-batch's index in it; None in validation.
        """
        activation = self._moved(dataset.inputs(batch))
        last = self._model.layers[-1].name
        # A cast cache would add the gradients of a weight's uses in the lower precision.
        lower = self._compute is not torch.float32
        with torch.autocast(self._device.type, self._compute, enabled=lower, cache_enabled=False):
            for name, module in self._modules.items():
                if place is not None:
                    torch.manual_seed(_seed(self._config.train.seed, "forward", *place, name))
                activation = self._converted(
                    module(activation), torch.float32 if name == last else self._compute
                )
        return self._model.loss(activation, self._moved(dataset.targets(batch)))

    def _moved(self, activation: Activation) -> Activation:
        moved: Activation = tree_map(
            lambda leaf: leaf.to(self._device) if isinstance(leaf, Tensor) else leaf, activation
        )
        return moved

    def _converted(self, activation: Activation, dtype: torch.dtype) -> Activation:
        """Return a contiguous activation, with float32 and the compute type converted to `dtype`."""

        def convert(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            converts = leaf.dtype in (torch.float32, self._compute)
            return (leaf.to(dtype) if converts else leaf).contiguous()

        converted: Activation = tree_map(convert, activation)
        return converted

    def _unscaled(self, named: Named) -> Named:
        return {name: tensor / self._loss_scale for name, tensor in named.items()}

    def _gradients_of_owners(self) -> Named:
        """Return the gradients of trained parameters; uses of a tied one are added in layer order."""
        trained = {name: p for name, p in self._parameters.items() if p.requires_grad}
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in trained.items()}
        for use, owner in self._owners.items():
            if use in gradients:
                gradients[owner] = gradients[owner] + gradients.pop(use)
        return gradients

    def _with_copies(self, owned: Named) -> Named:
        return owned | {use: owned[owner] for use, owner in self._owners.items() if owner in owned}


class _Statistics:
    """The running statistics of a batch normalization, computed from all its inputs of a step at once."""

    def __init__(self, module: Any, *, frozen: bool) -> None:
        self._module = module
        self._frozen = frozen
        self._before = _copies(module)
        self._inputs: list[Tensor] = []
        module.register_forward_pre_hook(self._record)

    def update(self, *, skipped: bool) -> None:
        """Undo the forwards' updates and, unless the step is skipped, update the statistics once."""
        module = self._module
        for name, buffer in module.named_buffers():
            buffer.copy_(self._before[name])
        if not self._frozen and not skipped:
            values = torch.cat(self._inputs, dim=1)
            module.num_batches_tracked += 1
            momentum = module.momentum or 1 / int(module.num_batches_tracked)
            module.running_mean.lerp_(values.mean(1).to(module.running_mean), momentum)
            module.running_var.lerp_(values.var(1).to(module.running_var), momentum)
        self._inputs = []
        self._before = _copies(module)

    def _record(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:  # [batch, channel, ...] as [channel, everything else]
            self._inputs.append(inputs[0].detach().double().transpose(0, 1).flatten(1))


def _copies(module: nn.Module) -> Named:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def _running_statistics(modules: dict[str, nn.Module]) -> list[_Statistics]:
    found = []
    for layer in modules.values():
        parameters = list(layer.parameters())
        frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        for module in layer.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                found.append(_Statistics(module, frozen=frozen))
    return found


def _build_modules(model: Model, seed: int, device: torch.device) -> dict[str, nn.Module]:
    """Return every layer's module by name; copies of a tied parameter have the owner's weights."""
    modules: dict[str, nn.Module] = {}
    for layer in model.layers:
        torch.manual_seed(_seed(seed, "weights", layer.name))
        modules[layer.name] = layer.build()
        for tie in layer.ties:
            owner = modules[tie.owner].get_parameter(tie.owner_parameter)
            with torch.no_grad():
                use = modules[layer.name].get_parameter(tie.parameter)
                use.copy_(owner).requires_grad_(owner.requires_grad)
    return {name: module.to(device) for name, module in modules.items()}


def _seed(*purpose: int | str) -> int:
    """Return the first 63 bits of the BLAKE2b digest of "seed/purpose/..."."""
    digest = blake2b("/".join(str(part) for part in purpose).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") // 2

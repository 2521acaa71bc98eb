"""The same training in a single process: a plain loop over replicas and micro-batches.

It shares only the layers, the loss, the data, and the optimizer and its settings with the code that it
checks. Seeds, initial weights, ties, the assignment of micro-batches, the counts, the sum over replicas, the
norm, clipping, precision, the loss scale and running statistics are implemented here a second time, from the
documentation, so that a mistake in either implementation shows. Keep it that way. Autograd sees the full
model as one graph.
"""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.activation import Activation, map_leaves
from trainer.checkpoint.warm_start import warm_start
from trainer.config.schema import Config
from trainer.data.dataset import Data, Dataset
from trainer.models.model import Model
from trainer.optim.build import build_optimizer
from trainer.optim.learning_rate import set_learning_rates
from trainer.pipeline.layer import BuiltLayer
from trainer.verify.reference_buffers import ReplicaBuffers, statistics_of
from trainer.verify.reference_layers import build_modules, seed_generators, seed_of
from trainer.verify.replica_sum import Named, ReplicaSum

Place: TypeAlias = tuple[int | str, int]  # the step or "validation", and the micro-batch's index in it


class Reference:
    """The full model, trained in a plain loop.

    Args:
        config: The run's configuration.
        model: The run's model.
        data: The run's data.
        replicas: The launch's number of replicas.
        steps: The number of steps of the full run, which learning-rate schedules depend on.
        device: The device to compute on, of the same kind as the launch's.

    Attributes:
        modules: Every layer's, by name.
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
        self.modules = self._modules = build_modules(model, config.train.seed, device)
        self._loss_module = copy.deepcopy(model.loss)
        named = dict(self._modules)
        if isinstance(self._loss_module, nn.Module):
            self._loss_module.to(device)
            named["loss"] = self._loss_module
        layers = [
            BuiltLayer(i, layer.name, named[layer.name], layer.ties) for i, layer in enumerate(model.parts)
        ]
        warm_start(config.checkpoint, layers, model)
        self._optimizer = build_optimizer(config.optimizer, layers)
        self._parameters = _by_name(named, nn.Module.named_parameters)
        self._named = named
        self._owners = {  # by copy of a tied parameter
            f"{layer.name}/{tie.parameter}": f"{tie.owner}/{tie.owner_parameter}"
            for layer in model.layers
            for tie in layer.ties
        }
        self._statistics = statistics_of(named)
        self._buffers_of = ReplicaBuffers(named.values(), replicas)
        self._compute = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision, torch.float32)
        self._loss_scale = 2.0**16 if config.precision == "fp16" else 1.0
        self._last_loss = 0.0
        self._gradients: Named = {}
        self._errors: Named = {}

    def step(self, number: int, samples: NDArray[np.int64]) -> float:
        """Compute the gradients of a step; return its loss, the mean over the global batch.

        Args:
            number: The step, counted from 1.
            samples: The indices of the global batch's samples.
        """
        self._set_mode(training=True)
        self._buffers_of.begin_step()
        averaging, size = self._config.averaging, self._config.batch.micro_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        counts = []
        for i, batch in enumerate(batches):
            targets = self._read(self._data.training.targets, batch, (number, i))
            counts.append(float(self._loss_module.count(targets)))
        parts = np.array_split(np.arange(len(batches)), self._replicas)
        count_of = [_sum(counts[i] for i in indices) for indices in parts]
        loss, count = 0.0, _sum(count_of)
        total = ReplicaSum(averaging, self._replicas, skips=self._config.precision == "fp16")
        for replica, indices in enumerate(parts):
            self._buffers_of.switch_to(replica)
            divisor = count_of[replica] if averaging.op == "adasum" else count
            for parameter in self._parameters.values():
                parameter.grad = None
            for i in indices:
                loss += self._forward_backward(number, i, batches[i], 1 / divisor if divisor else 0.0)
            total.add(self._gradients_of_owners())
        self._gradients = self._with_copies(self._unscaled(total.result()))
        self._errors = self._with_copies(self._unscaled(total.errors()))
        self._buffers_of.switch_to(0)
        self._last_loss = loss / count if count else 0.0
        return self._last_loss

    def take_gradients(self, gradients: Named) -> None:
        """Replace the gradients computed here with the launch's for the next update."""
        for name, gradient in gradients.items():
            self._parameters[name].grad = gradient.to(self._device, copy=True)

    def take_statistics(self, buffers: Named) -> None:
        """Replace the running statistics computed here with the launch's, for what comes next."""
        ours = self._buffers()
        taken = {id(ours[name]): buffer.to(self._device) for name, buffer in buffers.items() if name in ours}
        for statistics in self._statistics:
            named = dict(statistics.module.named_buffers())
            if all(id(buffer) in taken for buffer in named.values()):
                statistics.take({name: taken[id(buffer)] for name, buffer in named.items()})

    def update(self, step: int) -> float:
        """Clip the gradients and update the weights; return the norm before clipping.

        A step that is not finite may be skipped; with precision=fp16 that halves the loss scale. (The scale
        would double after 2,000 good steps; no verification is that long.)
        """
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        own = [gradient for name, gradient in gradients.items() if name not in self._owners]
        squares = 0.0
        for gradient in own:  # the built-in `sum` compensates from Python 3.12 on
            half = gradient.dtype in (torch.bfloat16, torch.float16)
            squares += float(torch._foreach_norm([gradient], 2, torch.float32 if half else None)[0]) ** 2
        norm = math.sqrt(squares)
        skipped = self._skips(norm)
        for statistics in self._statistics:
            statistics.update(skipped=skipped)
        if skipped:
            self._buffers_of.forget_step()
            return norm
        largest = self._config.optimizer.clip
        if largest is not None and norm > largest:
            for gradient in gradients.values():  # `mul_` rounds otherwise where they are in half precision
                torch._foreach_mul_([gradient], largest / norm)
        if self._optimizer is not None:
            set_learning_rates(self._optimizer, self._config.optimizer.lr_schedule, step, self._steps)
            self._optimizer.step()
        return norm

    def _skips(self, norm: float) -> bool:
        """Return whether the weights stay as they are, because something is not finite."""
        if self._config.precision == "fp16":
            if not math.isfinite(norm):
                self._loss_scale /= 2
            return not math.isfinite(norm)
        skips = self._config.train.non_finite == "skip"
        return skips and not (math.isfinite(norm) and math.isfinite(self._last_loss))

    def values(self, kind: str, layer: str | None = None) -> Named:
        """Return every "gradient", "weight" or "buffer" of all layers, or of one, by "layer/name"."""
        named: Named
        if kind == "gradient":
            named = self._gradients
        elif kind == "weight":
            named = {name: parameter.detach() for name, parameter in self._parameters.items()}
        else:
            named = self._buffers()
        return {n: tensor for n, tensor in named.items() if layer is None or n.startswith(f"{layer}/")}

    def allowed(self, kind: str, name: str) -> Tensor | None:
        """Return the bound on a value's difference, by element; None: equal bits.

        Running statistics differ by rounding: this class computes them from all inputs at once, the launch
        from sums.
        """
        if kind == "gradient":
            return self._errors.get(name)
        return self._buffers()[name].abs() * 1e-5 + 1e-6 if self.is_statistic(kind, name) else None

    def is_statistic(self, kind: str, name: str) -> bool:
        """Return whether a value is one of a batch normalization's running statistics."""
        buffer = self._buffers().get(name) if kind == "buffer" else None
        return buffer is not None and any(
            buffer is each for norm in self._statistics for each in norm.module.buffers()
        )

    def _buffers(self) -> Named:
        return _by_name(self._named, nn.Module.named_buffers)

    @torch.no_grad()
    def validate(self, samples: int) -> float:
        """Return the mean loss on the first validation samples."""
        self._set_mode(training=False)
        size, dataset = self._config.batch.micro_size, self._data.validation
        starts = range(0, samples, size)
        total, count = 0.0, 0.0
        for replica, indices in enumerate(np.array_split(np.arange(len(starts)), self._replicas)):
            self._buffers_of.switch_to(replica)
            for i in indices:
                batch = np.arange(starts[i], min(starts[i] + size, samples))
                total += self._loss(dataset, batch, ("validation", i)).item()
                targets = self._read(dataset.targets, batch, ("validation", i))
                count += float(self._loss_module.count(targets))
        self._buffers_of.switch_to(0)
        return total / count if count else 0.0

    def _set_mode(self, *, training: bool) -> None:
        for module in (*self._modules.values(), self._loss_module):
            if isinstance(module, nn.Module):
                module.train(training)

    def _forward_backward(self, step: int, index: int, batch: NDArray[np.int64], scale: float) -> float:
        loss = self._loss(self._data.training, batch, (step, index))
        if loss.requires_grad:
            torch.autograd.backward(loss, torch.full_like(loss, scale * self._loss_scale))
        return loss.item()

    def _loss(self, dataset: Dataset, batch: NDArray[np.int64], place: Place) -> Tensor:
        """Return the sum of a micro-batch's loss.

        Args:
            dataset: Its samples.
            batch: Their indices.
            place: The step, and the micro-batch's index in it.
        """
        activation = self._read(dataset.inputs, batch, place)
        last = self._model.layers[-1].name
        # A cast cache would add the gradients of a weight's uses in the lower precision.
        lower = self._compute is not torch.float32
        with torch.autocast(self._device.type, self._compute, enabled=lower, cache_enabled=False):
            for name, module in self._modules.items():
                self._seed("forward", place, name)
                activation = self._converted(
                    module(activation), torch.float32 if name == last else self._compute
                )
        targets = self._read(dataset.targets, batch, place)
        self._seed("loss", place)
        return self._loss_module(activation, targets)

    def _read(
        self, read: Callable[[NDArray[np.int64]], Activation], batch: NDArray[np.int64], place: Place
    ) -> Activation:
        """Return the inputs or targets of samples, on the device; arrays become tensors."""
        self._seed("data", place)

        def moved(leaf: Any) -> Any:
            leaf = torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
            return leaf.to(self._device) if isinstance(leaf, Tensor) else leaf

        return map_leaves(moved, read(batch))

    def _seed(self, purpose: str, place: Place, *rest: str) -> None:
        """Seed every generator for a purpose, at a place in the training or in the validation."""
        step, index = place
        when: tuple[str | int, ...] = (step, purpose) if step == "validation" else (purpose, step)
        seed_generators(seed_of(self._config.train.seed, *when, index, *rest))

    def _converted(self, activation: Activation, dtype: torch.dtype) -> Activation:
        """Return a copy of an activation, contiguous, with float32 and the compute type as `dtype`.

        A copy, because the next layer may write into it. Its gradient is contiguous too, as any that crosses
        a layer's boundary: kernels may add in another order where memory is laid out differently.
        """

        def convert(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            converts = leaf.dtype in (torch.float32, self._compute)
            copied = (leaf.to(dtype) if converts else leaf).contiguous().clone()
            if copied.requires_grad:
                copied.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
            return copied

        return map_leaves(convert, activation)

    def _unscaled(self, named: Named) -> Named:
        return {name: tensor / self._loss_scale for name, tensor in named.items()}

    def _gradients_of_owners(self) -> Named:
        """Return the gradients of trained parameters; uses of a tied one are added in layer order."""
        trained = {name: p for name, p in self._parameters.items() if p.requires_grad}
        gradients = {
            n: torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for n, p in trained.items()
        }
        for use, owner in self._owners.items():
            if use in gradients:
                gradients[owner] = gradients[owner] + gradients.pop(use)
        return gradients

    def _with_copies(self, owned: Named) -> Named:
        return owned | {use: owned[owner] for use, owner in self._owners.items() if owner in owned}


def _by_name(modules: dict[str, nn.Module], tensors: Callable[[nn.Module], Any]) -> Named:
    named = ((f"{layer}/{name}", t) for layer, module in modules.items() for name, t in tensors(module))
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in named}  # of `torch.compile`


def _sum(numbers: Iterable[float]) -> float:
    """Add in order; the builtin `sum` compensates from Python 3.12 on."""
    total = 0.0
    for number in numbers:
        total += number
    return total

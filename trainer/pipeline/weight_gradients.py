"""Weight gradients as work for later: what splits a backward in two.

In the first part of a split backward a module makes the gradient of its input only, and puts off what its
weights' take. It is done in the second part by the products that autograd would have formed, in the order in
which it would have added them up, so that not a bit is different.

    module                       its weights' gradients
    nn.Linear itself             in the second part
    one that calls `put_off`     in the second part
    anything else                in the first: also classes derived from nn.Linear, parametrised weights, and
                                 an nn.Linear whose weight another module shares
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import UserError
from trainer.pipeline.precision import autocasted

# A parameter and what makes its gradient, for every use of a micro-batch in the order of the backward.
Deferred = list[tuple[nn.Parameter, Callable[[], Tensor]]]

_collecting: list[Deferred] = []  # where what is put off goes; empty outside of a split backward


def put_off(parameter: nn.Parameter, gradient: Callable[[], Tensor]) -> bool:
    """Add a gradient to a parameter's in the second part of the backward under way, if it is split.

    For the `backward` of a `torch.autograd.Function` of one's own:

        x, weight = ctx.saved_tensors
        later = put_off(ctx.weight, lambda: product(gradient, x))
        return gradient_of_x, None if later else product(gradient, x)

    Args:
        parameter: Whose gradient it is.
        gradient: Makes the gradient of this use, in the parameter's shape; called with gradients off. Of
            another type it is converted, as autograd would.

    Returns:
        Whether it will be done: False where the backward is whole, and autograd adds up.
    """
    if not _collecting:
        return False
    _collecting[-1].append((parameter, gradient))
    return True


@contextmanager
def collecting(deferred: Deferred) -> Iterator[None]:
    """Let what the backwards within this context put off go into a list."""
    _collecting.append(deferred)
    try:
        yield
    finally:
        _collecting.pop()


def add_weight_gradients(deferred: Deferred) -> None:
    """Do what was put off, and forget it."""
    uses: dict[nn.Parameter, list[Callable[[], Tensor]]] = {}
    for parameter, gradient in deferred:
        uses.setdefault(parameter, []).append(gradient)
    deferred.clear()
    with torch.no_grad():
        for parameter, gradients in uses.items():
            total = gradients[0]().to(parameter.dtype)
            for gradient in gradients[1:]:
                total = total + gradient().to(parameter.dtype)  # first to one another, as autograd does
            if parameter.grad is None:
                parameter.grad = total
            else:
                parameter.grad.add_(total)


class _Linear(torch.autograd.Function):
    """A linear map that puts off the gradients of weight and bias.

    Both are among the inputs so that the output has a gradient wherever they want one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, bias: nn.Parameter | None) -> Tensor:
        ctx.parameters = weight, bias
        kept = autocasted(x), autocasted(weight)
        ctx.save_for_backward(*kept)
        return F.linear(*kept, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        inputs, outputs = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        of_x, of_weight, of_bias = ctx.needs_input_grad
        if of_weight:
            put_off(ctx.parameters[0], lambda: outputs.t().mm(inputs))
        if of_bias:
            put_off(ctx.parameters[1], lambda: outputs.sum(0))
        return outputs.mm(weight).view(x.shape) if of_x else None, None, None


class Deferral:
    """Lets the linear maps of some layers put off their weight gradients.

    Args:
        layers: The layers' modules, by name.

    Attributes:
        modules: The linear maps that can, in the layers' order.

    Raises:
        UserError: A module is compiled: what it was compiled to cannot be split.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.modules: list[nn.Linear] = []
        self._active = False
        self._mixed: str | None = None
        owners = Counter(
            parameter
            for layer in layers.values()
            for module in layer.modules()
            for parameter in module.parameters(recurse=False)
        )
        for name, layer in layers.items():
            for module in layer.modules():
                if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
                    raise UserError(
                        f"layer {name!r} is compiled (torch.compile), and its backward cannot be split: use "
                        "a schedule with whole backwards (schedule=1f1b), or do not compile it"
                    )
                parameters = module.parameters(recurse=False)
                if _is_linear(module) and all(owners[parameter] == 1 for parameter in parameters):
                    self._take_over(name, module)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Let the forwards within this context have backwards that put off."""
        self._active = True
        try:
            yield
        finally:
            self._active = False

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Hold the first parts of backwards within this context against their promise.

        Raises:
            UserError: Behind it, if a weight whose gradient is put off was also used beside its module.
                Autograd would have added up both before adding them to the gradient: other bits.
        """
        with self.forward():
            yield
        if self._mixed is not None:
            raise UserError(
                f"layer {self._mixed!r} uses the weight of an nn.Linear besides calling it, so its backward "
                "cannot be split: use a schedule with whole backwards (schedule=1f1b)"
            )

    def _take_over(self, layer: str, module: nn.Linear) -> None:
        """Give the module a forward of its own; what calls it, and hooks on it, notice nothing."""

        def forward(x: Tensor) -> Tensor:
            if not (self._active and torch.is_grad_enabled()):
                return F.linear(x, module.weight, module.bias)
            output: Tensor = _Linear.apply(x, module.weight, module.bias)  # type: ignore[no-untyped-call]
            return output

        def watch(gradient: Tensor | None) -> None:
            if gradient is not None and self._active:
                self._mixed = layer

        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(watch)  # type: ignore[no-untyped-call]  # before autograd adds it
        module.forward = forward  # type: ignore[method-assign, assignment]
        self.modules.append(module)


def _is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a module is a plain linear map that trains."""
    return type(module) is nn.Linear and any(p.requires_grad for p in module.parameters())

"""The sum of gradients over replicas, in one process, and a bound on an all-reduce's difference from it.

With two replicas a sum has one result, because addition is commutative. With more, an all-reduce adds in its
own order: two sums of R numbers g differ by at most 2 (R - 1) u sum |g|, where u is half the distance from 1
to the next number (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 4.2).
"""

import torch
from torch import Tensor

from trainer.config.schema import AveragingConfig

Named = dict[str, Tensor]  # by "layer/parameter"


class ReplicaSum:
    """The gradients of all replicas, added in order, or combined by Adasum (Maleki et al., 2020).

    Args:
        config: How the launch averages.
        replicas: The number of replicas.
        skips: Whether a step whose gradient overflows is skipped. Elements that can overflow only inside the
            all-reduce, in float16 or in Adasum's dot products, may then have any value.
    """

    def __init__(self, config: AveragingConfig, replicas: int, *, skips: bool = False) -> None:
        self._config = config
        self._replicas = replicas
        self._skips = skips
        one_result = config.op == "average" and config.compression == "none"
        self._is_exact = replicas == 1 or (replicas == 2 and one_result)  # noqa: PLR2004
        self._parts: list[Named] = []
        self._magnitude: Named = {}

    def add(self, gradients: Named) -> None:
        """Add the gradients of the next replica."""
        if self._parts and self._config.op == "average":
            self._parts = [_plus(self._parts[0], gradients)]
        else:
            self._parts.append(gradients)
        if not self._is_exact:
            magnitude = {name: gradient.abs() for name, gradient in gradients.items()}
            self._magnitude = _plus(self._magnitude, magnitude) if self._magnitude else magnitude

    def result(self) -> Named:
        """Return the sum."""
        parts = self._parts
        while len(parts) > 1:  # Adasum combines neighbors, then pairs of results
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [{name: _adasum(one[name], other[name]) for name in one} for one, other in pairs]
        return parts[0]

    def errors(self) -> Named:
        """Return the bound on the launch's difference, by element; empty if the bits must be equal."""
        return {name: self._rounding(magnitude) for name, magnitude in self._magnitude.items()}

    def _rounding(self, magnitude: Tensor) -> Tensor:
        if self._config.op == "adasum":  # dot products over a full parameter amplify rounding
            eps = torch.finfo(magnitude.dtype).eps  # bfloat16 is combined in float32, and rounded once
            error = magnitude * (self._replicas * (2.0**-17 + eps))
            return error.fill_(torch.inf) if self._skips and not error.isfinite().all() else error
        if self._config.compression == "fp16":  # 11 binary digits; the smallest number is 2 ** -24
            own = self._replicas * torch.finfo(magnitude.dtype).eps  # bfloat16 has only 8 digits
            error = magnitude * ((self._replicas + 1) * 2.0**-11 + own) + self._replicas * 2.0**-24
            fits = magnitude + error < torch.finfo(torch.float16).max
            return error.where(fits, torch.inf) if self._skips else error
        # Twice u; bfloat16 is added in float32, and rounded once.
        return magnitude * ((self._replicas - 1) * torch.finfo(magnitude.dtype).eps)


def _plus(one: Named, other: Named) -> Named:
    return {name: tensor + other[name] for name, tensor in one.items()}


def _adasum(one: Tensor, other: Tensor) -> Tensor:
    """Add two gradients, less their common component."""
    a, b = one.double(), other.double()
    dot, of_a, of_b = (a * b).sum(), (a * a).sum(), (b * b).sum()
    half_a = dot / (2 * of_a) if of_a else of_a
    half_b = dot / (2 * of_b) if of_b else of_b
    return ((1 - half_a) * a + (1 - half_b) * b).to(one.dtype)

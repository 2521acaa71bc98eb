"""Gradients of equal stages, averaged across the replicas by Horovod's all-reduce.

A layer is a bucket: its gradients go as one named group as soon as its last backward is done, while the
pipeline still drains. The loss is scaled by 1 / the global count before the backward, so that a plain sum
over replicas is the gradient of the global mean, whatever share of the batch each replica has.
"""

import time
from typing import Any

import torch
from torch import Tensor

from trainer.errors import UserError
from trainer.pipeline.stage import BuiltLayer
from trainer.schedule.timeline import AllReduce
from trainer.sharing import background_work
from trainer.waiting import WaitMeter
from trainer.world import horovod


def gradients_of(layer: BuiltLayer) -> list[Tensor]:
    """Return the gradients of the parameters that a layer owns and trains.

    A parameter that this step did not use, here or on any replica, gets a gradient of zero: whether it did
    must not depend on the layout.
    """
    gradients = []
    for parameter in layer.trained():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    return gradients


def check_averaging(op: str, replicas: int) -> None:
    """Raise a UserError if so many replicas cannot be averaged like this."""
    if op == "adasum" and replicas & (replicas - 1):
        raise UserError(
            f"averaging.op=adasum combines replicas in pairs, and pairs of pairs, but here are {replicas} "
            "replicas: make them a power of two by other ranks or layout.stages, or use averaging.op=average"
        )


class OneReplica:
    """Averaging where there is one replica: nothing to do."""

    def __init__(self) -> None:
        self.waited = 0.0
        self.all_reduces: list[AllReduce] = []

    def start(self, layer: BuiltLayer) -> None:
        """Complete the gradients, as with several replicas."""
        gradients_of(layer)

    def progress(self) -> None:
        """Do nothing."""

    def finish(self, layer: BuiltLayer) -> None:
        """Do nothing."""


class HorovodAveraging:
    """Averaging by named, grouped all-reduces, a layer at a time.

    Args:
        op: "average" (the gradient of the global mean) or "adasum" (Maleki et al., 2020).
        compression: "none", or "fp16" to send halves.
        meter: Takes the seconds of waiting.
    """

    def __init__(self, op: str, compression: str, meter: WaitMeter | None = None) -> None:
        self._meter = meter or WaitMeter()
        self.all_reduces: list[AllReduce] = []
        self._horovod = horovod()
        self._op = {"average": self._horovod.Sum, "adasum": self._horovod.Adasum}[op]
        self._compression = getattr(self._horovod.Compression, compression)
        self._under_way: dict[str, tuple[Any, list[Tensor], list[Tensor], list[Any]]] = {}
        self._unseen: dict[str, tuple[Any, int, float]] = {}  # not known to be done: handle, bytes, start

    @property
    def waited(self) -> float:
        """Return the seconds of waiting on the meter."""
        return self._meter.seconds

    def start(self, layer: BuiltLayer) -> None:
        """Start to average the gradients of the parameters that the layer owns and trains."""
        gradients = gradients_of(layer)
        if not gradients:
            return
        compressed, contexts = zip(*map(self._compression.compress, gradients), strict=True)
        background_work.set()
        handle = self._horovod.grouped_allreduce_async_(list(compressed), name=layer.name, op=self._op)
        self._under_way[layer.name] = handle, gradients, list(compressed), list(contexts)
        size = sum(tensor.numel() * tensor.element_size() for tensor in compressed)
        self._unseen[layer.name] = handle, size, time.perf_counter()

    def progress(self) -> None:
        """Look which all-reduces are done, and note it."""
        for name, (handle, size, start) in list(self._unseen.items()):
            if self._horovod.poll(handle):
                del self._unseen[name]
                self.all_reduces.append(AllReduce(name, size, start, time.perf_counter()))

    def finish(self, layer: BuiltLayer) -> None:
        """Wait for the layer's all-reduce without spinning, and put the result into the gradients."""
        if layer.name not in self._under_way:
            return
        handle, gradients, compressed, contexts = self._under_way.pop(layer.name)
        self._meter.wait(lambda: self._horovod.poll(handle))
        self.progress()
        self._horovod.synchronize(handle)
        if not self._under_way:
            background_work.clear()
        for gradient, small, context in zip(gradients, compressed, contexts, strict=True):
            if small is not gradient:
                gradient.copy_(self._compression.decompress(small, context))

"""Gradients of equal stages, averaged across the replicas by Horovod's all-reduce.

A layer is a bucket: its gradients go as one named group as soon as its last backward is done, while the
pipeline still drains. The loss is scaled by 1 / the global count before the backward, so a plain sum over
replicas is the gradient of the global mean, whatever share of the batch each replica has.
"""

import time
from typing import Any

import torch
from torch import Tensor

from trainer.distributed.oversubscription import horovod_has_work
from trainer.distributed.waiting import WaitMeter
from trainer.distributed.world import horovod
from trainer.errors import UserError
from trainer.pipeline.layer import BuiltLayer
from trainer.replication.replication import gradients_of
from trainer.schedule.timeline import AllReduce


def check_averaging(op: str, replicas: int) -> None:
    """Raise a UserError if this number of replicas cannot be averaged in this way."""
    if op == "adasum" and replicas & (replicas - 1):
        raise UserError(
            f"averaging.op=adasum combines replicas in pairs, and pairs of pairs, but here are {replicas} "
            "replicas: make them a power of two by other ranks or layout.stages, or use averaging.op=average"
        )


class HorovodAveraging:
    """Averaging by named, grouped all-reduces, a layer at a time.

    Args:
        op: "average" (the gradient of the global mean) or "adasum" (Maleki et al., 2020).
        compression: "none", or "fp16" to send half-precision values.
        meter: Counts the time that this rank waits for other replicas.
    """

    def __init__(self, op: str, compression: str, meter: WaitMeter) -> None:
        self._done: list[AllReduce] = []
        self._meter = meter
        self._horovod = horovod()
        self._op = {"average": self._horovod.Sum, "adasum": self._horovod.Adasum}[op]
        self._compression = getattr(self._horovod.Compression, compression)
        self._under_way: dict[str, tuple[Any, list[Tensor], list[Tensor], list[Any]]] = {}
        self._unseen: dict[str, tuple[Any, int, float]] = {}  # not known to be done: handle, bytes, start

    def begin(self, done: list[AllReduce]) -> None:
        """Begin a step: append its all-reduces to a list as they are done."""
        self._done = done

    def start(self, layer: BuiltLayer) -> None:
        """Start to average the gradients of the parameters that the layer owns and trains."""
        gradients = gradients_of(layer)
        if not gradients:
            return
        carried = [_carried(gradient) for gradient in gradients]
        compressed, contexts = zip(*map(self._compression.compress, carried), strict=True)
        horovod_has_work.set()
        handle = self._horovod.grouped_allreduce_async_(list(compressed), name=layer.name, op=self._op)
        self._under_way[layer.name] = handle, gradients, list(compressed), list(contexts)
        size = sum(tensor.numel() * tensor.element_size() for tensor in compressed)
        self._unseen[layer.name] = handle, size, time.perf_counter()

    def progress(self) -> None:
        """Record which all-reduces are done."""
        for name, (handle, size, start) in list(self._unseen.items()):
            if self._horovod.poll(handle):
                del self._unseen[name]
                self._done.append(AllReduce(name, size, start, time.perf_counter()))

    def finish(self, layer: BuiltLayer) -> None:
        """Wait for the layer's all-reduce without spinning, and put the result into the gradients."""
        if layer.name not in self._under_way:
            return
        handle, gradients, compressed, contexts = self._under_way.pop(layer.name)
        self._meter.wait(lambda: self._horovod.poll(handle))
        self.progress()
        self._horovod.synchronize(handle)
        if not self._under_way:
            horovod_has_work.clear()
        for gradient, small, context in zip(gradients, compressed, contexts, strict=True):
            if small is not gradient:
                result = self._compression.decompress(small, context)
                gradient.copy_(torch.view_as_complex(result) if gradient.is_complex() else result)


def _carried(gradient: Tensor) -> Tensor:
    """Return a gradient in a type that Horovod has: it has neither bfloat16 nor complex numbers.

    A sum of bfloat16 is added in float32, and rounded once.
    """
    if gradient.is_complex():
        return torch.view_as_real(gradient)
    return gradient.float() if gradient.dtype is torch.bfloat16 else gradient

"""The blocks of a GPT as a middle stage of a pipeline, alone in one process."""

import torch
from torch import Tensor

from trainer.bench.gpt import BLOCK, Work
from trainer.pipeline.build import build_layer
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.recomputation import Recompute
from trainer.pipeline.stage import Stage

_CPU = torch.device("cpu")


class LoneStage:
    """A stage, with the input and the output gradient of every micro-batch.

    Args:
        work: Sets the blocks and the micro-batches.
        recompute: What the backwards recompute.
    """

    def __init__(self, work: Work, recompute: Recompute = Recompute.NONE) -> None:
        layers = [layer for layer in work.model().layers if layer.name.startswith(BLOCK)]
        built = [build_layer(layers, number, 0, _CPU) for number in range(len(layers))]
        self._stage = Stage(
            0,
            built,
            _CPU,
            loss=None,
            randomness=Randomness(0),
            on_layer_done=lambda: None,
            recompute=[recompute] * len(built),
        )
        self._stage.train(True)
        shape = work.micro_batches, work.micro_batch, work.context, work.width
        generator = torch.Generator().manual_seed(0)
        self._inputs = torch.randn(shape, generator=generator).unbind()
        self._gradients = torch.randn(shape, generator=generator).unbind()

    def parameters(self) -> list[Tensor]:
        """Return the parameters of all blocks."""
        return [parameter for layer in self._stage.layers for parameter in layer.module.parameters()]

    def forward(self, micro_batch: int, *, split: bool = False) -> None:
        """Run a forward, whose backward is full or, if `split`, in two parts."""
        self._stage.forward(
            micro_batch, [self._inputs[micro_batch].detach().requires_grad_()], 0, split=split
        )

    def backward(self, micro_batch: int) -> None:
        """Run the backward or, if split, its first part."""
        self._stage.backward(micro_batch, [self._gradients[micro_batch]])

    def weight_gradients(self, micro_batch: int) -> None:
        """Run the second part of a split backward."""
        self._stage.weight_gradients(micro_batch)

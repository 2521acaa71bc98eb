"""A stage's layers with their keys and values: what stands for the stage while texts are written."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.activation import Activation, TreeSpec, flatten, unflatten
from trainer.generate.rounds import Turn
from trainer.models.decoding import Decoder, Decodes, KeysValues, StageCache, Step
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.precision import Precision


class DecodingStage:
    """Runs the turns of rounds on a stage, and keeps the cache of every group.

    Args:
        decoder: The stage's layers.
        device: Their device.

    Attributes:
        device: Their device.
        caches: What is kept, by group.
    """

    def __init__(self, decoder: Decoder, device: torch.device) -> None:
        self.device = device
        self.caches: dict[int, StageCache] = {}
        self._decoder = decoder
        self._turns: Sequence[Turn] = ()

    def begin(self, turns: Sequence[Turn]) -> None:
        """Begin a round: rows whose texts have ended leave."""
        self._turns = turns
        for part in {turn.part.number: turn.part for turn in turns}.values():
            cache = self.caches.setdefault(part.number, self._decoder.new_cache())
            if not part.new:
                cache.join(part.kept, None, part.columns)
        for number in self.caches.keys() - {turn.part.number for turn in turns}:
            del self.caches[number]

    def train(self, mode: bool) -> None:
        """Do nothing: a decoder runs in evaluation."""

    def forward(
        self, micro_batch: int, tensors: list[Tensor], nest: TreeSpec, *, split: bool = False
    ) -> tuple[list[Tensor], TreeSpec]:
        """Run the layers for a turn of the round."""
        turn = self._turns[micro_batch]
        part, activation = turn.part, unflatten(tensors, nest)
        cache = self.caches[part.number]
        if turn.step is None:
            fed = max(map(len, part.feed))
            step = Step(tuple(fed - len(tokens) for tokens in part.feed), 0, fed, self.device)
            fresh = self._decoder.new_cache()
            output = self._decoder.run(activation, step, fresh)
            cache.join(part.kept, fresh, part.columns)
        else:
            left = part.steps - turn.step
            step = Step(part.padding, part.columns + turn.step, 1, self.device, left)
            output = self._decoder.run(activation, step, cache)
        outputs, nest = flatten(output)
        return [tensor.contiguous() for tensor in outputs], nest


class LayersCache:
    """The keys and values of layers, by layer."""

    def __init__(self, layers: int) -> None:
        self.layers = [KeysValues() for _ in range(layers)]

    def join(self, kept: Sequence[int], others: StageCache | None, columns: int) -> None:
        """Keep some rows and append others."""
        assert others is None or isinstance(others, LayersCache)
        for number, layer in enumerate(self.layers):
            layer.join(kept, None if others is None else others.layers[number], columns)

    def tensors(self) -> list[Tensor]:
        """Return the keys and values."""
        found = [tensor for layer in self.layers for tensor in (layer.keys, layer.values)]
        return [tensor for tensor in found if tensor is not None]


class LayersDecoder:
    """Layers that have a method `decode`.

    Args:
        layers: The layers of a stage.
        precision: What they compute in.
        device: Their device.
        last: Whether the stage is the last.
    """

    def __init__(
        self, layers: Sequence[BuiltLayer], precision: Precision, device: torch.device, *, last: bool
    ) -> None:
        self._layers = layers
        self._precision = precision
        self._device = device
        self._last = last

    def new_cache(self) -> LayersCache:
        """Return an empty cache."""
        return LayersCache(len(self._layers))

    def run(self, activation: Activation, step: Step, cache: StageCache) -> Activation:
        """Return the stage's output for the new columns."""
        assert isinstance(cache, LayersCache)
        for layer, past in zip(self._layers, cache.layers, strict=True):
            module = layer.module.eval()
            assert isinstance(module, Decodes)
            with self._precision.autocast(self._device):
                outputs, nest = flatten(module.decode(activation, step, past))
            convert = self._precision.between_layers
            if self._last and layer is self._layers[-1]:
                convert = self._precision.for_loss
            activation = unflatten([convert(tensor) for tensor in outputs], nest)
        return activation

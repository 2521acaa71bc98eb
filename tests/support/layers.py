"""Layers as a rank holds them, made from modules."""

from torch import nn

from trainer.pipeline.layer import BuiltLayer


def layers_of(*modules: nn.Module) -> list[BuiltLayer]:
    return [BuiltLayer(i, f"layer{i}", module) for i, module in enumerate(modules)]

"""The ordered list of layers that the trainer takes, from any module."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from trainer.activation import Activation
from trainer.cut.analysis import Cuts, analyse
from trainer.cut.answers import Call, call
from trainer.cut.description import crossing_name, notes
from trainer.cut.layer import CutLayer, Inputs
from trainer.cut.parts import Part
from trainer.cut.weights import RecordedWeights
from trainer.models.model import Layer, Loss, Model, Tie


def cut(
    weights: RecordedWeights,
    blocks: Sequence[str],
    inputs: Activation,
    loss: Loss,
    calls: Call = call,
) -> Model:
    """Return a module as a list of layers: what comes before the first block, then one layer a block.

    Args:
        weights: The module on the meta device, and its initial weights.
        blocks: The paths of its blocks, of `find_blocks`.
        inputs: An example of its inputs: a tensor, a tuple, or a dict of keyword arguments.
        loss: The loss.
        calls: Calls it with the data's inputs, and returns what of its output the loss takes.

    Raises:
        UserError: It cannot be cut there.
    """
    skeleton = weights.skeleton.train()
    cuts = analyse(skeleton, blocks, inputs, calls)
    for path in cuts.unused:  # without a gradient they keep their values, as in plain PyTorch
        skeleton.get_parameter(path).requires_grad_(False)
    structure = Inputs.of(inputs)

    def build(segment: int) -> nn.Module:
        part = Part.of(skeleton, cuts, segment)
        if torch.get_default_device().type != "meta":
            part.fill(weights.values([path for path, _ in part.own()]))
        return CutLayer(part, structure, calls)

    ties = _ties(skeleton, cuts)
    layers = tuple(Layer(name, partial(build, i), ties[i]) for i, name in enumerate(cuts.names))
    return Model(layers, loss, partial(crossing_name, cuts), tuple(notes(cuts)))


def _ties(skeleton: nn.Module, cuts: Cuts) -> list[tuple[Tie, ...]]:
    """Return, by segment, the parameters that an earlier segment uses too: the first to do so owns them."""
    owners: dict[int, tuple[str, str]] = {}
    every = dict(skeleton.named_parameters(remove_duplicate=False))
    ties: list[tuple[Tie, ...]] = []
    for segment, name in enumerate(cuts.names):
        mine: dict[int, str] = {}
        inside, read = tuple(f"{path}." for path in cuts.modules(segment)), set(cuts.weights(segment))
        for path, parameter in every.items():
            if path in read or path.startswith(inside):
                mine.setdefault(id(parameter), path)
        ties.append(tuple(Tie(path, *owners[key]) for key, path in mine.items() if key in owners))
        owners |= {key: (name, path) for key, path in mine.items() if key not in owners}
    return ties

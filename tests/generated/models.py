"""The model of a number."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from tests.generated.carriers import FORMS
from tests.generated.faults import IN_A_LAYER, Faulty
from tests.generated.layers_passing import Block, Head
from tests.generated.losses import loss
from tests.generated.sketch import sketch
from trainer.data.dataset import Data
from trainer.models.model import Layer, Model, Tie


def model(_: Data, seed: int, least: int = 1, without: Any = ()) -> Model:
    """Return the model of a number.

    Args:
        seed: The number.
        least: The number of layers that the layout needs.
        without: Layers to leave out, to find the one that matters.
    """
    drawn = sketch(seed, least, tuple(without))
    names = [f"{number}-{kind.replace(' ', '-')}" for number, (kind, _, _) in enumerate(drawn.layers)]
    ties = {use: Tie("part.linear.weight", names[owner], "part.linear.weight") for owner, use in drawn.ties}
    hooks = drawn.hooks
    layers = [
        Layer(name, partial(_block, build, form, hooks[number]), (ties[number],) if number in ties else ())
        for number, (name, (_, build, form)) in enumerate(zip(names, drawn.layers, strict=True))
    ]
    if drawn.fault in IN_A_LAYER:
        layers.append(Layer("faulty", partial(_block, partial(Faulty, drawn.width, drawn.fault), "tensor")))
    head = partial(Head, drawn.width, drawn.classes)
    layers.append(Layer("head", partial(_block, head, FORMS[seed % len(FORMS)])))
    return Model(tuple(layers), loss(drawn.loss, drawn.classes, drawn.fault))


def _block(build: Callable[[], nn.Module], form: str, hook: str = "none") -> nn.Module:
    return Block(build(), form, hook)

"""Building a layer: what is refused, and what an error says."""

import numpy as np
import pytest
import torch
from torch import nn

from trainer.errors import UserError, notes
from trainer.models.model import Layer
from trainer.pipeline.build import build_layer

CPU = torch.device("cpu")


def test_lazy_parameters_are_refused() -> None:
    layers = [Layer("lazy", lambda: nn.Sequential(nn.LazyLinear(3)))]
    with pytest.raises(
        UserError, match=r"layer 'lazy' has a lazy parameter, '0.weight'.*give the layer its sizes"
    ):
        build_layer(layers, 0, 0, CPU)


def test_an_error_names_the_layer() -> None:
    with pytest.raises(RuntimeError) as caught:
        build_layer([Layer("odd", lambda: nn.Linear(-1, 3))], 0, 0, CPU)
    assert notes(caught.value) == ["while building layer 'odd'"]


class Drawn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(np.random.randn(3)))


def test_numpy_is_seeded_by_the_layers_name() -> None:
    layers = [Layer("one", Drawn), Layer("two", Drawn)]
    one, again, two, other = (
        build_layer(layers, *place, CPU).module.weight for place in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(one, again)  # type: ignore[arg-type]
    assert not torch.equal(one, two)  # type: ignore[arg-type]
    assert not torch.equal(one, other)  # type: ignore[arg-type]

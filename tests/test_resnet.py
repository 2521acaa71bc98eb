"""ResNet has the paper's sizes, and computes what a network written the usual way computes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.fixtures.residual import BasicBlock, Bottleneck, ResNet
from tests.support.pictures import images
from trainer.config.schema import BinaryConfig, ResNetConfig
from trainer.data.binary import binary
from trainer.data.dataset import Data
from trainer.errors import UserError
from trainer.models.build import build_model
from trainer.models.model import Model


def whole(model: Model) -> nn.Sequential:
    """Return the model's layers as one module, with torchvision's names of parameters."""
    made = nn.Sequential()
    for layer in model.layers:
        made.add_module(layer.name.replace(".", "_"), layer.build())
    return made


def torchvisions(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name.replace("stem.", "").replace("head.", "").replace("_", ".", 1)
        if name.startswith("layer")
        else name.partition(".")[2]: value
        for name, value in module.state_dict().items()
    }


@pytest.mark.parametrize(
    ("depth", "parameters"),  # as torchvision's documentation lists them
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_the_numbers_of_parameters(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        model = whole(build_model(ResNetConfig(depth=depth), images(224)))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (
            ResNetConfig(parts=[1, 2], width=8),
            lambda: ResNet(BasicBlock, (1, 2), classes=7, width=8),
        ),
        (
            ResNetConfig(parts=[2, 1], width=4, block="bottleneck", stem="small"),
            lambda: ResNet(Bottleneck, (2, 1), classes=7, width=4, small=True),
        ),
    ],
    ids=["basic, large", "bottleneck, small"],
)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients(config: ResNetConfig, reference: type[ResNet], *, training: bool) -> None:
    mine, plain = whole(build_model(config, images(32, classes=7))), reference()
    plain.load_state_dict(torchvisions(mine))  # all names and shapes, and no others
    x = torch.randn(3, 3, 32, 32)
    outputs = [module.train(training)(x) for module in (mine, plain)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    gradients = [[p.grad for p in module.parameters()] for module in (mine, plain)]
    assert all(map(torch.equal, *gradients))


def test_initial_weights() -> None:
    model = whole(build_model(ResNetConfig(depth=18, zero_last=True), images(224)))
    for name, parameter in torchvisions(model).items():
        if "bn2.weight" in name:
            assert not parameter.any()
        elif (
            parameter.dim() == 4
        ):  # He et al. 2015, for a ReLU: a variance of 2 / (outputs * size of the kernel)
            fan_out = parameter.shape[0] * parameter[0, 0].numel()
            assert parameter.std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name


def test_normalisation_of_groups_and_dropout() -> None:
    config = ResNetConfig(parts=[1, 1], width=48, norm="group", dropout=0.5, stem="small")
    modules = list(whole(build_model(config, images(16))).modules())
    assert not [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    groups = {
        module.num_channels: module.num_groups for module in modules if isinstance(module, nn.GroupNorm)
    }
    assert groups == {48: 16, 96: 32}
    assert [module.p for module in modules if isinstance(module, nn.Dropout)] == [0.5]


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        (ResNetConfig(), binary(BinaryConfig()), r"^model=resnet needs images, float \[batch, channels"),
        (ResNetConfig(), images(32, classes=None), "needs the number of classes: set Data.classes"),
        (ResNetConfig(depth=19), images(32), "model.depth=19 must be 18, 34, 50, 101 or 152"),
        (ResNetConfig(parts=[2, 0]), images(32), r"model.parts=\[2, 0\] must be numbers greater than 0"),
        (replace(ResNetConfig(), block="basics"), images(32), "did you mean basic?"),
    ],
)
def test_what_does_not_fit_is_refused(config: ResNetConfig, data: Data, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(config, data)

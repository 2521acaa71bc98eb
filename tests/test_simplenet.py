"""SimpleNet: the example's shapes and loss, and that it learns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainer.config.schema import BinaryConfig, SimpleNetConfig
from trainer.data.binary import binary
from trainer.data.dataset import Data
from trainer.data.text import Windows
from trainer.errors import UserError
from trainer.models.simplenet import simplenet


def train(lr: float, epochs: int) -> tuple[list[float], float]:
    """Train in batches of 100; return the mean loss of every epoch and the accuracy on held-out samples."""
    data = binary(BinaryConfig())
    model = simplenet(SimpleNetConfig(), data)
    torch.manual_seed(0)
    network = torch.nn.Sequential(*(layer.build() for layer in model.layers))
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(1000).split(100):
            target = data.training.targets(batch.numpy())
            loss = model.loss(network(data.training.inputs(batch.numpy())), target)
            optimizer.zero_grad()
            (loss / model.loss.count(target)).backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / 1000)
    held_out = np.arange(len(data.validation))
    guesses = network(data.validation.inputs(held_out))[:, 0] > 0
    return losses, (guesses == data.validation.targets(held_out).bool()).float().mean().item()


def test_layers_and_shapes() -> None:
    model = simplenet(SimpleNetConfig(), binary(BinaryConfig()))
    assert [layer.name for layer in model.layers] == ["linear1", "relu", "linear2"]
    activation = torch.randn(7, 10)
    for layer, width in zip(model.layers, (20, 20, 1), strict=True):
        activation = layer.build()(activation)
        assert activation.shape == (7, width)


def test_loss_is_the_sum_over_samples() -> None:
    loss = simplenet(SimpleNetConfig(), binary(BinaryConfig())).loss
    logits, labels = torch.randn(6, 1), torch.tensor([0.0, 1, 1, 0, 1, 0])
    chances = torch.sigmoid(logits[:, 0])
    expected = -torch.where(labels == 1, chances, 1 - chances).log().sum()
    torch.testing.assert_close(loss(logits, labels), expected)
    assert loss.count(labels) == 6
    mean = F.binary_cross_entropy_with_logits(logits[:, 0], labels)
    torch.testing.assert_close(loss(logits, labels) / loss.count(labels), mean)


def test_loss_stays_finite_far_from_the_label() -> None:
    loss = simplenet(SimpleNetConfig(), binary(BinaryConfig())).loss
    assert loss(torch.tensor([[-1000.0]]), torch.tensor([1.0])).item() == 1000


def test_hundred_steps_of_the_example_reduce_the_loss() -> None:
    losses, _ = train(lr=0.01, epochs=10)
    assert losses == sorted(losses, reverse=True)


def test_learns_the_rule() -> None:
    losses, accuracy = train(lr=0.5, epochs=10)
    assert losses[-1] < 0.3
    assert accuracy > 0.85


def test_features_must_match_the_data() -> None:
    with pytest.raises(UserError, match=r"model\.features=10.* 8 features.*data\.features"):
        simplenet(SimpleNetConfig(), binary(BinaryConfig(features=8)))


def test_text_is_refused() -> None:
    windows = Windows(np.zeros(100, dtype=np.uint8), 8)
    with pytest.raises(UserError, match="data=binary"):
        simplenet(SimpleNetConfig(), Data(windows, windows, "", vocabulary=256))

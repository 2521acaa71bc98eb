"""SimpleNet: Linear, ReLU, Linear; the network that model-parallel tutorials split in two."""

from functools import partial
from typing import cast

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.activation import Activation
from trainer.config.schema import SimpleNetConfig
from trainer.data.dataset import Data
from trainer.errors import UserError
from trainer.models.model import Layer, Model


def simplenet(config: SimpleNetConfig, data: Data) -> Model:
    """Return SimpleNet: float32 features [batch, features] to logits [batch, 1] of label 1.

    Raises:
        UserError: The data is not vectors of `config.features` features.
    """
    first = data.training.inputs(np.zeros(1, dtype=np.int64))
    if not isinstance(first, Tensor) or not first.is_floating_point() or first.dim() != 2:  # noqa: PLR2004
        raise UserError(
            "model.name=simplenet needs vectors of features, which this data does not have: use data=binary"
        )
    if first.shape[1] != config.features:
        raise UserError(
            f"model.features={config.features}, but the data's samples have {first.shape[1]} features "
            "(data.features): make them equal"
        )
    return Model(
        layers=(
            Layer("linear1", partial(nn.Linear, config.features, config.hidden)),
            Layer("relu", nn.ReLU),
            Layer("linear2", partial(nn.Linear, config.hidden, 1)),
        ),
        loss=BinaryLoss(),
    )


class BinaryLoss:
    """Binary cross-entropy on logits, summed over the samples."""

    def count(self, target: Activation) -> int:
        """Return the number of samples."""
        return len(cast(Tensor, target))

    def __call__(self, output: Activation, target: Activation) -> Tensor:
        """Return the sum, given logits [batch, 1] and labels [batch]."""
        logits, labels = cast(Tensor, output), cast(Tensor, target)
        # Without the reshape, [batch, 1] and [batch] would broadcast to every pair of samples.
        return F.binary_cross_entropy_with_logits(
            logits.reshape(labels.shape), labels.to(logits.dtype), reduction="sum"
        )

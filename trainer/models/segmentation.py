"""The loss and a metric of models that give every pixel a class.

Both take logits [batch, classes, height, width] and int64 classes [batch, height, width]; `MASKED` marks
pixels without one.
"""

from typing import cast

import torch
from torch import Tensor

from trainer.activation import Activation
from trainer.models.gpt import MASKED, TokenLoss


class PixelLoss(TokenLoss):
    """Cross-entropy, summed over the pixels that have a class.

    As a loss of tokens it has a deterministic kernel on CUDA too, where torch's loss of planes has none.
    """

    def __call__(self, output: Activation, target: Activation) -> Tensor:
        """Return the sum."""
        return super().__call__(cast(Tensor, output).movedim(1, -1), target)


def iou(output: Activation, target: Activation) -> tuple[Tensor, int]:
    """Return the sum over the images of each one's intersection over union, and the number of images.

    That of an image is the mean over the classes that it has, or is given, the background (class 0) aside; 1
    where there are none. So small things count as much as large ones.
    """
    logits, wanted = cast(Tensor, output), cast(Tensor, target)
    given = logits.argmax(1).masked_fill(wanted == MASKED, MASKED)
    classes = torch.arange(1, logits.shape[1], device=logits.device)[:, None]
    one, other = (
        image.flatten(1)[:, None] == classes for image in (given, wanted)
    )  # [batch, classes, pixels]
    union = (one | other).sum(-1)
    there = (union > 0).sum(-1)
    ratios = ((one & other).sum(-1).double() / union.clamp(min=1)).sum(-1)
    return torch.where(there > 0, ratios / there.clamp(min=1), 1.0).sum(), len(wanted)

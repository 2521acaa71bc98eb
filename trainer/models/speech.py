"""Deep recurrent speech recognition as layers "front", "recurrent.0" ... "recurrent.{n-1}", "head".

The network is Deep Speech 2's (Amodei et al. 2015, https://arxiv.org/abs/1512.02595): convolutions over time
and frequency, recurrent layers, and letters by connectionist temporal classification (Graves et al. 2006).
Layer normalisation (Ba et al. 2016) replaces Deep Speech 2's over the batch, so no sample's result depends on
other samples, nor on padding.

An activation is a dict of `hidden`, [batch, time, width], and of the sequences' `lengths`, int64 [batch].
"""

from collections.abc import Callable
from functools import partial
from typing import TypedDict, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.activation import Activation
from trainer.config.models import SpeechConfig
from trainer.data.dataset import Data
from trainer.data.speech.letters import BLANK
from trainer.data.speech.load import Utterances
from trainer.errors import UserError
from trainer.models.model import Layer, Model
from trainer.models.recurrent import Recurrent

_TIMES, _BANDS = (11, 11), (41, 21)  # sizes of Deep Speech 2's two convolutions
_CEILING = 20.0  # of its rectifiers


class Steps(TypedDict):
    """What passes between layers."""

    hidden: Tensor
    lengths: Tensor


def speech(config: SpeechConfig, data: Data) -> Model:
    """Return a model from features to logits of letters, for the data's features and letters.

    Raises:
        UserError: The data is no speech, or a transcript is too long for its frames at this stride.
    """
    training, validation = data.training, data.validation
    if not isinstance(training, Utterances) or not isinstance(validation, Utterances):
        raise UserError("model.name=speech needs recordings with transcripts: use data=speech")
    for part in (training, validation):
        part.check(config.stride)
    front: Callable[[], nn.Module] = partial(StackingFront, training.bands, config.width, config.stride)
    inputs = config.width
    if config.front == "conv":
        front = partial(ConvolutionalFront, training.bands, config.channels, config.stride)
        inputs = config.channels * ((training.bands + 3) // 4)  # halved twice, rounded up
    outputs = config.width * (2 if config.bidirectional else 1)
    layers = [Layer("front", front)]
    for number in range(config.layers):
        block = partial(Block, config, outputs if number else inputs)
        layers.append(Layer(f"recurrent.{number}", block))
    layers.append(Layer("head", partial(Head, outputs, training.letters.vocabulary)))
    return Model(layers=tuple(layers), loss=CTCLoss())


class StackingFront(nn.Module):
    """Joins neighbouring frames into one, and projects them.

    Args:
        bands: Features of a frame.
        width: Of its output.
        stride: Frames that become one; the last is filled up with zeros.
    """

    def __init__(self, bands: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.linear = nn.Linear(stride * bands, width)

    def forward(self, given: dict[str, Tensor]) -> Steps:
        """Map frames [batch, time, bands] and lengths to steps [batch, time / stride, width]."""
        frames = F.pad(given["frames"], (0, 0, 0, -given["frames"].shape[1] % self.stride))
        stacked = frames.reshape(len(frames), -1, self.stride * frames.shape[2])
        return {"hidden": F.relu(self.linear(stacked)), "lengths": shortened(given["lengths"], self.stride)}


class ConvolutionalFront(nn.Module):
    """Deep Speech 2's two convolutions over time and frequency.

    Args:
        bands: Features of a frame; each convolution halves them.
        channels: Of both.
        stride: Frames that become one, in the first convolution.
    """

    def __init__(self, bands: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.first, self.second = (
            nn.Conv2d(inputs, channels, (time, bands), (step, 2), padding=(time // 2, bands // 2))
            for inputs, time, bands, step in zip((1, channels), _TIMES, _BANDS, (stride, 1), strict=True)
        )

    def forward(self, given: dict[str, Tensor]) -> Steps:
        """Map frames [batch, time, bands] to steps [batch, time / stride, channels * bands / 4]."""
        lengths = shortened(given["lengths"], self.stride)
        x = given["frames"].unsqueeze(1)
        for convolution in (self.first, self.second):
            x = convolution(x).clamp(0, _CEILING)
            # What convolutions make of padding would reach into the sequences in the next one.
            x = x * (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None, :, None]
        return {"hidden": x.transpose(1, 2).flatten(2), "lengths": lengths}


class Block(nn.Module):
    """Normalisation, a recurrent layer and dropout.

    Args:
        config: The model's.
        inputs: Features of a step.
    """

    def __init__(self, config: SpeechConfig, inputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.recurrent = Recurrent(
            config.cell, inputs, config.width, bidirectional=config.bidirectional, fused=config.fused
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, steps: Steps) -> Steps:
        """Map steps [batch, time, inputs] to steps [batch, time, directions * width]."""
        hidden = self.recurrent(self.norm(steps["hidden"]), steps["lengths"])
        return {"hidden": self.dropout(hidden), "lengths": steps["lengths"]}


class Head(nn.Module):
    """Normalisation and the projection to letters.

    Args:
        inputs: Features of a step.
        vocabulary: Letters, the blank among them.
    """

    def __init__(self, inputs: int, vocabulary: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.linear = nn.Linear(inputs, vocabulary)

    def forward(self, steps: Steps) -> dict[str, Tensor]:
        """Map steps to logits [batch, time, vocabulary] and lengths [batch]."""
        return {"logits": self.linear(self.norm(steps["hidden"])), "lengths": steps["lengths"]}


class CTCLoss:
    """Connectionist temporal classification, summed over utterances."""

    def count(self, target: Activation) -> int:
        """Return the number of utterances."""
        return len(cast(dict[str, Tensor], target)["lengths"])

    def __call__(self, output: Activation, target: Activation) -> Tensor:
        """Return the sum, given logits and letters with their lengths."""
        output, target = cast(dict[str, Tensor], output), cast(dict[str, Tensor], target)
        chances = output["logits"].float().log_softmax(-1).transpose(0, 1)
        if chances.is_cuda and torch.are_deterministic_algorithms_enabled():
            chances = chances.cpu()  # the kernel for GPUs adds in any order
        device = chances.device
        return F.ctc_loss(
            chances,
            target["letters"].to(device),
            output["lengths"].to(device),
            target["lengths"].to(device),
            blank=BLANK,
            reduction="sum",
            zero_infinity=True,
        )


def shortened(lengths: Tensor, stride: int) -> Tensor:
    """Return the lengths of sequences in which `stride` frames become one."""
    return torch.div(lengths + stride - 1, stride, rounding_mode="floor")

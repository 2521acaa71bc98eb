"""The work of all contestants: one GPT, one batch and one optimizer, described by plain values.

This module imports neither MPI nor Horovod, because peers run in environments without them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.config.schema import GPTConfig
from trainer.data.dataset import Data
from trainer.models.gpt import gpt
from trainer.models.model import Layer, Model
from trainer.plan.costs import layer_costs
from trainer.plan.stages import partition_model
from trainer.seeds import derive

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.1
BLOCK = "block."  # the prefix of transformer blocks' names


@dataclass(frozen=True)
class Work:
    """The size of a training step.

    Attributes:
        stages: Ranks of a replica.
        replicas: Copies of the model.
        blocks: Transformer blocks, between an embedding and a head.
        width: The width of the blocks.
        heads: Attention heads.
        context: Tokens per sample.
        vocabulary: Distinct tokens.
        micro_batch: Samples per micro-batch.
        micro_batches: Micro-batches per replica and step.
    """

    stages: int = 2
    replicas: int = 1
    blocks: int = 8
    width: int = 256
    heads: int = 8
    context: int = 128
    vocabulary: int = 256
    micro_batch: int = 2
    micro_batches: int = 8

    @property
    def ranks(self) -> int:
        """Return the number of ranks."""
        return self.stages * self.replicas

    @property
    def samples(self) -> int:
        """Return the number of samples of a step, over all replicas."""
        return self.replicas * self.micro_batches * self.micro_batch

    def plain(self) -> dict[str, int]:
        """Return the fields, for JSON."""
        return asdict(self)

    def data(self) -> Data:
        """Return the samples of one step."""
        tokens = RandomTokens(self.samples, self.context, self.vocabulary)
        return Data(tokens, tokens, fingerprint=f"random {self.plain()}", vocabulary=self.vocabulary)

    def model(self) -> Model:
        """Return the model, without dropout or ties, with learned positions."""
        names = "blocks", "width", "heads", "context"
        settings = {name: getattr(self, name) for name in names}
        return gpt(GPTConfig(**settings, dropout=0.0, tied=False), self.data())

    def parts(self, placement: Sequence[int]) -> list[tuple[Layer, ...]]:
        """Return the layers of each stage, partitioned as the trainer does: by the total cost of each rank.

        Args:
            placement: The rank of the pipeline that holds each stage.
        """
        model = self.model()
        example = self.data().training.inputs(np.arange(self.micro_batch))
        stages = partition_model(layer_costs(model, example), None, placement).stages
        return [tuple(model.layers[layer] for layer in layers) for layers in stages]

    def blocks_by_rank(self, placement: Sequence[int]) -> list[int]:
        """Return how many transformer blocks each rank of the pipeline holds."""
        held = [0] * (max(placement) + 1)
        for rank, layers in zip(placement, self.parts(placement), strict=True):
            held[rank] += sum(layer.name.startswith(BLOCK) for layer in layers)
        return held

    def batch(self, replica: int) -> tuple[Tensor, Tensor]:
        """Return a replica's inputs and targets, int64 [samples, context], the same in every step."""
        share = self.micro_batches * self.micro_batch
        samples = np.arange(share) + replica * share
        tokens = self.data().training
        inputs, targets = tokens.inputs(samples), tokens.targets(samples)
        assert isinstance(inputs, Tensor)
        assert isinstance(targets, Tensor)
        return inputs, targets

    def micro_batches_of(self, replica: int) -> list[tuple[Tensor, Tensor]]:
        """Return a replica's inputs and targets, by micro-batch."""
        parts = (torch.split(tokens, self.micro_batch) for tokens in self.batch(replica))
        return list(zip(*parts, strict=True))


class Part(nn.Sequential):
    """Consecutive layers of the model, with the trainer's initial weights."""

    def __init__(self, layers: Sequence[Layer], seed: int = 0) -> None:
        modules = []
        for layer in layers:
            torch.manual_seed(derive(seed, "weights", layer.name))
            modules.append(layer.build())
        super().__init__(*modules)


class RandomTokens:
    """Samples of random tokens."""

    def __init__(self, samples: int, context: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._tokens = torch.randint(vocabulary, (samples, context + 1), generator=generator)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._tokens)

    def inputs(self, samples: NDArray[np.int64]) -> Tensor:
        """Return int64 tokens [samples, context]."""
        return self._tokens[torch.from_numpy(samples), :-1]

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        """Return the next tokens, int64 [samples, context]."""
        return self._tokens[torch.from_numpy(samples), 1:]


def random_tokens(**work: int) -> Data:
    """Return the data of the given work, for `data.target`."""
    return Work(**work).data()


def mean_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [samples, context, vocabulary]."""
    return F.cross_entropy(logits.flatten(0, -2), tokens.flatten())


def adamw(module: nn.Module) -> torch.optim.AdamW:
    """Return the optimizer of every contestant."""
    return torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

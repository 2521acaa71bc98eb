"""Random numbers of a forward pass: they depend on what is computed, not on the rank or the time."""

import torch

from trainer.seeds import derive, seed_device


class Randomness:
    """Seeds a device before every layer of every micro-batch.

    Attributes:
        step: The current optimizer step.
        first_micro_batch: The index of this replica's micro-batch 0 within the global batch.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.step = 0
        self.first_micro_batch = 0

    def seed_layer(self, layer: str, micro_batch: int, device: torch.device) -> None:
        """Seed the device's default generator for one layer's forward of one micro-batch."""
        index = self.first_micro_batch + micro_batch
        seed_device(device, derive(self._seed, "forward", self.step, index, layer))

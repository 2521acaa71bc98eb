"""The random numbers of a run: they depend on what is computed, not on the rank or the time.

Custom code may draw from the global generators of torch, NumPy and Python wherever it runs: in a layer's
forward, in the loss, when samples are read. Each of these is preceded by a seed of its own, so its numbers
are the same in every layout, after every resume, and in a forward that is recomputed. The inputs and the
targets of a micro-batch are read under the same seed, often on different ranks: a random crop cuts both
alike.
"""

import torch

from trainer.seeds import derive, seed_generators


class Randomness:
    """Seeds the generators before custom code runs.

    Attributes:
        run_seed: The run's seed.
        step: The current optimizer step; None in a validation, whose numbers are the same every time.
        first_micro_batch: The index of this replica's micro-batch 0 within the global batch.
    """

    def __init__(self, seed: int) -> None:
        self.run_seed = seed
        self.step: int | None = 0
        self.first_micro_batch = 0

    def seed_layer(self, layer: str, micro_batch: int, device: torch.device) -> None:
        """Seed for one layer's forward of one micro-batch."""
        seed_generators(self._of("forward", micro_batch, layer), device)

    def seed_loss(self, micro_batch: int, device: torch.device) -> None:
        """Seed for the loss of one micro-batch."""
        seed_generators(self._of("loss", micro_batch), device)

    def seed_data(self, micro_batch: int) -> None:
        """Seed for reading the inputs, or the targets, of one micro-batch."""
        seed_generators(self._of("data", micro_batch))

    def place(self, micro_batch: int) -> str:
        """Return, in words, which micro-batch of which step it is, both as the whole run numbers them."""
        index = self.first_micro_batch + micro_batch
        return f"micro-batch {index} of {'the validation' if self.step is None else f'step {self.step}'}"

    def _of(self, purpose: str, micro_batch: int, *rest: str) -> int:
        index = self.first_micro_batch + micro_batch
        if self.step is None:
            return derive(self.run_seed, "validation", purpose, index, *rest)
        return derive(self.run_seed, purpose, self.step, index, *rest)

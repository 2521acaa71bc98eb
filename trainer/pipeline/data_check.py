"""The check that all ranks read the same samples, and the same ones every time.

A pipeline reads inputs on one rank and targets on another. If a data set is shuffled or split by a generator
that every rank seeds differently, the two no longer belong together, and nothing fails. So before training
every rank reads a few samples, inputs and targets, and all compare what they have read.
"""

import traceback
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.activation import Activation, flatten
from trainer.config.schema import Config
from trainer.data.dataset import Data, Dataset, is_endless
from trainer.data.order import order_of
from trainer.distributed.world import Communicator, differing
from trainer.errors import UserError, listed
from trainer.pipeline.micro_batches import read_samples
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.tensor_bytes import bytes_of

_REMEDY = (
    "a number must give the same sample on every rank and every time. A shuffle or a split needs a seed of "
    "its own (np.random.default_rng(0)); what augments samples draws from the global generators of torch, "
    "NumPy or Python, which are seeded for every micro-batch"
)


def check_data(data: Data, config: Config, world: Communicator, *, reads: bool = True) -> None:
    """Compare what the ranks read; every rank calls this.

    Args:
        data: The data.
        config: The run's configuration.
        world: All ranks.
        reads: Whether this rank reads samples in training. Rank 0 does: it holds the first stage.

    Raises:
        UserError: There are no training samples, some cannot be read, a second reading differs from the
            first, or ranks differ; in the last case on every rank alike.
    """
    parts = {"training": data.training, "validation": data.validation}
    _agree({f"the number of {name} samples": str(len(part)) for name, part in parts.items()}, world)
    if not len(data.training):
        raise UserError("the data has no training samples: look at data.path, or at what data.target returns")
    if is_endless(data.training) and config.train.epochs is not None:
        raise UserError(
            f"train.epochs={config.train.epochs:g} needs data with a length, and the stream of data.target "
            "has none: give train.steps, or the stream a __len__"
        )
    seen: dict[str, str] = {}
    for name, part in parts.items():
        for samples in _chosen(name, part, config) if reads else ():
            seen |= _read(part, name, samples, config.train.seed)
    _agree(seen if reads else None, world)


def _chosen(name: str, part: Dataset, config: Config) -> list[NDArray[np.int64]]:
    """Return the samples of two micro-batches, or of one to validate."""
    size, seed, length = config.batch.micro_size, config.train.seed, len(part)
    if length == 0:
        return []
    first = np.arange(min(size, length), dtype=np.int64)
    if name == "validation":
        return [first]
    ordered = order_of(part, seed).samples(0, size)
    return [first] if np.array_equal(first, ordered) else [first, ordered]


def _read(part: Dataset, name: str, samples: NDArray[np.int64], seed: int) -> dict[str, str]:
    """Return the digests of some samples' inputs and targets, by what they are of.

    Raises:
        UserError: They cannot be read, or a second reading differs.
    """
    seen = {}
    for kind, read in (("inputs", part.inputs), ("targets", part.targets)):
        what = f"the {kind} of {name} samples {', '.join(map(str, samples[:4].tolist()))}"
        try:
            once, twice = (_digest(read_samples(read, [samples], Randomness(seed))[0]) for _ in range(2))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{what} cannot be read: {type(error).__name__}: {error}{_place(error)}"
            ) from error
        if once != twice:
            raise UserError(f"{what}, read twice, differ: {_REMEDY}")
        seen[what] = once
    return seen


def _place(error: Exception) -> str:
    """Return where an error comes from, such as " (my_data.py, line 41)"."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _agree(seen: Mapping[str, str] | None, world: Communicator) -> None:
    """Raise a UserError unless all ranks have seen the same; None: this one has not looked."""
    given = world.all_gather_objects(None if seen is None else dict(seen))
    everyone = [given[0] if each is None else each for each in given]
    for what, ranks in differing(everyone):
        value, other = everyone[0][what], everyone[ranks[0]].get(what)
        values = "" if len(value) > _SHORT else f" ({value} there, {other} here)"
        raise UserError(
            f"the ranks read different data: {what} differ between rank 0 and {listed('rank', ranks)}"
            f"{values}: {_REMEDY}"
        )


_SHORT = 12  # letters: a number, not a digest


def _digest(activation: Activation) -> str:
    tensors, nest = flatten(activation)
    digest = blake2b(repr(nest).encode(), digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor.to_dense() if tensor.is_sparse else tensor))
    return digest.hexdigest()

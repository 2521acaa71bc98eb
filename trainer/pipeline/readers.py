"""What reads a rank's micro-batches: the rank itself, or workers, which read a step ahead of it.

Workers build the data from its configuration, as every rank does, and read each micro-batch under the seed
that the rank would set. So what they read has the same bits. Micro-batches are assigned to workers in turns;
each worker has one batch to read at a time, and at most one batch is read ahead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.activation import Activation
from trainer.config.schema import DataConfig
from trainer.data.build import build_data
from trainer.data.dataset import Data, Dataset
from trainer.distributed.workers import Answer, Worker
from trainer.errors import TrainingError, UserError
from trainer.pipeline.micro_batches import Reading, read
from trainer.pipeline.packing import Packed, pack, unpack
from trainer.seeds import seed_generators

_SERVE = "trainer.pipeline.readers:serve"


class Reader(Protocol):
    """Reads micro-batches."""

    def read(self, dataset: Dataset, reading: Reading) -> tuple[list[Activation], list[Activation]]:
        """Return the inputs and the targets of micro-batches; empty lists of what is not asked for."""

    def expect(self, dataset: Dataset, reading: Reading) -> None:
        """Prepare for what will be read next, if this reader can."""

    def end(self) -> None:
        """Stop reading."""


class OwnReader:
    """Reads in this process, when asked.

    Args:
        seed: The run's.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def read(self, dataset: Dataset, reading: Reading) -> tuple[list[Activation], list[Activation]]:
        """Return the inputs and the targets of micro-batches."""
        return read(dataset, reading, self._seed)

    def expect(self, dataset: Dataset, reading: Reading) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class _Setting:
    """What a worker needs to read as its rank would."""

    config: DataConfig
    seed: int
    data_seed: int
    threads: int
    deterministic: bool


@dataclass(frozen=True)
class _Request:
    """The micro-batches of a batch that one worker reads."""

    part: str
    reading: Reading
    mine: range


_Outcome: TypeAlias = tuple[list[Activation], list[Activation]] | Exception


class WorkerReader:
    """Reads in workers, ahead of the computation.

    Args:
        data: The rank's data, which the workers' must be equal to.
        config: The data's configuration, with the number of workers.
        rank: The rank's number, for messages.
        seed: The run's.
        data_seed: What the generators are seeded with before the data is built.
        deterministic: Whether torch is to be deterministic.

    Raises:
        UserError: The workers cannot be started.
    """

    def __init__(
        self, data: Data, config: DataConfig, rank: int, *, seed: int, data_seed: int, deterministic: bool
    ) -> None:
        self._data = data
        setting = _Setting(config, seed, data_seed, torch.get_num_threads(), deterministic)
        count = 1 if getattr(data.training, "sequential", False) else config.workers
        self._workers = [
            Worker(_SERVE, setting, title=f"data worker {number} of {count} of rank {rank}")
            for number in range(count)
        ]
        self._checked = False
        self._asked: _Request | None = None
        self._kept: tuple[_Request, _Outcome] | None = None  # read ahead, and not yet asked for
        for worker in self._workers:
            worker.ask(None)

    def read(self, dataset: Dataset, reading: Reading) -> tuple[list[Activation], list[Activation]]:
        """Return the inputs and the targets of micro-batches, read ahead or now.

        Raises:
            TrainingError: A worker has ended.
            UserError: The workers built other data than this rank.
        """
        self._check()
        request = self._request(dataset, reading)
        if self._kept is not None and _equal(self._kept[0], request):
            (_, outcome), self._kept = self._kept, None
            return _result(outcome)
        if self._asked is not None and not _equal(self._asked, request):
            self._kept = self._asked, self._collect(self._asked)  # for the step after this validation
        if self._asked is None:
            self._ask(request)
        return _result(self._collect(request))

    def expect(self, dataset: Dataset, reading: Reading) -> None:
        """Start to read a batch."""
        if self._asked is None:
            self._ask(self._request(dataset, reading))

    def end(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.end()

    def _check(self) -> None:
        if self._checked:
            return
        self._checked = True
        for worker in self._workers:
            if worker.answer() != self._data.fingerprint:
                raise UserError(
                    "a data worker built other data than its rank, though from the same configuration: what "
                    "data.target draws needs a seed of its own; or set data.workers=0"
                )

    def _request(self, dataset: Dataset, reading: Reading) -> _Request:
        part = "training" if dataset is self._data.training else "validation"
        return _Request(part, reading, range(0))

    def _ask(self, request: _Request) -> None:
        self._check()
        count = len(request.reading.samples)
        for number, worker in enumerate(self._workers):
            worker.ask(_Request(request.part, request.reading, range(number, count, len(self._workers))))
        self._asked = request

    def _collect(self, request: _Request) -> _Outcome:
        """Return what the workers read, or what the first micro-batch that cannot be read raises.

        Raises:
            TrainingError: A worker has ended.
        """
        self._asked = None
        both: tuple[list[Activation], list[Activation]] = ([], [])
        failed: dict[Worker, Exception] = {}  # in the order of micro-batches
        for micro_batch in range(len(request.reading.samples)):
            worker = self._workers[micro_batch % len(self._workers)]
            if worker in failed:  # it has given up the batch; the others have not
                continue
            try:
                packed: tuple[Packed | None, Packed | None] = worker.answer()
            except TrainingError:
                raise
            except Exception as error:
                failed[worker] = error
                continue
            for parts, into in zip(packed, both, strict=True):
                if parts is not None:
                    into.append(unpack(parts))
        return next(iter(failed.values()), both)


def _result(outcome: _Outcome) -> tuple[list[Activation], list[Activation]]:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _equal(one: _Request, other: _Request) -> bool:
    mine, theirs = one.reading, other.reading
    return (
        one.part == other.part
        and (mine.step, mine.first_micro_batch, mine.inputs, mine.targets)
        == (theirs.step, theirs.first_micro_batch, theirs.inputs, theirs.targets)
        and _same_samples(mine.samples, theirs.samples)
    )


def _same_samples(one: Sequence[NDArray[np.int64]], other: Sequence[NDArray[np.int64]]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def serve(setting: _Setting) -> Answer:
    """Build the data in a worker; return what reads batches of it."""
    torch.set_num_threads(setting.threads)  # results depend on it
    if setting.deterministic:
        torch.set_deterministic_debug_mode("error")
    seed_generators(setting.data_seed)
    data = build_data(setting.config)

    def answer(request: _Request | None) -> Iterator[object]:
        if request is None:
            yield data.fingerprint
            return
        dataset = data.training if request.part == "training" else data.validation
        for micro_batch in request.mine:
            read_parts = read(dataset, request.reading, setting.seed, [micro_batch])
            yield tuple(pack(part[0]) if part else None for part in read_parts)

    return answer

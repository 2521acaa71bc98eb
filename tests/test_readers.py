"""Workers that read a step ahead: the same bits as without, the same errors, and a lost one is reported."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from trainer.activation import flatten
from trainer.config.schema import CustomDataConfig
from trainer.data.build import load_data
from trainer.data.dataset import Data
from trainer.errors import TrainingError, notes
from trainer.pipeline.micro_batches import Reading
from trainer.pipeline.readers import OwnReader, WorkerReader
from trainer.seeds import derive, seed_generators

SEED = 3
BROKEN = 90


class Augmented(Dataset):  # type: ignore[type-arg]
    """Draws from every generator, in layouts and types of all kinds."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, number: int) -> Any:
        if number == BROKEN:
            raise ValueError("this item is broken on purpose")
        noise = torch.randn(3, 40) + float(np.random.random())
        inputs = {
            "noise": noise.T,
            "half": noise.bfloat16(),
            "number": torch.tensor(number),
            "flag": noise > 0,
        }
        return inputs, (noise.sum(), number)


def collate(items: list[Any]) -> Any:
    inputs = {name: torch.stack([item[0][name] for item in items]) for name in items[0][0]}
    inputs["across"] = inputs["noise"].transpose(0, 1)  # not contiguous
    return inputs, (torch.stack([item[1][0] for item in items]), None)


def reading(
    step: int | None, *micro_batches: list[int], inputs: bool = True, targets: bool = True
) -> Reading:
    return Reading([np.array(each) for each in micro_batches], step, 4, inputs, targets)


STEPS = [reading(1, [5, 3], [9, 7], [1]), reading(2, [2], [4, 6], [8, 0])]
VALIDATION = reading(None, [0, 1], [2], inputs=False)


@pytest.fixture(scope="module")
def data() -> Data:
    seed_generators(derive(SEED, "data"))
    return load_data(config(0))


def config(workers: int) -> CustomDataConfig:
    here = "tests.test_readers"
    return CustomDataConfig(target=f"{here}:Augmented", collate=f"{here}:collate", workers=workers)


@pytest.fixture(scope="module")
def make(data: Data) -> Iterator[Callable[[int], WorkerReader]]:
    made = []

    def start(workers: int) -> WorkerReader:
        data_seed = derive(SEED, "data")
        made.append(
            WorkerReader(data, config(workers), 1, seed=SEED, data_seed=data_seed, deterministic=False)
        )
        return made[-1]

    yield start
    for reader in made:
        reader.end()


@pytest.fixture(scope="module")
def reader(make: Callable[[int], WorkerReader]) -> WorkerReader:
    return make(2)


def assert_equal(seen: Any, expected: Any) -> None:
    for mine, theirs in zip(flatten(seen)[0], flatten(expected)[0], strict=True):
        assert torch.equal(mine, theirs)
        assert (mine.dtype, mine.stride()) == (theirs.dtype, theirs.stride())
    assert flatten(seen)[1] == flatten(expected)[1]


@pytest.mark.parametrize("ahead", [False, True])
def test_the_bits_are_those_of_the_rank_itself(ahead: bool, data: Data, reader: WorkerReader) -> None:
    own = OwnReader(SEED)
    for step, following in zip(STEPS, [*STEPS[1:], None], strict=True):
        seen = reader.read(data.training, step)
        if ahead and following is not None:
            reader.expect(data.training, following)
        assert_equal(seen, own.read(data.training, step))


def test_a_validation_between_what_is_read_ahead(data: Data, reader: WorkerReader) -> None:
    own = OwnReader(SEED)
    reader.expect(data.training, STEPS[0])
    inputs, targets = reader.read(data.validation, VALIDATION)
    assert inputs == []
    assert_equal(targets, own.read(data.validation, VALIDATION)[1])
    assert_equal(reader.read(data.training, STEPS[0]), own.read(data.training, STEPS[0]))


def test_an_exception_ahead_waits_for_its_step(data: Data, reader: WorkerReader) -> None:
    place = next(i for i in range(95) if data.training._chosen[i] == BROKEN)  # type: ignore[attr-defined]
    broken = reading(2, [place], [1], [2])
    reader.expect(data.training, broken)
    assert_equal(reader.read(data.validation, VALIDATION), OwnReader(SEED).read(data.validation, VALIDATION))
    with pytest.raises(ValueError, match="broken on purpose"):
        reader.read(data.training, broken)


def test_an_exception_is_the_same(data: Data, reader: WorkerReader) -> None:
    place = next(i for i in range(95) if data.training._chosen[i] == BROKEN)  # type: ignore[attr-defined]
    caught = []
    for each in (OwnReader(SEED), reader):
        with pytest.raises(ValueError, match="broken on purpose") as error:
            each.read(data.training, reading(1, [1], [place, 2]))
        caught.append((str(error.value), notes(error.value)))
    assert caught[0] == caught[1]
    test_the_bits_are_those_of_the_rank_itself(False, data, reader)  # nothing of that batch is left
    assert f"while reading the inputs of samples {place}, 2" in caught[0][1]


def test_a_lost_worker(data: Data, make: Callable[[int], WorkerReader]) -> None:
    reader = make(1)
    reader.read(data.training, STEPS[0])
    os.kill(reader._workers[0].process, signal.SIGKILL)
    with pytest.raises(
        TrainingError, match=r"data worker 0 of 1 of rank 1 \(process \d+\) was ended by SIGKILL"
    ):
        reader.read(data.training, STEPS[1])

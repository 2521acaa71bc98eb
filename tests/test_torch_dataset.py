"""Datasets of torch's as the trainer's data."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from trainer.config.schema import CustomDataConfig
from trainer.data.custom import load
from trainer.errors import UserError

X, Y = torch.arange(40.0).reshape(20, 2), torch.arange(20)
PLACES = np.array([3, 0, 7])


class Dicts(Dataset):  # type: ignore[type-arg]
    """Texts of different lengths, with a mask and two kinds of target."""

    reads = 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, number: int) -> dict[str, Any]:
        Dicts.reads += 1
        tokens = torch.arange(1 + number % 4)
        return {"input_ids": tokens, "labels": tokens + 1, "kind": number}


class Drawn(Dataset):  # type: ignore[type-arg]
    """Draws random numbers, as augmentations do."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, number: int) -> Any:
        return torch.randn(3), number


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        yield from range(3)


def pairs() -> TensorDataset:
    return TensorDataset(X, Y)


def two() -> tuple[TensorDataset, TensorDataset]:
    return TensorDataset(X[:15], Y[:15]), TensorDataset(X[15:], Y[15:])


def nothing() -> int:
    return 3


def padded(items: list[dict[str, Any]]) -> dict[str, Any]:
    length = max(len(item["input_ids"]) for item in items)
    pad = {"input_ids": 0, "labels": -100}

    def row(item: dict[str, Any], name: str) -> torch.Tensor:
        return torch.nn.functional.pad(item[name], (0, length - len(item[name])), value=pad[name])

    tensors = {name: torch.stack([row(item, name) for item in items]) for name in pad}
    return tensors | {"kind": torch.tensor([item["kind"] for item in items])}


def config(name: str, **others: Any) -> CustomDataConfig:
    return CustomDataConfig(target=f"tests.test_torch_dataset:{name}", **others)


def test_pairs_are_held_out_at_random() -> None:
    data = load(config("pairs", validation=0.2))
    assert (len(data.training), len(data.validation)) == (16, 4)
    every = [*data.training.targets(np.arange(16)).tolist(), *data.validation.targets(np.arange(4)).tolist()]
    assert sorted(every) == list(range(20))
    assert data.validation.targets(np.arange(4)).tolist() != [16, 17, 18, 19]
    targets = data.training.targets(PLACES)
    assert torch.equal(data.training.inputs(PLACES), X[targets])
    assert load(config("pairs", validation=0.2)).fingerprint == data.fingerprint
    assert load(config("pairs", validation=0.3)).fingerprint != data.fingerprint


def test_two_datasets() -> None:
    data = load(config("two"))
    assert torch.equal(data.training.inputs(PLACES), X[PLACES])
    assert data.validation.targets(np.arange(5)).tolist() == [15, 16, 17, 18, 19]


def test_dicts_with_a_collate_function() -> None:
    data = load(config("Dicts", targets=["labels"], collate="tests.test_torch_dataset:padded"))
    inputs, targets = data.training.inputs(PLACES), data.training.targets(PLACES)
    assert sorted(inputs) == ["input_ids", "kind"]
    assert targets.shape == inputs["input_ids"].shape
    assert ((targets == -100) | (targets == inputs["input_ids"] + 1)).all()
    both = load(config("Dicts", targets=["labels", "kind"], collate="tests.test_torch_dataset:padded"))
    assert [each.shape[0] for each in both.training.targets(PLACES)] == [3, 3]


def test_a_rank_that_is_first_and_last_reads_once() -> None:
    data = load(config("Dicts", targets=["labels"], collate="tests.test_torch_dataset:padded"))
    before = Dicts.reads
    data.training.inputs(PLACES)
    data.training.targets(PLACES)
    assert Dicts.reads == before + len(PLACES)
    data.training.targets(PLACES)
    assert Dicts.reads == before + 2 * len(PLACES)


def test_targets_belong_to_the_inputs_that_were_read_last() -> None:
    data = load(config("Drawn"))
    first, again = data.training.inputs(PLACES), data.training.inputs(PLACES)
    assert not torch.equal(first, again)
    assert torch.equal(data.training.targets(PLACES), data.training.targets(PLACES))


REFUSED = {
    "nothing": ({}, "returned int: it must return a torch.utils.data.Dataset with numbered items"),
    "Dicts": (
        {"collate": "tests.test_torch_dataset:padded"},
        "make a batch of type dict: they must be pairs of inputs and targets; of dicts, name the targets",
    ),
    "pairs": ({"targets": ["labels"]}, "data.targets=labels: the dataset's items have list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    others, message = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(message)):
        load(config(name, **others))

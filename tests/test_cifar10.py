"""CIFAR-10's files, in both versions, as its page has them."""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.config.schema import Cifar10Config
from trainer.data.build import example_data, load_data
from trainer.errors import UserError
from trainer.seeds import seed_generators

NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
EACH = 4


def pixels(name: str) -> tuple[NDArray[np.uint8], list[int]]:
    generator = np.random.default_rng(NAMES.index(name))
    return generator.integers(0, 256, (EACH, 3072), dtype=np.uint8), generator.integers(0, 10, EACH).tolist()


def python_2(images: NDArray[np.uint8], labels: list[int]) -> bytes:
    """Return a batch as Python 2 and NumPy 1 pickled it: protocol 2, with texts of bytes."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    rows, columns = (b"M" + struct.pack("<H", size) for size in images.shape)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01" + rows + columns + b"\x86cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<i", images.nbytes) + images.tobytes() + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    about = text(b"batch_label") + text(b"training batch 1 of 5")
    return b"\x80\x02}(" + about + text(b"labels") + numbers + text(b"data") + array + b"u."


def write_pickles(root: Path) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(python_2(*pixels(name)))
    return folder


def write_binary(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name in NAMES:
        images, labels = pixels(name)
        rows = np.concatenate((np.array(labels, dtype=np.uint8)[:, None], images), axis=1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    return folder


@pytest.mark.parametrize("write", [write_pickles, write_binary])
@pytest.mark.parametrize("above", [False, True])
def test_both_versions(write: Callable[[Path], Path], tmp_path: Path, *, above: bool) -> None:
    folder = write(tmp_path)
    config = Cifar10Config(path=str(tmp_path if above else folder), padding=0, flip=False)
    data = load_data(config)
    for part, names in ((data.training, NAMES[:5]), (data.validation, NAMES[5:])):
        every = np.arange(len(part))
        expected = [pixels(name) for name in names]
        images = np.concatenate([rows for rows, _ in expected]).reshape(-1, 3, 32, 32).astype(np.float32)
        mean, std = (np.array(each, dtype=np.float32)[:, None, None] for each in (config.mean, config.std))
        torch.testing.assert_close(part.inputs(every), torch.from_numpy((images / 255 - mean) / std))
        assert part.targets(every).tolist() == [label for _, labels in expected for label in labels]
    assert data.classes == 10
    assert data.notes == (f"{folder} has 20 + 4 images: CIFAR-10 has 50000 + 10000",)


def test_one_fingerprint(tmp_path: Path) -> None:
    one, other = (
        load_data(Cifar10Config(path=str(write(tmp_path)))) for write in (write_pickles, write_binary)
    )
    assert one.fingerprint == other.fingerprint


def test_only_training_images_are_changed_at_random(tmp_path: Path) -> None:
    data = load_data(Cifar10Config(path=str(write_binary(tmp_path))))
    read = []
    for seed in (0, 0, 1):
        seed_generators(seed)
        read.append([part.inputs(np.arange(4)) for part in (data.training, data.validation)])
    assert torch.equal(read[0][0], read[1][0])
    assert not torch.equal(read[0][0], read[2][0])
    assert torch.equal(read[0][1], read[2][1])


def test_a_plan_needs_no_files() -> None:
    data = example_data(Cifar10Config(path="nowhere"))
    assert data.training.inputs(np.zeros(2, dtype=np.int64)).shape == (2, 3, 32, 32)


class Evil:
    def __reduce__(self) -> object:
        return (exec, ("raise SystemExit('it ran')",))


IMAGES, LABELS = pixels("data_batch_3")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(Evil(), protocol=2), "it names __builtin__.exec, which is no array"),
        (python_2(IMAGES, LABELS)[:-2000], "pickle data was truncated"),
        (python_2(IMAGES[:, :-1], LABELS), "its entry 'data' is no array of bytes [images, 3072]"),
        (python_2(IMAGES, LABELS[1:]), "its entry 'labels' is no list of 4 whole numbers"),
        (python_2(IMAGES, [10, 1, 2, 3]), "it has a class 10, and these are 0 to 9"),
        (pickle.dumps({}, protocol=2), "its entry 'data' is no array"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_damaged_pickles(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = write_pickles(tmp_path) / "data_batch_3"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_data(Cifar10Config(path=str(tmp_path)))
    assert str(error.value).startswith(str(path))
    assert words in str(error.value)


@pytest.mark.parametrize("length", [0, 3073 * 4 - 1])
def test_damaged_binary_files(length: int, tmp_path: Path) -> None:
    path = write_binary(tmp_path) / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=f"data_batch_2.bin is not a file of CIFAR-10.*it has {length} bytes"):
        load_data(Cifar10Config(path=str(tmp_path)))


def test_a_folder_without_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither is nor has cifar-10-batches-py or cifar-10-batches-bin"):
        load_data(Cifar10Config(path=str(tmp_path)))

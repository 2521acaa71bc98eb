"""Folders of images: what is read, when, and which message names the file that is wrong."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.pictures import folder, write
from trainer.config.schema import ImagesConfig
from trainer.data.build import example_data, load_data
from trainer.data.dataset import Data
from trainer.errors import UserError
from trainer.seeds import seed_generators

SIZE = 12


def config(path: Path, **values: Any) -> ImagesConfig:
    return ImagesConfig(path=str(path), size=SIZE, **values)


def every(data: Data, part: str = "training") -> tuple[torch.Tensor, torch.Tensor]:
    dataset = getattr(data, part)
    samples = np.arange(len(dataset))
    return dataset.inputs(samples), dataset.targets(samples)


def test_a_folder_with_train_and_val(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    folder(tmp_path / "val", each=1)
    data = load_data(config(tmp_path))
    images, labels = every(data)
    assert images.shape == (8, 3, SIZE, SIZE)
    assert images.dtype is torch.float32
    assert labels.tolist() == [0] * 4 + [1] * 4
    assert every(data, "validation")[1].tolist() == [0, 1]
    assert (data.classes, data.notes, data.metrics) == (2, (), ("accuracy",))


def test_one_folder_of_which_a_share_is_held_out(tmp_path: Path) -> None:
    folder(tmp_path, each=10)
    data = load_data(config(tmp_path, validation=0.2))
    parts = [
        {data_part.path(i) for i in range(len(data_part))} for data_part in (data.training, data.validation)
    ]
    assert [len(part) for part in parts] == [16, 4]
    assert not parts[0] & parts[1]
    assert every(data, "validation")[1].tolist() == [0, 0, 1, 1]
    again, other = (load_data(config(tmp_path, validation=0.2, seed=seed)) for seed in (0, 1))
    assert again.fingerprint == data.fingerprint != other.fingerprint
    few, most = (load_data(config(tmp_path, validation=share)) for share in (0.01, 0.99))
    assert "no image is held out" in few.notes[0]
    assert every(most)[1].tolist() == [0, 1]


def test_what_is_no_image_is_left_out(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    folder(tmp_path / "val")
    (tmp_path / "train/cat/notes.txt").touch()
    (tmp_path / "train/cat/.hidden.png").touch()
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    write(tmp_path / "train/dog/images/deep/1.JPEG", 1)
    (tmp_path / "train/dog/images/loop").symlink_to(tmp_path / "train/dog", target_is_directory=True)
    data = load_data(config(tmp_path))
    assert len(data.training) == 9
    assert data.notes == (f"1 files below {tmp_path} are no images, and were left out",)


def test_validation_is_resized_and_cropped_in_the_middle(tmp_path: Path) -> None:
    """As to resize the whole image first, but without the rounding of its long side."""
    write(tmp_path / "train/a/1.png", 0, size=(40, 32))
    write(tmp_path / "val/a/1.png", 0, size=(40, 32))
    given = config(tmp_path, resize=16, crop="none", flip=False)
    data = load_data(given)
    with Image.open(tmp_path / "val/a/1.png") as image:
        resized = image.resize((20, 16), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.float32)[2:14, 4:16].transpose(2, 0, 1) / 255
    mean, std = (np.array(each, dtype=np.float32)[:, None, None] for each in (given.mean, given.std))
    expected = torch.from_numpy((pixels - mean) / std)
    for part in ("training", "validation"):
        torch.testing.assert_close(every(data, part)[0][0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", [{"crop": "resized"}, {"crop": "padded"}, {"crop": "none"}])
def test_training_images_follow_the_seed(values: dict[str, Any], tmp_path: Path) -> None:
    folder(tmp_path / "train", each=8)
    folder(tmp_path / "val", each=1)
    data = load_data(config(tmp_path, **values))
    read = []
    for seed in (0, 0, 1):
        seed_generators(seed)
        read.append([every(data)[0], every(data, "validation")[0]])
    assert torch.equal(read[0][0], read[1][0])
    assert not torch.equal(read[0][0], read[2][0])
    assert torch.equal(read[0][1], read[2][1])


def test_grey_images(tmp_path: Path) -> None:
    folder(tmp_path / "train", each=1)
    folder(tmp_path / "val", each=1)
    data = load_data(config(tmp_path, channels=1, mean=[0.5], std=[0.5]))
    assert every(data)[0].shape == (2, 1, SIZE, SIZE)
    with pytest.raises(UserError, match=r"data\.mean=\[0.485, 0.456, 0.406\] must have one number for each"):
        load_data(config(tmp_path, channels=1))


def test_labels_and_loading_decode_no_image(tmp_path: Path) -> None:
    for name in ("train/a/1.jpg", "val/a/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"no image")
    data = load_data(config(tmp_path))
    assert data.training.targets(np.zeros(1, dtype=np.int64)).tolist() == [0]


def test_a_plan_needs_no_files() -> None:
    data = example_data(ImagesConfig(path="nowhere", classes=1000))
    assert data.training.inputs(np.zeros(2, dtype=np.int64)).shape == (2, 3, 224, 224)
    assert data.classes == 1000
    with pytest.raises(UserError, match="nowhere"):
        example_data(ImagesConfig(path="nowhere"))


def truncated(root: Path) -> None:
    path = root / "train/cat/0.png"
    path.write_bytes(path.read_bytes()[:-40])


def deep(root: Path) -> None:
    Image.fromarray(np.full((20, 20), 40_000, dtype=np.uint16)).save(root / "train/cat/0.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, r"the image .*train/cat/0\.png cannot be read: .+: repair or remove it"),
        (
            lambda root: (root / "train/cat/0.png").write_bytes(b""),
            r"cat/0\.png cannot be read: cannot identify",
        ),
        (lambda root: (root / "train/cat/0.png").unlink(), r"cat/0\.png cannot be read: .*No such file"),
        (deep, r"cat/0\.png has more than 8 bits a channel \(mode I;16\): convert it to 8 bits"),
    ],
)
def test_broken_images_are_named(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder(tmp_path / "train")
    folder(tmp_path / "val")
    data = load_data(config(tmp_path))
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        every(data)


def cleared(root: Path) -> None:
    for path in (root / "val/dog").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "values", "message"),
    [
        (cleared, {}, "the class folder {root}/val/dog has no images (.bmp, "),
        (lambda root: (root / "val").rename(root / "test"), {}, "none named val or validation"),
        (
            lambda root: folder(root / "val", ("cow", "pig")),
            {},
            "{root}/val has classes that {root}/train has not: cow, pig",
        ),
        (
            lambda root: folder(root / "train", ("cow",)),
            {},
            "{root}/train has classes that {root}/val has not: cow",
        ),
        (
            lambda root: (root / "train").rename(root / "cats"),
            {"path": "{root}/cats/cat"},
            "{root}/cats/cat has no folders",
        ),
        (lambda _: None, {"path": "{root}/nowhere"}, "data.path={root}/nowhere is no folder"),
        (lambda _: None, {"path": "{root}/train/cat/0.png"}, "is no folder"),
        (
            lambda root: (root / "train/dog/9.png").symlink_to("gone"),
            {},
            "the image {root}/train/dog/9.png cannot be read: No such file or directory",
        ),
        (lambda _: None, {"classes": 3}, "data.classes=3, but {root}/train has 2 class folders"),
        (lambda _: None, {"resize": 8}, "data.resize=8 must not be less than data.size=12"),
    ],
)
def test_folders_that_do_not_fit(
    damage: Callable[[Path], Any], values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder(tmp_path / "train")
    folder(tmp_path / "val")
    damage(tmp_path)
    path = values.pop("path", "{root}").format(root=tmp_path)
    with pytest.raises(UserError, match=re.escape(message.format(root=tmp_path))):
        load_data(config(Path(path), **values))

"""Whatever is wrong with a checkpoint ends in one message; nothing of it is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from tests.support.alone import Alone
from tests.support.checkpoints import PROGRESS, built, equal, numbers, optimizer_of, train
from tests.support.damage import DAMAGES, edit_json, layer_files, rewrite
from trainer.checkpoint.checkpoint import Checkpoint
from trainer.checkpoint.folders import all_checkpoints, candidates, remove_old
from trainer.checkpoint.save import file_name, save_checkpoint
from trainer.checkpoint.schema import DamagedError
from trainer.errors import UserError
from trainer.models.model import Layer
from trainer.pipeline.build import build_layer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = built(seed=1)
    optimizer = optimizer_of(layers)
    train(layers, optimizer)
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints"), layers, optimizer, PROGRESS, Alone())


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / whole.name)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_and_nothing_loaded(checkpoint: Path, damage: str) -> None:
    DAMAGES[damage](checkpoint)
    layers = built(seed=2)
    optimizer = torch.optim.AdamW([p for layer in layers for p in layer.module.parameters()], fused=True)
    with pytest.raises(DamagedError, match=r"^the checkpoint .*: use an older one$") as caught:
        Checkpoint(checkpoint).restore(layers, optimizer, "adamw")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(checkpoint))
    assert not optimizer.state


def test_a_newer_trainer_is_named(checkpoint: Path) -> None:
    DAMAGES["progress with more keys"](checkpoint)
    with pytest.raises(DamagedError, match="unknown keys, newer: a newer trainer may have made it"):
        Checkpoint(checkpoint).progress()


def test_settings_do_not_come_from_a_checkpoint(checkpoint: Path) -> None:
    values = {
        "groups": [{"settings": None, "values": {"betas": {"tuple": [0.0, 0.0]}}}],
        "attributes": {},
        "state": {},
    }
    rewrite(checkpoint, "optimizer.json", json.dumps(values).encode())
    layers = built(seed=2)
    with pytest.raises(DamagedError, match=r"optimizer\.json: AdamW keeps nothing there"):
        Checkpoint(checkpoint).restore(layers, optimizer_of(layers), "adamw")


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"groups": 1, "attributes": {}, "state": {}}', "[" * 200_000]
)
def test_a_damaged_file_of_the_optimizer(checkpoint: Path, content: str) -> None:
    rewrite(checkpoint, "optimizer.json", content.encode())
    layers = built(seed=2)
    with pytest.raises(DamagedError, match=r"damaged: optimizer\.json: "):
        Checkpoint(checkpoint).restore(layers, optimizer_of(layers), "adamw")


def test_format_1_still_loads(checkpoint: Path, whole: Path) -> None:
    """As it was written before files had the names of their layers."""
    for name in layer_files(checkpoint):
        rewrite(checkpoint, name, save(load((checkpoint / name).read_bytes()), metadata={"scalars": "{}"}))
    edit_json(checkpoint, "manifest.json", lambda content: content.update(format=1))
    restored = []
    for path in (checkpoint, whole):
        layers = built(seed=2)
        optimizer = optimizer_of(layers)
        Checkpoint(path).restore(layers, optimizer, "adamw")
        train(layers, optimizer)
        restored.append(numbers(layers))
    assert equal(*restored)


def test_scalars_of_format_1(checkpoint: Path) -> None:
    """They were plain JSON."""
    name = layer_files(checkpoint)[0]
    tensors = load((checkpoint / name).read_bytes())
    for key in [key for key in tensors if key.startswith("optimizer.")]:
        del tensors[key]
    scalars = {"weight": {"seen": 3, "parts": [1, 2]}}
    rewrite(checkpoint, name, save(tensors, metadata={"scalars": json.dumps(scalars)}))
    edit_json(checkpoint, "manifest.json", lambda content: content.update(format=1))
    layers = built(seed=2)[:1]

    class Plain(torch.optim.Optimizer):
        def step(self) -> None: ...  # type: ignore[override]

    optimizer = Plain(layers[0].module.parameters(), {"lr": 1.0})
    Checkpoint(checkpoint).restore(layers, optimizer, "adamw")
    assert optimizer.state[layers[0].module.weight] == {"seen": 3, "parts": [1, 2]}


def test_a_disk_that_is_full(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = built(seed=1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        UserError,
        match=r"step-00000007 cannot be saved: writing layers/first.safetensors \(\d+ bytes\): "
        r"No space left on device \(\d+ bytes are free\); older ones stay",
    ):
        save_checkpoint(tmp_path, layers, None, PROGRESS, Alone())
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
    Checkpoint(checkpoint).restore(layers, None, "adamw")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be saved: making the folder: Not a directory"):
        save_checkpoint(tmp_path / "file", built(seed=1), None, PROGRESS, Alone())


@pytest.mark.parametrize("name", ["x" * 300, "é" * 100, "../up", ".", "a/b", "con\0trol", "q" * 199])
def test_names_of_layers(tmp_path: Path, name: str) -> None:
    layer = build_layer([Layer(name, lambda: nn.Linear(2, 2))], 0, 1, torch.device("cpu"))
    path = save_checkpoint(tmp_path, [layer], None, PROGRESS, Alone())
    again = build_layer([Layer(name, lambda: nn.Linear(2, 2))], 0, 2, torch.device("cpu"))
    Checkpoint(path).restore([again], None, "adamw")
    assert torch.equal(again.module.weight, layer.module.weight)
    assert {file.parent.name for file in path.rglob("*.safetensors")} == {"layers"}


def test_long_names_stay_apart() -> None:
    assert len({file_name("x" * 300 + end) for end in ("", "a", "b")}) == 3


def test_candidates_are_the_newest_first_and_include_damaged_ones(checkpoint: Path) -> None:
    folder = checkpoint.parent
    shutil.copytree(checkpoint, folder / "step-100000000")
    (folder / "step-00000100").mkdir()
    shutil.copytree(checkpoint, folder / "step-00000200.partial")
    names = ["step-100000000", "step-00000100", checkpoint.name]
    assert [path.name for path in candidates("auto", folder)] == names
    assert candidates("none", folder) == []
    assert candidates("auto", folder / "nowhere") == []


def test_later_checkpoints_do_not_displace_the_one_just_saved(checkpoint: Path) -> None:
    """A run that passed over step 100, which is damaged, goes on from step 3."""
    folder = checkpoint.parent
    for step in (3, 100):
        shutil.copytree(checkpoint, folder / f"step-{step:08d}")
    shutil.copytree(checkpoint, folder / "step-00000005.partial")
    remove_old(folder, keep=1, newest=7)
    assert [path.name for path in all_checkpoints(folder)] == ["step-00000007", "step-00000100"]
    assert not list(folder.glob("*.partial"))

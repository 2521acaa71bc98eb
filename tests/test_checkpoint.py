"""A checkpoint restores what was saved, bit for bit, or reports what is wrong with it."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.alone import Alone
from tests.support.checkpoints import CPU, LAYERS, PROGRESS, built, equal, numbers, optimizer_of, train
from trainer.checkpoint.checkpoint import Checkpoint
from trainer.checkpoint.folders import find_checkpoint, remove_old
from trainer.checkpoint.save import save_checkpoint
from trainer.errors import UserError
from trainer.pipeline.build import build_layer
from trainer.pipeline.layer import BuiltLayer


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, list[BuiltLayer], torch.optim.Optimizer]:
    layers = built(seed=1)
    optimizer = optimizer_of(layers)
    for _ in range(3):
        train(layers, optimizer)
    path = save_checkpoint(tmp_path / "checkpoints", layers, optimizer, PROGRESS, Alone())
    return path, layers, optimizer


Saved = tuple[Path, list[BuiltLayer], torch.optim.Optimizer]


def test_training_resumes_as_if_it_had_not_stopped(saved: Saved) -> None:
    path, layers, optimizer = saved
    restored = built(seed=2)
    assert not equal(numbers(restored), numbers(layers))
    again = optimizer_of(restored)
    Checkpoint(path).restore(restored, again, "adamw")
    assert equal(numbers(restored), numbers(layers))
    for _ in range(3):
        train(layers, optimizer)
        train(restored, again)
    assert equal(numbers(restored), numbers(layers))


def test_copies_of_a_tied_parameter_have_their_own_state(saved: Saved) -> None:
    restored = built(seed=2)
    optimizer = optimizer_of(restored)
    Checkpoint(saved[0]).restore(restored, optimizer, "adamw")
    owner, use = (optimizer.state[restored[index].module.weight]["exp_avg"] for index in (0, 2))
    assert torch.equal(owner, use)
    assert owner.data_ptr() != use.data_ptr()


def test_an_optimizer_loads_the_state_of_its_own_parameters(saved: Saved) -> None:
    """As with a sharded optimizer."""
    restored = built(seed=2)
    own = restored[0].module.weight
    optimizer = torch.optim.AdamW([own])
    Checkpoint(saved[0]).restore(restored, optimizer, "adamw")
    assert [id(parameter) for parameter in optimizer.state] == [id(own)]
    assert equal(numbers(restored), numbers(saved[1]))


def test_a_rank_reads_only_what_it_holds(saved: Saved) -> None:
    """Including a tied parameter, which is in its owner's file."""
    path, layers, _ = saved
    last = build_layer(LAYERS, 2, 5, CPU)
    (path / "layers" / "norm.safetensors").unlink()
    Checkpoint(path).restore([last], None, "adamw")
    assert torch.equal(last.module.weight, layers[0].module.weight)
    assert torch.equal(last.module.bias, layers[2].module.bias)


def test_progress_reads_back(saved: Saved) -> None:
    assert Checkpoint(saved[0]).progress() == PROGRESS


def test_progress_of_before_it_had_the_data_and_the_loss_scale(saved: Saved) -> None:
    progress, manifest = saved[0] / "progress.json", saved[0] / "manifest.json"
    content = json.loads(progress.read_text())
    del content["data"], content["loss_scale"]
    progress.write_text(json.dumps(content))
    entries = json.loads(manifest.read_text())
    data = progress.read_bytes()
    entries["files"]["progress.json"] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    manifest.write_text(json.dumps(entries))
    assert Checkpoint(saved[0]).progress() == replace(PROGRESS, data=None, loss_scale=None)


def test_a_missing_buffer(saved: Saved) -> None:
    norm = nn.BatchNorm1d(3)
    norm.register_buffer("more", torch.zeros(2))
    with pytest.raises(UserError, match=r"norm/more: no such buffer in the checkpoint, shape \(2,\) in this"):
        Checkpoint(saved[0]).restore([BuiltLayer(1, "norm", norm)], None, "adamw")


def test_manifest_lists_the_layers_in_order(saved: Saved) -> None:
    manifest = json.loads((saved[0] / "manifest.json").read_text())
    assert [layer["name"] for layer in manifest["layers"]] == ["first", "norm", "last"]
    assert manifest["layers"][0]["parameters"] == {"weight": [3, 3], "bias": [3]}
    assert manifest["layers"][2]["parameters"] == {"bias": [3]}
    found = {str(path.relative_to(saved[0])) for path in saved[0].rglob("*") if path.is_file()}
    assert found == {*manifest["files"], "manifest.json"}


@pytest.mark.parametrize("name", ["layers/first.safetensors", "progress.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damaged_file(saved: Saved, name: str, damage: str) -> None:
    file = saved[0] / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(UserError, match=rf"damaged: {name} does not match its manifest"):
        Checkpoint(saved[0]).restore(built(seed=2), None, "adamw")


def test_missing_file(saved: Saved) -> None:
    (saved[0] / "layers" / "last.safetensors").unlink()
    with pytest.raises(UserError, match=r"incomplete: layers/last\.safetensors"):
        Checkpoint(saved[0]).restore(built(seed=2), None, "adamw")


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"layers": 1, "files": {}, "format": 1}'])
def test_damaged_manifest(saved: Saved, content: str) -> None:
    (saved[0] / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot be read: manifest\.json"):
        Checkpoint(saved[0])


def test_other_format(saved: Saved) -> None:
    manifest = json.loads((saved[0] / "manifest.json").read_text())
    (saved[0] / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(UserError, match="format 99; this trainer reads 1"):
        Checkpoint(saved[0])


def test_other_layers(saved: Saved) -> None:
    with pytest.raises(UserError, match=r"another model: it has 3 layers .*, this model has 2"):
        Checkpoint(saved[0]).check_model(LAYERS[:2])
    Checkpoint(saved[0]).check_model(LAYERS)


def test_other_shape(saved: Saved) -> None:
    wider = BuiltLayer(0, "first", nn.Linear(3, 4))
    with pytest.raises(UserError, match=r"first/weight: shape \(3, 3\) in the checkpoint, shape \(4, 3\) in"):
        Checkpoint(saved[0]).restore([wider], None, "adamw")


def test_other_optimizer(saved: Saved) -> None:
    with pytest.raises(UserError, match="optimizer=adamw, but this run has optimizer=sgd"):
        Checkpoint(saved[0]).restore(built(seed=2), None, "sgd")


def test_newest_complete_checkpoint_is_found(saved: Saved) -> None:
    path, layers, optimizer = saved
    folder = path.parent
    later = save_checkpoint(folder, layers, optimizer, replace(PROGRESS, step=12), Alone())
    shutil.copytree(later, folder / "step-00000099.partial")
    (folder / "step-00000100").mkdir()  # without a manifest
    assert find_checkpoint("auto", folder) == later
    assert find_checkpoint("none", folder) is None
    assert find_checkpoint(str(path), folder) == path
    assert find_checkpoint(str(folder), folder / "elsewhere") == later
    assert find_checkpoint(str(folder.parent), folder / "elsewhere") == later  # a run's folder
    assert find_checkpoint("auto", folder / "elsewhere") is None


def test_path_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.resume=.* is not a checkpoint"):
        find_checkpoint(str(tmp_path), tmp_path)


@pytest.mark.parametrize(("keep", "left"), [(0, [3, 7, 12]), (1, [12]), (2, [7, 12]), (5, [3, 7, 12])])
def test_old_checkpoints_are_removed(saved: Saved, keep: int, left: list[int]) -> None:
    path, layers, optimizer = saved
    for step in (3, 12):
        save_checkpoint(path.parent, layers, optimizer, replace(PROGRESS, step=step), Alone())
    remove_old(path.parent, keep)
    assert sorted(found.name for found in path.parent.iterdir()) == [f"step-{step:08d}" for step in left]


def test_saving_again_replaces(saved: Saved) -> None:
    path, layers, optimizer = saved
    train(layers, optimizer)
    assert save_checkpoint(path.parent, layers, optimizer, PROGRESS, Alone()) == path
    restored = built(seed=2)
    Checkpoint(path).restore(restored, None, "adamw")
    assert equal(numbers(restored), numbers(layers))

"""A warm start takes the chosen layers' weights and buffers from a checkpoint, and nothing else."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.alone import Alone
from tests.support.one_process import CPU
from trainer.checkpoint.save import save_checkpoint
from trainer.checkpoint.schema import Progress
from trainer.checkpoint.warm_start import warm_start
from trainer.config.schema import AdamWConfig, CheckpointConfig
from trainer.errors import UserError
from trainer.models.model import Layer, Model, Tie
from trainer.models.simplenet import BinaryLoss
from trainer.optim.build import build_optimizer
from trainer.pipeline.build import build_layer
from trainer.pipeline.layer import BuiltLayer

TIE = Tie("weight", "first", "weight")
MODEL = Model(
    (
        Layer("first", lambda: nn.Linear(3, 3)),
        Layer("norm", lambda: nn.BatchNorm1d(3)),
        Layer("last", lambda: nn.Linear(3, 3), (TIE,)),
    ),
    BinaryLoss(),
)


def built(model: Model, seed: int) -> list[BuiltLayer]:
    return [build_layer(model.layers, index, seed, CPU) for index in range(len(model.layers))]


def numbers(layers: list[BuiltLayer]) -> dict[str, Tensor]:
    """Return weights and buffers by name."""
    return {
        f"{layer.name}/{name}": tensor.clone()
        for layer in layers
        for name, tensor in layer.module.state_dict().items()
    }


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """Return a run's folder with a checkpoint of training with Adam, and its content."""
    layers = built(MODEL, seed=1)
    first, norm, last = (layer.module for layer in layers)
    optimizer = build_optimizer(AdamWConfig(), layers)
    assert optimizer is not None
    for _ in range(3):
        optimizer.zero_grad()
        last(norm(first(torch.arange(12.0).reshape(4, 3).sin()))).square().sum().backward()
        first.weight.grad = last.weight.grad
        optimizer.step()
        with torch.no_grad():
            last.weight.copy_(first.weight)
    with torch.no_grad():
        norm.weight.fill_(0.5)
    folder = tmp_path / "run"
    progress = Progress(3, 12, 1, "adamw", {}, "other data")
    save_checkpoint(folder / "checkpoints", layers, optimizer, progress, Alone())
    return folder, numbers(layers)


Source = tuple[Path, dict[str, Tensor]]


def config(path: Path, *patterns: str) -> CheckpointConfig:
    found = CheckpointConfig(warm_start=str(path))
    if patterns:
        found.warm_start_layers = list(patterns)
    return found


def test_everything(source: Source) -> None:
    folder, expected = source
    layers = built(MODEL, seed=2)
    before = numbers(layers)
    assert changed(before, expected) == set(before)
    found = warm_start(config(folder), layers, MODEL)
    assert found == folder / "checkpoints" / "step-00000003"
    assert not changed(expected, numbers(layers))
    for path in (found, found.parent):  # a checkpoint itself, a folder of them
        again = built(MODEL, seed=3)
        assert warm_start(config(path), again, MODEL) == found
        assert not changed(expected, numbers(again))


def test_none() -> None:
    layers = built(MODEL, seed=2)
    before = numbers(layers)
    assert warm_start(CheckpointConfig(), layers, MODEL) is None
    assert not changed(before, numbers(layers))


@pytest.mark.parametrize(
    ("patterns", "taken"),
    [
        (["first"], {"first/weight", "first/bias", "last/weight"}),  # a use comes with its owner
        (["last"], {"last/bias"}),
        (
            ["norm"],
            {f"norm/{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")},
        ),
        (["f*", "l*"], {"first/weight", "first/bias", "last/weight", "last/bias"}),
        (["last", "l?st"], {"last/bias"}),
    ],
)
def test_some_layers(source: Source, patterns: list[str], taken: set[str]) -> None:
    folder, expected = source
    layers = built(MODEL, seed=2)
    before = numbers(layers)
    warm_start(config(folder, *patterns), layers, MODEL)
    after = numbers(layers)
    assert changed(before, after) == taken
    assert not taken & changed(expected, after)
    assert torch.equal(after["first/weight"], after["last/weight"])


def test_a_rank_reads_only_what_it_holds(source: Source) -> None:
    folder, expected = source
    path = folder / "checkpoints" / "step-00000003"
    (path / "layers" / "norm.safetensors").unlink()
    last = built(MODEL, seed=2)[2:]
    warm_start(config(folder), last, MODEL)
    assert not changed(numbers(last), expected)


def test_the_optimizer_is_new(source: Source) -> None:
    layers = built(MODEL, seed=2)
    optimizer = build_optimizer(AdamWConfig(), layers)
    assert optimizer is not None
    warm_start(config(source[0]), layers, MODEL)
    assert not optimizer.state
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert any(parameter is layers[0].module.weight for parameter in held)


def test_frozen_layers_take_their_weights_too(source: Source) -> None:
    layers = built(MODEL, seed=2)
    layers[0].module.requires_grad_(False)
    warm_start(config(source[0]), layers, MODEL)
    assert torch.equal(layers[0].module.weight, source[1]["first/weight"])
    assert not layers[0].module.weight.requires_grad


FIRST, NORM, LAST = MODEL.layers


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((FIRST, NORM, LAST, Layer("new", nn.ReLU)), "there is no layer 'new' among its 3"),
        (
            (FIRST, NORM, Layer("last", lambda: nn.Linear(3, 4))),
            "last/weight: no such parameter in the checkpoint, shape (4, 3) in this model",
        ),
        (
            (FIRST, NORM, Layer("last", lambda: nn.Linear(3, 3, bias=False), (TIE,))),
            "last/bias: shape (3,) in the checkpoint, no such parameter in this model",
        ),
        (
            (Layer("first", lambda: nn.Linear(2, 3)), NORM),
            "first/weight: shape (3, 3) in the checkpoint, shape (3, 2) in this model",
        ),
    ],
)
def test_other_layers(source: Source, layers: tuple[Layer, ...], message: str) -> None:
    model = Model(layers, BinaryLoss())
    with pytest.raises(UserError) as caught:
        warm_start(config(source[0]), built(model, seed=2), model)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"checkpoint.warm_start={source[0]}")
    assert "checkpoint.warm_start_layers" in str(caught.value)


def test_a_new_head(source: Source) -> None:
    model = Model((FIRST, NORM, Layer("last", lambda: nn.Linear(3, 7)), Layer("new", nn.ReLU)), BinaryLoss())
    layers = built(model, seed=2)
    before = numbers(layers)
    warm_start(config(source[0], "first", "norm"), layers, model)
    after = numbers(layers)
    assert not any(name.startswith("last") for name in changed(before, after))
    assert not changed({name: t for name, t in source[1].items() if not name.startswith("last")}, after)


def test_a_rank_with_only_the_use_reports_the_owner_s_shape(source: Source) -> None:
    """A rank that holds only the use reports the same mistake as the owner's rank."""
    wide = Model(
        (Layer("first", lambda: nn.Linear(5, 3)), Layer("last", lambda: nn.Linear(5, 3), (TIE,))),
        BinaryLoss(),
    )
    with pytest.raises(
        UserError, match=r"first/weight: shape \(3, 3\) in the checkpoint, shape \(3, 5\) in this model"
    ):
        warm_start(config(source[0]), built(wide, seed=2)[1:], wide)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"checkpoint\.warm_start=.* is not a checkpoint: it has no manifest\.json"
    ):
        warm_start(config(tmp_path), built(MODEL, seed=2), MODEL)


def test_a_pattern_of_no_layer(source: Source) -> None:
    with pytest.raises(
        UserError,
        match=r"checkpoint\.warm_start_layers: 'fist' matches none of .* 3 layers; did you mean first\?",
    ):
        warm_start(config(source[0], "last", "fist"), built(MODEL, seed=2), MODEL)


def test_damage(source: Source) -> None:
    path = source[0] / "checkpoints" / "step-00000003"
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["layers/norm.safetensors"]["sha256"] = "0"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"damaged: layers/norm\.safetensors"):
        warm_start(config(source[0]), built(MODEL, seed=2), MODEL)

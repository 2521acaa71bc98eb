"""Frozen layers, parameter groups and warm starts on real ranks: the layout changes no bit."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from tests.support.plain import SPLIT, network, plain
from tests.support.pools import Pools
from tests.support.runs import Finished, Trained

pytestmark = pytest.mark.parallel

GPT = [
    "model.blocks=3",
    "batch.global_size=15",
    "train.steps=4",
    "eval.samples=4",
    "checkpoint.every=2",
    "checkpoint.keep=0",
    "generate.tokens=0",
]
# A first stage of embedding and block.0 has nothing to train; the head's weight is the embedding's.
TUNED = [
    "train.freeze=[embedding,block.0]",
    "optimizer.groups=[{match: block.2, lr: 0.002},{match: head, weight_decay: 0.3}]",
]
MIDDLE = ["train.freeze=[block.1,embedding/tokens.weight,*/*bias]"]


@pytest.fixture(scope="module")
def tuned(finished: Trained, small: list[str]) -> Trained:
    """Return a function that trains on some ranks, once for the same overrides."""
    return lambda ranks, *overrides: finished(ranks, *small, *GPT, *overrides)


def weights(run: Finished, step: int, layer: str) -> dict[str, Tensor]:
    """Return the weights in a layer's file."""
    tensors = load(run.layer_files(step)[f"{layer}.safetensors"])
    return {name: tensor for name, tensor in tensors.items() if name.startswith("weight.")}


@pytest.mark.parametrize(
    ("overrides", "boundaries", "frozen"),
    [
        pytest.param(TUNED, [2], ["embedding", "block.0"], id="first stage"),
        pytest.param(MIDDLE, [2, 3], ["block.1"], id="stage in the middle, tied weight, biases"),
    ],
)
def test_frozen_stage(tuned: Trained, overrides: list[str], boundaries: list[int], frozen: list[str]) -> None:
    stages = len(boundaries) + 1
    one = tuned(1, *overrides)
    several = tuned(
        stages, *overrides, f"layout.stages={stages}", f"layout.boundaries=[{','.join(map(str, boundaries))}]"
    )
    assert several.losses == one.losses
    assert several.grad_norms == one.grad_norms
    assert several.validation == one.validation
    before, after = one.layer_files(2), one.layer_files(4)
    assert several.layer_files(4) == after
    assert {name for name in after if after[name] == before[name]} == {
        f"{name}.safetensors" for name in frozen
    }


def test_two_replicas_of_a_frozen_stage(tuned: Trained) -> None:
    one, two = tuned(1, *TUNED), tuned(4, *TUNED, "layout.stages=2", "layout.boundaries=[2]")
    assert two.losses == pytest.approx(one.losses, rel=1e-6)
    assert two.grad_norms == pytest.approx(one.grad_norms, rel=1e-4)
    for name in ("embedding.safetensors", "block.0.safetensors"):
        assert two.layer_files(4)[name] == one.layer_files(4)[name]


def test_plain_loop(finished: Trained, small: list[str], text_file: Path) -> None:
    """Equal to plain PyTorch with `requires_grad_` and explicit parameter groups."""
    split = finished(2, *small, *SPLIT, *TUNED, "layout.boundaries=[2]")
    model = network()
    embedding, first, middle, last, head = model
    for module in (embedding, first):
        module.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in middle.parameters() if p.dim() > 1], "lr": 0.01, "weight_decay": 0.1},
            {"params": [p for p in middle.parameters() if p.dim() == 1], "lr": 0.01, "weight_decay": 0.0},
            {"params": [p for p in last.parameters() if p.dim() > 1], "lr": 0.002, "weight_decay": 0.1},
            {"params": [p for p in last.parameters() if p.dim() == 1], "lr": 0.002, "weight_decay": 0.0},
            {"params": head.norm.parameters(), "lr": 0.01, "weight_decay": 0.3},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    losses, norms = plain(text_file.read_bytes(), model, optimizer)
    assert split.losses == pytest.approx(losses, rel=1e-6)
    assert split.grad_norms == pytest.approx(norms, rel=1e-4)
    assert losses[-1] < losses[0] - 0.1  # the compared runs did learn


def test_warm_start_with_other_stages(tuned: Trained, small: list[str], pools: Pools, tmp_path: Path) -> None:
    """Take the body from a run with other stages, data, seed and optimizer; freeze it under a new head."""
    text = tmp_path / "other.txt"
    text.write_text("Something else altogether. " * 400)
    source = tuned(2, *TUNED, "layout.stages=2", "layout.boundaries=[2]")
    overrides = [
        f"checkpoint.warm_start={source.folder}",
        "checkpoint.warm_start_layers=[embedding,block.*]",
        "train.freeze=[embedding,block.*]",
        "train.seed=5",
        f"data.path={text}",
        "optimizer=sgd",
    ]
    one, three = tuned(1, *overrides), tuned(3, *overrides, "layout.stages=3")
    assert f"warm start from {source.checkpoint(4)}" in three.result.out
    assert [step["step"] for step in three.steps] == [1, 2, 3, 4]
    assert three.losses == one.losses
    assert three.layer_files(4) == one.layer_files(4)
    for layer in ("embedding", "block.0", "block.1", "block.2"):
        theirs = weights(source, 4, layer)
        for name, weight in weights(three, 4, layer).items():
            assert torch.equal(weight, theirs[name])
    assert not torch.equal(weights(three, 4, "head")["weight.norm.weight"], torch.ones(32))

    # Stopped behind step 2, it goes on from there, and not from where it had started.
    resumed = Finished(three.result, shutil.copytree(three.folder, tmp_path / "run"))
    shutil.rmtree(resumed.checkpoint(4))
    result = pools.run(1, [*small, *GPT, *overrides, "checkpoint.warm_start=gone"], tmp_path).check()
    assert "resumed after step 2" in result.out
    assert resumed.losses == three.losses
    assert resumed.layer_files(4) == three.layer_files(4)

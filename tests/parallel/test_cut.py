"""Networks that are not lists of layers train on several stages as in one process, to the bit."""

from pathlib import Path

import pytest

from tests.support.hf_models import folder
from tests.support.pools import Pools
from tests.support.verifying import EQUAL, verify

pytestmark = pytest.mark.parallel

BASE = [
    "experiment=none",
    "model=module",
    "data=custom",
    "data.target=tests.fixtures.networks:data",
    "batch.global_size=14",
    "batch.micro_size=4",
    "eval.samples=5",
    "verify.steps=2",
    "optimizer.lr=0.01",
    "threads=1",
    "device=cpu",
]
NETWORKS = {
    "residual": ("residual", "[layer1,layer2,layer3]", "digits", []),
    "skips": ("UNet", "[down,middle,up]", "images", ["loss.target=torch.nn:MSELoss"]),
    "between blocks": ("Recurrent", "[rnns]", "frames", []),
    "a mask": ("Tokens", "[blocks]", "masked", ["model.output=logits"]),
}
WAYS = {
    "1f1b, bf16": ["precision=bf16"],
    "zb_h1, full recomputation": ["schedule=zb_h1", "memory.recompute=full"],
    "selective recomputation": ["memory.recompute=selective"],
}


def network(name: str) -> list[str]:
    target, blocks, kind, others = NETWORKS[name]
    return [
        *BASE,
        f"model.target=tests.fixtures.networks:{target}",
        f"model.blocks={blocks}",
        f"+data.options.kind={kind}",
        *others,
    ]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("residual", "1f1b, bf16"),
        ("a mask", "1f1b, bf16"),
        ("skips", "zb_h1, full recomputation"),
        ("between blocks", "zb_h1, full recomputation"),
        ("residual", "selective recomputation"),
        ("a mask", "selective recomputation"),
    ],
)
def test_three_stages(name: str, way: str, pools: Pools, tmp_path: Path) -> None:
    result = verify(pools, 3, [*network(name), "layout.stages=3", *WAYS[way]], tmp_path)
    assert EQUAL in result.check().out


@pytest.mark.parametrize("name", ["skips", "between blocks"])
def test_two_replicas_that_interleave(name: str, pools: Pools, tmp_path: Path) -> None:
    """With all that may make a difference: dropout, half precision, recomputation, split backwards."""
    dropout = {"skips": "+model.options.dropout=0.2", "between blocks": "+model.options.dropout=0.2"}[name]
    overrides = ["layout.stages=2", "schedule=zb_v", "precision=bf16", "memory.recompute=full", dropout]
    assert EQUAL in verify(pools, 4, [*network(name), *overrides], tmp_path).check().out


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("gpt2", ["precision=bf16", "schedule=zb_v", "memory.recompute=full"]),
        ("qwen2", ["memory.recompute=selective"]),
    ],
)
def test_hugging_face(kind: str, overrides: list[str], pools: Pools, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    model = ["model=hf", f"model.path={folder(kind, tmp_path)}", "data=text", "data.context=16"]
    given = [override for override in BASE if not override.startswith(("model=", "data"))]
    result = verify(pools, 2, [*given, *model, "layout.stages=2", *overrides], tmp_path)
    assert f"{EQUAL} to the last bit" in result.check().out

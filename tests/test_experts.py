"""Mixtures of experts: folders hold one weight for each expert, models one for all of them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from tests.families.configurations import VOCABULARY, small_model
from tests.support.alone import Alone
from tests.support.checkpoints import PROGRESS
from tests.support.cutting import CPU, built, forward
from tests.support.hf_models import tokens
from trainer.checkpoint.save import save_checkpoint
from trainer.config.schema import HFConfig
from trainer.errors import UserError
from trainer.export.__main__ import main
from trainer.pipeline.build import build_layer

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from trainer.hf.build import hf  # noqa: E402  (needs transformers)

DATA = tokens(VOCABULARY)
TOKENS = DATA.training.inputs(torch.arange(3))
INDEX = "model.safetensors.index.json"


@cache
def saved(family: str, root: Path) -> Path:
    """Return a folder with a small model, in several files."""
    config, auto = small_model(family)
    torch.manual_seed(1)
    auto.from_config(config).save_pretrained(root / family, max_shard_size="20KB")
    return root / family


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


def opened(folder: Path) -> tuple[Any, Any]:
    """Return transformers' model of a folder, and what it says of its keys."""
    auto = transformers.AutoModelForCausalLM
    model, report = auto.from_pretrained(
        folder, output_loading_info=True, experts_implementation="batched_mm"
    )
    model.config.use_cache = False
    return model.eval(), report


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss"])
def test_read_and_exported(
    family: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(family, root)
    config = HFConfig(path=str(path))
    layers = built(hf(config, DATA))
    for layer in layers:
        layer.module.eval()
    with torch.no_grad():
        logits = forward(layers, TOKENS)[0]
        assert torch.equal(opened(path)[0](TOKENS).logits, logits)

    run, target = tmp_path / "run", tmp_path / "exported"
    save_checkpoint(run / "checkpoints", layers, None, PROGRESS, Alone())
    OmegaConf.save(OmegaConf.create({"model": vars(config)}), run / "config.yaml")
    assert main([str(run), str(target)]) == 0, capsys.readouterr().err
    model, report = opened(target)
    assert not any(report.values()), report
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, logits)
    before, after = (json.loads((folder / INDEX).read_text())["weight_map"] for folder in (path, target))
    assert before.keys() == after.keys()
    for name, file in after.items():
        assert torch.equal(load_file(target / file)[name], load_file(path / before[name])[name]), name


def test_a_layer_reads_its_own_files(root: Path) -> None:
    path = saved("mixtral", root)
    model = hf(HFConfig(path=str(path)), DATA)
    whole = build_layer(model.layers, 2, 0, CPU).module.state_dict()
    names = json.loads((path / INDEX).read_text())["weight_map"]
    others = {file for name, file in names.items() if ".layers.1." not in name}
    others -= {file for name, file in names.items() if ".layers.1." in name}
    hidden = {file: (path / file).read_bytes() for file in others}
    assert hidden
    for file in hidden:
        (path / file).unlink()
    try:
        alone = build_layer(model.layers, 2, 0, CPU).module.state_dict()
    finally:
        for file, content in hidden.items():
            (path / file).write_bytes(content)
    assert alone.keys() == whole.keys()
    assert all(torch.equal(alone[name], whole[name]) for name in whole)


def test_refusals(tmp_path: Path) -> None:
    config, auto = small_model("qwen3_moe")
    auto.from_config(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    name = "model.layers.1.mlp.experts.2.down_proj.weight"

    def refused(words: str, **changed: Any) -> None:
        save_file({**whole, **changed}, file)
        with pytest.raises(UserError, match=words) as caught:
            built(hf(HFConfig(path=str(tmp_path)), DATA))
        assert "\n" not in str(caught.value)

    refused("model.layers.1.mlp.experts.down_proj cannot be made of", **{name: whole[name][:-1].clone()})
    missing = whole.pop(name)
    assert missing.shape == (32, 32)
    refused(r"the 3 tensors such as model.layers.1.mlp.experts.0.down_proj.weight make one of shape \(3, 32")
    for number in (0, 1, 3):
        whole.pop(name.replace("experts.2", f"experts.{number}"))
    refused("the files have no model.layers.1.mlp.experts.down_proj$")

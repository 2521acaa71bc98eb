"""What `python -m trainer.export` writes, `from_pretrained` opens: every weight, and the same logits."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from tests.support.alone import Alone
from tests.support.checkpoints import PROGRESS
from tests.support.cutting import built, forward
from tests.support.hf_models import SMALL, folder, tokens
from trainer.checkpoint.save import save_checkpoint
from trainer.config.schema import HFConfig
from trainer.export.__main__ import main

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from trainer.hf.build import hf  # noqa: E402  (needs transformers)

TOKENS = tokens().training.inputs(torch.arange(3))


def trained(kind: str, root: Path) -> tuple[Path, torch.Tensor]:
    """Return a run with new weights in its checkpoint, and the logits of these."""
    path = folder(kind, root)
    (path / "tokenizer.json").write_text("{}")
    config = HFConfig(path=str(path), load="config")
    layers = built(hf(config, tokens()))
    for layer in layers:
        layer.module.eval()
    run = root / f"run-{kind}"
    save_checkpoint(run / "checkpoints", layers, None, PROGRESS, Alone())
    OmegaConf.save(OmegaConf.create({"model": vars(config)}), run / "config.yaml")
    with torch.no_grad():
        return run, forward(layers, TOKENS)[0]


@pytest.mark.parametrize("kind", SMALL)
def test_transformers_opens_it(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, logits = trained(kind, tmp_path)
    target = tmp_path / "exported"
    assert main([str(run), str(target)]) == 0, capsys.readouterr().err
    auto = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    model, report = auto.from_pretrained(target, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        assert torch.equal(model.eval()(TOKENS, use_cache=False).logits, logits)
    saved = {name for file in folder(kind, tmp_path).glob("*.safetensors") for name in load_file(file)}
    assert set(json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]) == saved
    assert (target / "tokenizer.json").exists()
    assert json.loads((target / "config.json").read_text())["architectures"] == [type(model).__name__]
    assert not list(tmp_path.glob("*.partial"))


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = trained("llama", tmp_path)
    capsys.readouterr()

    def refused(target: Path, words: str) -> None:
        assert main([str(run), str(target)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("trainer: error: ")
        assert words in line
        assert target == tmp_path or not target.exists()

    refused(tmp_path, "exists: name a folder that does not")
    config = OmegaConf.load(run / "config.yaml")

    def deep(layers: int) -> None:
        changed = OmegaConf.merge(config, {"model": {"config": {"num_hidden_layers": layers}}})
        OmegaConf.save(changed, run / "config.yaml")

    OmegaConf.save(
        OmegaConf.merge(config, {"model": {"config": {"num_hidden_layers": 2}}}), run / "config.yaml"
    )
    refused(tmp_path / "new", "is of another model: it has model.layers.2.")
    OmegaConf.save(
        OmegaConf.merge(config, {"model": {"config": {"num_hidden_layers": 4}}}), run / "config.yaml"
    )
    refused(tmp_path / "new", "is of another model: it lacks model.layers.3.")
    OmegaConf.save(OmegaConf.create({"model": {"name": "gpt"}}), run / "config.yaml")
    refused(tmp_path / "new", "the run's model is gpt: only models of Hugging Face's")
    OmegaConf.save(config, run / "config.yaml")
    (file,) = run.glob("checkpoints/*/layers/model.layers.1.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    refused(tmp_path / "new", "use an older one")
    (run / "config.yaml").unlink()
    refused(tmp_path / "new", "the run's configuration, cannot be read")

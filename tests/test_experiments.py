"""A recipe keeps its values; `model=...` chooses a model and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.support.configs import CONF, composed
from trainer.config.check import check
from trainer.config.compose import typed
from trainer.config.schema import flat
from trainer.plan.report import report

GPT = {
    "layout.stages": "auto",
    "layout.virtual_stages": None,
    "layout.devices_per_rank": 1,
    "layout.boundaries": None,
    "schedule": "1f1b",
    "model.name": "gpt",
    "model.blocks": 8,
    "model.width": 128,
    "model.heads": 4,
    "model.context": 128,
    "model.dropout": 0.1,
    "model.positions": "learned",
    "model.tied": True,
    "data.name": "text",
    "data.path": None,
    "data.pattern": "*",
    "data.tokenizer": "bytes",
    "data.context": 128,
    "data.validation": 0.05,
    "data.cache": "/cache/hybrid-trainer/tokens",
    "optimizer.name": "adamw",
    "optimizer.lr": 0.001,
    "optimizer.weight_decay": 0.1,
    "optimizer.clip": 1.0,
    "optimizer.lr_schedule.name": "cosine",
    "optimizer.lr_schedule.warmup": 20,
    "optimizer.lr_schedule.final": 0.1,
    "optimizer.groups": [],
    "optimizer.sharded": False,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.95,
    "optimizer.epsilon": 1e-08,
    "batch.global_size": 64,
    "batch.micro_size": 4,
    "memory.recompute": "none",
    "memory.limit": None,
    "averaging.op": "average",
    "averaging.compression": "none",
    "precision": "fp32",
    "train.steps": 200,
    "train.epochs": None,
    "train.seed": 0,
    "train.deterministic": False,
    "train.freeze": [],
    "eval.every": 50,
    "eval.samples": 256,
    "generate.tokens": 200,
    "generate.prompt": "def ",
    "generate.temperature": 0.8,
    "generate.top_k": 40,
    "checkpoint.every": 0,
    "checkpoint.keep": 2,
    "checkpoint.resume": "auto",
    "checkpoint.warm_start": None,
    "checkpoint.warm_start_layers": ["*"],
    "verify.steps": 3,
    "verify.against": "process",
    "verify.save": None,
    "run.trace": False,
    "threads": "auto",
    "device": "auto",
    "progress": "auto",
}
SMALL = {
    "model.blocks": 4,
    "model.width": 32,
    "model.heads": 2,
    "model.context": 32,
    "data.context": 32,
    "optimizer.lr_schedule.warmup": 2,
    "batch.global_size": 16,
    "batch.micro_size": 2,
    "train.steps": 10,
    "eval.every": 5,
    "eval.samples": 16,
    "generate.tokens": 20,
}
SIMPLENET = {
    "model.name": "simplenet",
    "model.features": 10,
    "model.hidden": 20,
    "data.name": "binary",
    "data.samples": 1000,
    "data.features": 10,
    "data.validation": 200,
    "data.seed": 0,
    "data.workers": 0,
    "optimizer.name": "sgd",
    "optimizer.lr": 0.01,
    "optimizer.weight_decay": 0.0,
    "optimizer.clip": None,
    "optimizer.lr_schedule.name": "constant",
    "optimizer.lr_schedule.warmup": 0,
    "optimizer.lr_schedule.final": 0.0,
    "optimizer.groups": [],
    "optimizer.sharded": False,
    "optimizer.momentum": 0.0,
    "optimizer.nesterov": False,
    "batch.global_size": 100,
    "batch.micro_size": 25,
    "train.steps": None,
    "train.epochs": 10.0,
    "eval.every": 0,
    "generate.tokens": 0,
}
_OF_GROUPS = ("model.", "data.", "optimizer.")


# What `python -m trainer.plan` is given besides, and the parameters that it finds.
PLANNED = {
    "digits": ((), 696_042),
    "unet": ((), 482_619),
    "resnet18_cifar10": (("data.path=FOLDER",), 11_173_962),
    "resnet50_imagenet": (("data.path=FOLDER",), 25_557_032),
}


def resolved(*overrides: str) -> dict[str, object]:
    values = OmegaConf.to_container(composed(*overrides), resolve=True)
    assert isinstance(values, dict)
    return {key: value for key, value in flat(values).items() if key != "run.dir"}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fix the cache's location."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")


@pytest.mark.parametrize("overrides", [[], ["experiment=gpt"], ["model=gpt"]])
def test_the_bare_command(overrides: list[str]) -> None:
    assert resolved(*overrides).items() >= GPT.items()


def test_small() -> None:
    assert resolved("experiment=small").items() >= (GPT | SMALL).items()


def test_simplenet() -> None:
    values = resolved("experiment=simplenet")
    others = {key: value for key, value in GPT.items() if not key.startswith(_OF_GROUPS)}
    assert values.items() >= (others | SIMPLENET).items()
    assert {key for key in values if key.startswith(_OF_GROUPS)} == {
        key for key in SIMPLENET if key.startswith(_OF_GROUPS)
    }


@pytest.mark.parametrize("name", PLANNED)
def test_a_plan_of_each(name: str) -> None:
    """Without the files of its data."""
    overrides, parameters = PLANNED[name]
    given = [f"experiment={name}", *overrides, "plan.ranks=4", "layout.stages=4"]
    config = typed(composed(*given))
    check(config)
    text = report(config, given)
    assert f"{parameters:,} parameters" in text
    assert "4 x 1" not in text
    assert "1 x 4" in text


@pytest.mark.parametrize(
    ("overrides", "group"),
    [
        (["model=simplenet", "data.context=128"], "model."),  # else it would refer to a missing key
        (["data=binary"], "data."),
        (["optimizer=sgd"], "optimizer."),
    ],
)
def test_a_choice_changes_its_group_and_nothing_else(overrides: list[str], group: str) -> None:
    before, after = resolved(), resolved(*overrides)
    changed = {key for key in before.keys() | after.keys() if before.get(key, "-") != after.get(key, "-")}
    assert changed
    assert {key for key in changed if not key.startswith(group)} == set()


def test_a_custom_experiment_extends_the_recipe_it_names(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "wide.yaml").write_text(
        "# @package _global_\ndefaults:\n  - gpt\nmodel:\n  width: 512\n"
    )
    command = [sys.executable, "-m", "trainer", "--config-dir", str(tmp_path), "experiment=wide"]
    done = subprocess.run(
        [*command, "--cfg", "job", "--resolve"], cwd=CONF.parent, capture_output=True, text=True, check=True
    )
    values = flat(OmegaConf.to_container(OmegaConf.create(done.stdout)))
    wanted = GPT | {"model.width": 512}
    assert {key: values[key] for key in wanted} == wanted


COMPOSE = """
import sys
import trainer.__main__, trainer.verify.__main__
from trainer.config.compose import compose
composed = compose()
print(len(composed.configs), [config.run.dir for config in composed.configs])
print([name for name in ("torch", "mpi4py", "horovod") if name in sys.modules])
"""


def test_showing_the_configuration_imports_neither_torch_nor_mpi() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "trainer", "--cfg", "job"]
    done = subprocess.run(command, cwd=CONF.parent, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "mpi4py", "horovod"}


@pytest.mark.parametrize(
    ("overrides", "runs"),
    [
        ([], "1 [None]"),
        (["experiment=simplenet", "layout.stages=2"], "1 [None]"),
        (["-m", "optimizer.lr=0.1,0.2", "model=gpt"], "2 [None, None]"),
    ],
)
def test_composing_and_checking_import_neither_torch_nor_mpi(
    overrides: list[str], runs: str, tmp_path: Path
) -> None:
    """This holds under a launcher too, where ranks will have to agree on the run's folder."""
    env = os.environ | {"OMPI_COMM_WORLD_RANK": "0", "PYTHONPATH": str(CONF.parent)}
    command = [sys.executable, "-c", COMPOSE, *overrides]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [runs, "[]"]
    assert not list(tmp_path.iterdir())


def test_bert_base_is_the_network_of_the_paper() -> None:
    overrides = ["experiment=bert_base", "plan.ranks=8", "plan.memory=16GiB", "plan.rows=1"]
    config = typed(composed(*overrides))
    check(config)
    planned = report(config, [])
    # Those of transformers' BertForMaskedLM, 109,514,298, and the head's copy of the embedding.
    assert f"bert: {109_514_298 + 30_522 * 768:,} parameters in 14 layers, on 8 ranks of 16GiB" in planned
    assert "a step: 256 samples in 32 micro-batches" in planned


def test_bert_in_minutes() -> None:
    values = resolved("experiment=bert")
    assert (values["data.objective"], values["data.tokenizer"], values["metrics"]) == (
        "masked",
        "bytes",
        None,
    )
    planned = report(typed(composed("experiment=bert", "plan.ranks=4", "plan.memory=1GiB")), [])
    assert "4 x 1" in planned
    assert "1 x 4" in planned

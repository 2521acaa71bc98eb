"""Every value of the configuration is checked against its range; all of `conf/` composes and passes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tests.support.configs import CONF, composed, valid
from trainer.config.check import check
from trainer.config.compose import _as_named_now, explain, known_keys, typed
from trainer.config.schema import Config, GPTConfig, GroupConfig, TextConfig, flat
from trainer.errors import UserError, suggest


def put(config: Config, key: str, value: Any) -> None:
    *path, last = key.split(".")
    part: Any = config
    for name in path:
        part = getattr(part, name)
    setattr(part, last, value)


_NEEDS_A_FOLDER = ("cifar10", "images", "speech", "deepspeech", "resnet18_cifar10", "resnet50_imagenet")


@pytest.mark.parametrize("group", ["model", "data", "optimizer", "experiment"])
def test_every_file_of_conf_passes(group: str) -> None:
    files = sorted((CONF / group).glob("*.yaml"))
    assert files
    for file in files:
        overrides = [f"{group}={file.stem}"]
        if file.stem == "hf":
            overrides += ["model.path=folder"]
        if file.stem == "prompts":
            overrides += ["data.path=file.jsonl", "data.tokenizer=folder"]
        if file.stem in _NEEDS_A_FOLDER and (group, file.stem) != ("model", "speech"):
            overrides += ["data.path=folder"]
        if file.stem in ("custom", "module"):
            overrides += [f"{group}.target=package:name"]
        if group == "model" and file.stem != "gpt":
            overrides += ["data.context=8"]
        if group == "optimizer":
            overrides += ["optimizer.lr=0.1"]
        check(typed(composed("train.steps=1", *overrides)))


def test_bare_command_trains_a_gpt_on_text() -> None:
    config = typed(composed("model.context=64"))
    check(config)
    assert isinstance(config.model, GPTConfig)
    assert isinstance(config.data, TextConfig)
    assert config.data.context == config.model.context == 64


def test_another_model_needs_no_recipe() -> None:
    check(typed(composed("model=simplenet", "data=binary")))
    with pytest.raises(UserError, match="are both null: give one of them"):
        check(typed(composed("experiment=none", "model=simplenet", "data=binary")))


def test_the_command_line_overrides_the_experiment() -> None:
    config = typed(composed("experiment=small", "model.width=48"))
    assert config.model.width == 48
    assert config.model.blocks == 4


def test_custom_options_are_kept() -> None:
    config = typed(composed("model=custom", "model.target=a:b", "+model.options.depth=3", "data.context=8"))
    assert config.model.options == {"depth": 3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+model.widht=1", "there is no key model.widht; did you mean width?"),
        ("+bach=1", "there is no key bach; did you mean batch?"),
    ],
)
def test_keys_that_nothing_reads_are_refused(override: str, message: str) -> None:
    with pytest.raises(Exception, match=r"widht|bach") as caught:
        typed(composed(override))
    assert isinstance(caught.value, UserError)
    assert str(caught.value) == message


def files(group: str) -> str:
    """Return the names of a group's choices, as a message lists them."""
    return ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.width=x"], "model.width: Value 'x' of type 'str' could not be converted to Integer"),
        (["train.steps=1.5"], "train.steps: Value '1.5' of type 'float' could not be converted to Integer"),
        (["model=gtp"], f"model=gtp is not one of {files('model')}; did you mean gpt?"),
        (
            ["experiment=smal"],
            f"experiment=smal is not one of {files('experiment')}; did you mean small?",
        ),
        (["optimizer=custom", "optimizer.target=a:b"], "optimizer.lr has no value: give optimizer.lr=..."),
        (["~model"], "model has no value: give model=..."),
        (
            ["train.freeze=head"],
            "train.freeze: Invalid value assigned: str is not a ListConfig, list or tuple. "
            "Give train.freeze=[...]",
        ),
        (
            ["model=custom", "model.target=a:b"],
            "data.context follows model.context, which this configuration has not: give data.context=...",
        ),
    ],
)
def test_hydra_errors_become_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        typed(composed(*overrides))
    assert str(explain(caught.value)) == message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("batch.global_size", 0, "batch.global_size=0 must be greater than 0"),
        ("batch.micro_size", -1, "batch.micro_size=-1 must be greater than 0"),
        ("layout.devices_per_rank", 0, "layout.devices_per_rank=0 must be greater than 0"),
        ("layout.stages", 0, "layout.stages=0 must be auto, or a whole number greater than 0"),
        ("layout.stages", "two", "layout.stages=two must be auto, or a whole number"),
        ("layout.stages", True, "layout.stages=True must be auto, or a whole number"),
        ("layout.stages", 1.5, "layout.stages=1.5 must be auto, or a whole number"),
        ("threads", 0, "threads=0 must be auto, or a whole number greater than 0"),
        ("model.heads", 0, "model.heads=0 must be greater than 0"),
        ("model.dropout", 1.0, "model.dropout=1.0 must be from 0 to below 1"),
        ("model.dropout", float("nan"), "model.dropout=nan must be from 0 to below 1"),
        ("model.positions", "learnt", "model.positions=learnt is not one of learned, rotary; did you mean"),
        ("optimizer.lr", -1.0, "optimizer.lr=-1.0 must be 0 or greater"),
        ("optimizer.lr", float("nan"), "optimizer.lr=nan must be 0 or greater"),
        ("optimizer.clip", 0.0, "optimizer.clip=0.0 must be greater than 0"),
        ("optimizer.beta2", 1.0, "optimizer.beta2=1.0 must be from 0 to below 1"),
        (
            "optimizer.lr_schedule.name",
            "cosin",
            "optimizer.lr_schedule.name=cosin is not one of constant, cosine, linear",
        ),
        ("optimizer.lr_schedule.final", 1.5, "optimizer.lr_schedule.final=1.5 must be from 0 to 1"),
        ("optimizer.lr_schedule.warmup", -1, "optimizer.lr_schedule.warmup=-1 must be 0 or greater"),
        ("train.steps", 0, "train.steps=0 must be greater than 0"),
        ("train.epochs", 0.0, "train.epochs=0.0 must be greater than 0"),
        ("train.seed", -1, "train.seed=-1 must be 0 or greater"),
        (
            "schedule",
            "1b1f",
            "schedule=1b1f is not one of gpipe, 1f1b, zb_h1, interleaved, zb_v, nor a file; did you mean",
        ),
        ("device", "gpu", "device=gpu is not one of auto, cpu, cuda"),
        ("progress", "lines", "progress=lines is not one of auto, bar, line, off; did you mean line?"),
        ("precision", "bf32", "precision=bf32 is not one of fp32, bf16, fp16; did you mean"),
        ("averaging.op", "sum", "averaging.op=sum is not one of average, adasum"),
        ("averaging.compression", "bf16", "averaging.compression=bf16 is not one of none, fp16"),
        ("checkpoint.keep", -1, "checkpoint.keep=-1 must be 0 or greater"),
        ("checkpoint.resume", "", "checkpoint.resume= must be auto, none, or the path"),
        ("generate.temperature", -0.1, "generate.temperature=-0.1 must be 0 or greater"),
        ("train.freeze", ["head", ""], "train.freeze=['head', ''] must be a list of patterns"),
        ("train.freeze", [{"head": 1}], "train.freeze=[{'head': 1}] must be a list of patterns"),
        ("checkpoint.warm_start", "", "checkpoint.warm_start= must be null, or the path of a checkpoint"),
        (
            "checkpoint.warm_start_layers",
            [""],
            "checkpoint.warm_start_layers=[''] must be a list of patterns",
        ),
        (
            "optimizer.groups",
            [GroupConfig("a"), GroupConfig("b", lr=-1.0)],
            "optimizer.groups.1.lr=-1.0 must be 0 or greater",
        ),
        (
            "optimizer.groups",
            [GroupConfig("a", weight_decay=float("nan"))],
            "optimizer.groups.0.weight_decay=nan must be 0 or greater",
        ),
        ("optimizer.groups", [GroupConfig("")], "optimizer.groups.0.match= must be a pattern"),
    ],
)
def test_out_of_range(key: str, value: object, expected: str) -> None:
    config = valid()
    check(config)
    put(config, key, value)
    with pytest.raises(UserError) as caught:
        check(config)
    assert str(caught.value).startswith(expected)


GROUPS = [GroupConfig("embedding", lr=1e-4, weight_decay=0.0), GroupConfig("block.*/*bias", lr=None)]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_groups_from_the_command_line(optimizer: str) -> None:
    groups = '[{match: "embedding", lr: 1e-4, weight_decay: 0.0},{match: block.*/*bias}]'
    config = typed(composed(f"optimizer={optimizer}", f"optimizer.groups={groups}"))
    check(config)
    assert config.optimizer.groups == GROUPS
    assert flat(config)["optimizer.groups.0.lr"] == 1e-4
    written = OmegaConf.to_container(OmegaConf.structured(config))  # as saved in a run's folder
    assert written["optimizer"]["groups"][0] == {"match": "embedding", "lr": 1e-4, "weight_decay": 0.0}


def test_groups_and_patterns_from_a_file(tmp_path: Path) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "experiment" / "tuned.yaml").write_text(
        """# @package _global_
defaults:
  - gpt
optimizer:
  groups:
    - {match: embedding, lr: 1e-4, weight_decay: 0.0}
    - match: block.*/*bias
train:
  freeze: [head, "*/*bias"]
checkpoint:
  warm_start: runs/first
  warm_start_layers: [block.*]
"""
    )
    config = typed(composed("experiment=tuned", "optimizer.groups.0.lr=2e-4", conf=tmp_path / "conf"))
    check(config)
    assert config.optimizer.groups == [GroupConfig("embedding", lr=2e-4, weight_decay=0.0), GROUPS[1]]
    assert config.train.freeze == ["head", "*/*bias"]
    assert config.checkpoint.warm_start == "runs/first"
    assert config.checkpoint.warm_start_layers == ["block.*"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("[{match: a},{match: b, ler: 1}]", "there is no key optimizer.groups.1.ler; did you mean lr?"),
        (
            "[{match: a, lr: x}]",
            "optimizer.groups.0.lr: Value 'x' of type 'str' could not be converted to Float",
        ),
        ("[{match: a, lr: [1]}]", "optimizer.groups.0.lr: Value '[1]' of type 'ListConfig' could not be"),
        ("[{lr: 1}]", "optimizer.groups.0.match has no value: give match=..."),
        ("[{match: null}]", "optimizer.groups.0.match: Incompatible value 'None' for field of type 'str'"),
        ("[a]", "optimizer.groups.0=a must have keys, such as {match: embedding, lr: 1e-4}"),
    ],
)
def test_invalid_groups(groups: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        typed(composed(f"optimizer.groups={groups}"))
    assert str(caught.value).startswith(message)


def test_steps_or_epochs() -> None:
    config = valid()
    config.train.steps = None
    with pytest.raises(UserError, match=r"train\.steps and train\.epochs are both null"):
        check(config)
    config.train.epochs = 0.5
    check(config)


def test_flat_has_every_value_by_its_dotted_key() -> None:
    values = flat(valid())
    assert values["model.width"] == 128
    assert values["optimizer.lr_schedule.name"] == "constant"
    assert values["schedule"] == "1f1b"
    assert "model" not in values


def test_a_model_of_a_recipe_points_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's name used to choose the recipe."""
    monkeypatch.setattr("sys.argv", ["trainer", "model=simplenet"])
    with pytest.raises(OmegaConfBaseException) as caught:
        typed(composed("model=simplenet"))
    assert str(explain(caught.value)) == (
        "data.context follows model.context, which this configuration has not: give data.context=..., "
        "or take the recipe experiment=simplenet"
    )


def test_suggestions() -> None:
    assert suggest("1b1f", ["gpipe", "1f1b"]) == "; did you mean 1f1b?"
    assert suggest("zzz", ["gpipe", "1f1b"]) == ""


@pytest.mark.parametrize(
    ("given", "now"),
    [
        ("optimizer.rate.warmup=0", "optimizer.lr_schedule.warmup=0"),
        ("++optimizer.rate.final=0.1", "++optimizer.lr_schedule.final=0.1"),
        ("optimizer.lr=1e-3", "optimizer.lr=1e-3"),
        ("--multirun", "--multirun"),
    ],
)
def test_keys_of_earlier_versions_are_understood(given: str, now: str) -> None:
    assert _as_named_now(given) == now
    if "rate." in given:
        assert now.lstrip("+").partition("=")[0] in known_keys()

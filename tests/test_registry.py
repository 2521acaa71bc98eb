"""One declaration of a choice is enough for the command line, messages, builders and training."""

import json
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.launch import Result, launch
from trainer.config import registry
from trainer.config.fields import positive
from trainer.config.registry import GROUPS, choice, choices, chosen, import_builder
from trainer.config.schema import AdamWConfig, Config, DataConfig, GPTConfig, ModelConfig
from trainer.errors import UserError

TOYS = "tests.toys.declared"
RECIPE = ["experiment=none", "model=toy", "data=toy", "data.file=points.npy", "optimizer=toy"]
KNOWN = sorted([*choices("model"), "toy"])
RUN = ["batch.global_size=16", "train.steps=30", "run.dir=run", "threads=1", "progress=off", "device=cpu"]


def toys(folder: Path, *overrides: str) -> Result:
    return launch(1, overrides, folder, module=TOYS)


@pytest.mark.slow
def test_contributed_choices_train(tmp_path: Path) -> None:
    """No file in conf/ and no other module: only a declaration and its builder."""
    toys(tmp_path, *RECIPE, *RUN, "model.depth=2").check()
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    assert len(losses) == 30
    assert sum(losses[-5:]) < sum(losses[:5])
    assert {path.stem for path in (tmp_path / "run").rglob("*.safetensors")} >= {"linear0", "linear1"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model=ty",
            f"model=ty is not one of {', '.join(sorted([*choices('model'), 'toy']))}; did you mean toy?",
        ),
        ("model.dpth=2", "there is no key model.dpth; did you mean model.depth?"),
        ("model.depth=0", "model.depth=0 must be greater than 0"),
        ("model.between=tan", "model.between=tan is not one of tanh, relu; did you mean tanh?"),
        ("optimizer.lr=-1", "optimizer.lr=-1.0 must be 0 or greater"),
        ("data.file=points.txt", "data.file=points.txt must end in .npy"),
    ],
)
def test_messages_include_contributed_choices(tmp_path: Path, override: str, message: str) -> None:
    result = toys(tmp_path, *RECIPE, *RUN, override)
    assert result.code == 2, result.err
    assert result.messages == [f"trainer: error: {message}"]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test its own table of choices."""
    monkeypatch.setattr(registry, "_CHOICES", deepcopy(registry._CHOICES))


def test_every_builder_exists() -> None:
    for group in GROUPS:
        for declared in choices(group).values():
            for path in filter(None, [declared.build, declared.prepare]):
                assert callable(import_builder(path)), path


def test_a_configuration_knows_its_choice() -> None:
    config = GPTConfig(name="another name")
    assert chosen("model", config).name == "gpt"
    with pytest.raises(UserError, match=rf"^model\.name=other is none of {', '.join(choices('model'))}$"):
        chosen("model", ModelConfig(name="other"))
    with pytest.raises(UserError, match=rf"^data\.name=other is none of {', '.join(choices('data'))}$"):
        chosen("data", DataConfig(name="other"))


@pytest.mark.usefixtures("table")
def test_a_field_must_have_a_description() -> None:
    with pytest.raises(TypeError, match=r"BareConfig\.depth has no description"):

        @choice("model", build="a:b")
        @dataclass
        class BareConfig(ModelConfig):
            name: str = "bare"
            depth: int = 3

    assert "bare" not in choices("model")


@pytest.mark.usefixtures("table")
def test_a_name_is_declared_once() -> None:
    with pytest.raises(TypeError, match=r"model=gpt is declared already, by GPTConfig"):

        @choice("model", build="a:b")
        @dataclass
        class OtherConfig(ModelConfig):
            name: str = "gpt"

    assert choices("model")["gpt"].schema is GPTConfig


@pytest.mark.usefixtures("table")
def test_importing_a_script_twice_changes_nothing() -> None:
    """As when a script with declarations runs and a builder then imports it."""

    def declare() -> type:
        @choice("optimizer", build="a:b")
        @dataclass
        class TwiceConfig(AdamWConfig):
            name: str = "twice"
            power: int = positive(1, "the power")

        return TwiceConfig

    first = declare()
    assert declare() is not first
    assert choices("optimizer")["twice"].schema is first


def test_every_part_of_a_run_has_a_description() -> None:
    parts = [
        Config,
        *(type(part) for part in vars(Config()).values() if hasattr(part, "__dataclass_fields__")),
    ]
    assert len(parts) > 5
    for part in parts:
        assert not registry.undescribed(part)
        assert part.__doc__


def test_a_field_without_a_description_is_found() -> None:
    @dataclass
    class Part:
        known: int = positive(1, "known")
        unknown: list[int] = field(default_factory=list)

    assert registry.undescribed(Part) == ["unknown"]

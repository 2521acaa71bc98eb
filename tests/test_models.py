"""The configuration's models and data are built, custom ones included; unsound ones are refused."""

import sys
from pathlib import Path

import pytest
from torch import nn

from tests.support.thread_ranks import on_ranks
from trainer.config.import_path import load
from trainer.config.schema import (
    BinaryConfig,
    CustomDataConfig,
    CustomModelConfig,
    GPTConfig,
    ModelConfig,
    SimpleNetConfig,
)
from trainer.data.binary import binary
from trainer.data.build import load_data
from trainer.errors import UserError
from trainer.models.build import build_model, check_model
from trainer.models.model import Layer, Model, Tie
from trainer.models.simplenet import BinaryLoss

OWN_CODE = """
from torch import nn
from trainer.config.schema import BinaryConfig
from trainer.data.binary import binary
from trainer.errors import UserError
from trainer.models.model import Layer, Model
from trainer.models.simplenet import BinaryLoss

NUMBER = 3

def network(data, depth, target="target"):
    layers = [Layer(f"linear{i}", lambda: nn.Linear(10, 10)) for i in range(depth)]
    return Model((*layers, Layer(target, lambda: nn.Linear(10, 1))), BinaryLoss())

def samples(count=10):
    return binary(BinaryConfig(samples=count))

def nothing(*arguments):
    return None

def prepare(folder, count):
    (folder / "count").write_text(str(count))

def prepared(folder, count):
    assert (folder / "count").read_text() == str(count)
    return samples(count)

def unprepared(folder, count):
    raise UserError(f"{count} is too many")

class Factory:
    @staticmethod
    def network(data):
        return network(data, 1)
"""


@pytest.fixture(autouse=True)
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with a user's module, as when a command starts there."""
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def names(model: Model) -> list[str]:
    return [layer.name for layer in model.layers]


def test_the_configuration_chooses() -> None:
    data = binary(BinaryConfig())
    assert names(build_model(SimpleNetConfig(), data)) == ["linear1", "relu", "linear2"]
    with pytest.raises(UserError, match=r"model\.name=gpt"):
        build_model(GPTConfig(), data)
    with pytest.raises(UserError, match=r"gpt, simplenet, module, hf, .*custom"):
        build_model(ModelConfig(name="other"), data)


def test_custom_model_by_import_path() -> None:
    config = CustomModelConfig(target="own_code:network", options={"depth": 2, "target": "last"})
    assert names(build_model(config, binary(BinaryConfig()))) == ["linear0", "linear1", "last"]
    config = CustomModelConfig(target="own_code:Factory.network")
    assert names(build_model(config, binary(BinaryConfig()))) == ["linear0", "target"]


def test_custom_data_by_import_path() -> None:
    config = CustomDataConfig(target="own_code:samples", options={"count": 30})
    assert len(load_data(config).training) == 30


def test_custom_data_is_prepared_by_one_rank_of_a_node(own_code: Path) -> None:
    """It is prepared before any rank loads it, with the same options."""
    options = {"folder": own_code, "count": 30}
    config = CustomDataConfig(target="own_code:prepared", prepare="own_code:prepare", options=options)
    found = on_ranks(lambda rank: load_data(config, rank), local_ranks=(1, 2, 0))
    assert [len(data.training) for data in found] == [30] * 3
    assert len(load_data(config).training) == 30


def test_errors_in_preparation_are_raised_on_every_rank(own_code: Path) -> None:
    options = {"folder": own_code, "count": 30}
    config = CustomDataConfig(target="own_code:prepared", prepare="own_code:unprepared", options=options)
    errors = on_ranks(lambda rank: load_data(config, rank), local_ranks=(1, 0, 0))
    assert [(type(error), str(error)) for error in errors] == [(UserError, "30 is too many")] * 3
    config = CustomDataConfig(target="own_code:prepared", prepare="own_code:prepar", options=options)
    with pytest.raises(UserError, match=r"data\.prepare=own_code:prepar: .* did you mean 'prepare'"):
        load_data(config)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("own_code", ["package.module:callable"]),
        ("own_code:", ["package.module:callable"]),
        (":network", ["package.module:callable"]),
        ("own_cod:network", ["no module 'own_cod'"]),
        ("own_code.inner:network", ["no module 'own_code.inner'"]),
        ("own_code:netwrk", ["'netwrk'", "did you mean 'network'"]),
        ("own_code:Factory.x", ["'x'"]),
        ("own_code:NUMBER", ["int", "not something to call"]),
        ("own_broken:network", ["SyntaxError"]),
        ("own_needs:network", ["own_missing_package", "importing 'own_needs' failed"]),
        ("own_raises:network", ["ZeroDivisionError"]),
    ],
)
def test_a_bad_import_path_is_reported(own_code: Path, target: str, words: list[str]) -> None:
    (own_code / "own_broken.py").write_text("def (")
    (own_code / "own_needs.py").write_text("import own_missing_package")
    (own_code / "own_raises.py").write_text("1 / 0")
    with pytest.raises(UserError) as caught:
        load(target, "model.target")
    for word in [f"model.target={target}", *words]:
        assert word in str(caught.value)


def test_wrong_options_are_reported() -> None:
    data = binary(BinaryConfig())
    with pytest.raises(UserError, match=r"model\.options.*own_code:network.*depht"):
        build_model(CustomModelConfig(target="own_code:network", options={"depth": 2, "depht": 2}), data)
    with pytest.raises(UserError, match=r"data\.options.*own_code:samples.*number"):
        load_data(CustomDataConfig(target="own_code:samples", options={"number": 2}))


def test_a_wrong_return_type_is_reported() -> None:
    with pytest.raises(UserError, match=r"model\.target=own_code:nothing returned NoneType"):
        build_model(CustomModelConfig(target="own_code:nothing"), binary(BinaryConfig()))
    with pytest.raises(UserError, match=r"data\.target=own_code:nothing returned NoneType"):
        load_data(CustomDataConfig(target="own_code:nothing"))


def layer(name: str, *ties: Tie) -> Layer:
    return Layer(name, nn.Identity, ties)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((), "no layers"),
        ((layer("a"), layer("b"), layer("a")), "'a'"),
        ((layer("a/b"),), "'a/b'"),
        ((layer(".."),), r"'\.\.'"),
        ((layer("a", Tie("weight", "b", "weight")), layer("b")), "'b'.*before"),
        ((layer("a", Tie("weight", "a", "weight")),), "'a'.*before"),
        ((layer("a"), layer("b", Tie("weight", "c", "weight"))), "'c'.*before it are a"),
        (
            (layer("a"), layer("b", Tie("weight", "a", "weight"), Tie("weight", "a", "bias"))),
            "'weight' twice, to 'weight' of layer 'a' and to 'bias' of layer 'a'",
        ),
        (
            (layer("a"), layer("b", Tie("x", "a", "y")), layer("c"), layer("d", Tie("z", "b", "x"))),
            "'d' ties its 'z' to 'x' of layer 'b'.*itself tied: tie it to .* 'y' of layer 'a'",
        ),
    ],
)
def test_an_unsound_model_is_reported(layers: tuple[Layer, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_model(Model(layers, BinaryLoss()))


def test_a_layer_may_both_use_and_own_parameters() -> None:
    """Two of its parameters may have the same owner."""
    layers = (
        layer("a"),
        layer("b", Tie("weight", "a", "weight"), Tie("other", "a", "weight")),
        layer("c", Tie("weight", "a", "weight"), Tie("bias", "b", "bias")),
    )
    check_model(Model(layers, BinaryLoss()))


def test_custom_models_are_checked_too() -> None:
    config = CustomModelConfig(target="own_code:network", options={"depth": 2, "target": "linear0"})
    with pytest.raises(UserError, match="'linear0'"):
        build_model(config, binary(BinaryConfig()))

"""A command that uses a trained model takes its configuration from a run, the rest from its own launch."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.support.configs import composed, valid
from trainer.config.compose import typed
from trainer.config.from_run import Saved, with_choices
from trainer.config.schema import Config, CustomModelConfig, SimpleNetConfig
from trainer.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run, with values that are not defaults."""
    config = valid()
    config.model = dataclasses.replace(config.model, width=48, context=24)
    config.data.context = 24
    config.train.seed, config.layout.stages, config.threads, config.checkpoint.resume = 5, 4, 3, "none"
    config.train.freeze = ["a b", "c,d"]
    return saved(tmp_path / "run", config)


def saved(folder: Path, config: Config) -> Path:
    """Write a configuration as a run's folder does."""
    folder.mkdir()
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return folder


def taken(*words: str) -> Any:
    """Return the configuration of a command line that names a run."""
    run = Saved.of(words)
    assert run is not None
    node = composed(*(word for word in with_choices(words, run) if not word.startswith("run.dir=")))
    run.put_into(node)
    return typed(node)


def test_what_was_trained_is_the_runs_and_where_it_runs_is_the_launchs(run: Path) -> None:
    config = taken(f"run.dir={run}")
    assert (config.model.width, config.model.context, config.data.context) == (48, 24, 24)
    assert (config.train.seed, config.train.steps, config.data.path) == (5, 1, "text")
    assert config.train.freeze == ["a b", "c,d"]
    assert (config.layout.stages, config.threads, config.checkpoint.resume) == ("auto", "auto", "auto")


def test_the_command_line_comes_first(run: Path) -> None:
    config = taken(f"run.dir={run}", "data.path=other", "layout.stages=2", "train.seed=7")
    assert (config.data.path, config.train.seed, config.layout.stages) == ("other", 7, 2)
    assert config.model.width == 48
    assert isinstance(taken(f"run.dir={run}", "model=simplenet").model, SimpleNetConfig)


def test_a_checkpoint_names_its_run(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step-00000100"
    checkpoint.mkdir(parents=True)
    assert taken(f"checkpoint.resume={checkpoint}").model.width == 48


def test_options_of_a_custom_model_are_taken(tmp_path: Path) -> None:
    config = valid()
    config.model = CustomModelConfig(target="a:b", options={"depth": 3, "size": [1, 2]})
    folder = saved(tmp_path / "custom", config)
    assert taken(f"run.dir={folder}").model.options == {"depth": 3, "size": [1, 2]}
    assert taken(f"run.dir={folder}", "+model.options.depth=4").model.options == {"depth": 4, "size": [1, 2]}


def test_no_run_no_change() -> None:
    assert Saved.of(["model=gpt", "checkpoint.resume=auto"]) is None


def test_choices_follow_hydras_options(run: Path) -> None:
    words = ["--cfg", "job", f"run.dir={run}"]
    found = Saved.of(words)
    assert found is not None
    assert with_choices(words, found) == [
        "--cfg", "job", "experiment=none", "model=gpt", "data=text", f"run.dir={run}"
    ]  # fmt: skip


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run.dir=.* has no config.yaml: give the folder of a run"):
        Saved.of([f"run.dir={tmp_path / 'nothing'}"])
    (tmp_path / "config.yaml").write_text("[1")
    with pytest.raises(UserError, match="cannot be read"):
        Saved.of([f"run.dir={tmp_path}"])
    (tmp_path / "config.yaml").write_text("model: {width: 3}")
    with pytest.raises(UserError, match="is not the configuration of a run"):
        Saved.of([f"run.dir={tmp_path}"])

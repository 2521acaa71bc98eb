"""A value that Hydra's grammar does not take gets a remedy that works in a shell, letter by letter."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainer.config.compose import explain, register
from trainer.config.quoting import quoting_hint
from trainer.errors import UserError

PATHS = [
    "a=b.txt",
    "epoch=3, step=7 é $x.txt",
    "a,b",
    "it's=1",
    'say "x"=1',
    "~/x",
    "a(b",
    "x${y}=",
    "a#b",
    "50%=\\",
]


def value_of(hint: str) -> str:
    """Return what Hydra and OmegaConf make of the argument that a hint shows, through a shell."""
    shown = (
        hint.split("for Hydra, ")[1].removeprefix("and all of it for the shell: ").partition("; a list")[0]
    )
    (argument,) = shlex.split(shown)
    override = OverridesParser.create().parse_override(argument)
    value = OmegaConf.create({"key": override.value()}).key
    assert isinstance(value, str)
    return value


@pytest.mark.parametrize("path", PATHS)
def test_paths(path: str) -> None:
    hint = quoting_hint(["model=gpt", f"data.path={path}"], "complaint", sweep=False)
    assert hint is not None
    assert value_of(hint) == path


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1))
def test_any_value_comes_back_as_it_was(value: str) -> None:
    hint = quoting_hint([f"data.path=={value}"], "complaint", sweep=False)
    if hint is not None:
        assert value_of(hint) == f"={value}"


@pytest.mark.parametrize(
    "arguments",
    [[], ["model=gpt"], ["--multirun"], ["optimizer.groups=[{match"], ["data.path=plain text.txt"]],
)
def test_nothing_to_quote(arguments: list[str]) -> None:
    assert quoting_hint(arguments, "complaint", sweep=False) is None


def test_several_values() -> None:
    assert quoting_hint(["train.seed=1,2"], "", sweep=True) is None
    hint = quoting_hint(["train.freeze=a,b"], "", sweep=False)
    assert hint is not None
    assert "'train.freeze=[a,b]'" in hint
    assert "--multirun" in hint


def test_the_command_shows_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer", "data.path=a=b.txt"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("trainer: error: the command line is not understood: data.path=a=b.txt (")
    assert line.endswith("""quote the value for Hydra, and all of it for the shell: 'data.path="a=b.txt"'""")


def test_without_a_home_the_message_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is in no passwd."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    register()
    with pytest.raises(Exception, match="cache") as caught:
        OmegaConf.to_container(OmegaConf.create({"cache": "${cache:tokens}"}), resolve=True)
    found = explain(caught.value)
    assert isinstance(found, UserError)
    assert (
        str(found) == "there is no home folder for the cache of tokens: give data.cache=FOLDER, or set HOME"
    )

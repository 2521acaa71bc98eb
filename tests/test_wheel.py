"""The wheel is self-contained: unpacked anywhere, it finds its configuration and trains."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.launch import REPOSITORY

NEEDED = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "conf", "trainer")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, because building writes files beside the sources."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("out")
    for name in NEEDED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(copy)], check=True, timeout=120)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, folder: Path, *command: str) -> str:
    """Run Python in a folder, with only the unpacked wheel on its path; return its output."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OMPI_", "PMIX_"))}
    env["PYTHONPATH"] = str(installed)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_has_the_code_and_the_configuration_and_nothing_else(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"trainer"}
    found = {str(path.relative_to(installed)) for path in installed.rglob("*.*") if path.is_file()}
    for folder, pattern, below in (("trainer", "*.py", ""), ("conf", "*.yaml", "trainer/")):
        sources = {below + str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / folder).rglob(pattern)}
        assert sources
        assert sources <= found


def test_it_has_a_script_for_every_command(installed: Path) -> None:
    (entries,) = installed.glob("*.dist-info/entry_points.txt")
    scripts = [line.split(" = ") for line in entries.read_text().splitlines() if " = " in line]
    assert {name for name, _ in scripts} >= {"trainer", "trainer-plan", "trainer-report", "trainer-verify"}


def test_it_finds_its_configuration(installed: Path, tmp_path: Path) -> None:
    printed = run(installed, tmp_path, "-m", "trainer", "--cfg", "job", "experiment=small")
    assert "width: 32" in printed
    where = run(installed, tmp_path, "-c", "from trainer.config.compose import *; print(conf_folder())")
    assert where.strip() == str(installed / "trainer" / "conf")


@pytest.mark.slow
def test_it_trains(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "-m", "trainer", "experiment=simplenet", "train.steps=2", "threads=1")
    (folder,) = (tmp_path / "runs").iterdir()
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps if "loss" in step] == [1, 2]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trainer model=", {f"model={file.stem}" for file in (REPOSITORY / "conf/model").glob("*.yaml")}),
        ("trainer model.wid", {"model.width="}),
        ("trainer experiment=s", {"experiment=simplenet", "experiment=small", "experiment=speech"}),
    ],
)
def test_the_shell_completes(installed: Path, tmp_path: Path, line: str, expected: set[str]) -> None:
    """Like the function that `trainer --shell-completion install=bash` defines."""
    script = "import sys; from trainer.__main__ import main; sys.argv[0] = 'trainer'; main()"
    os.environ["COMP_LINE"], os.environ["COMP_POINT"] = line, str(len(line))
    try:
        printed = run(installed, tmp_path, "-c", script, "--shell-completion", "query=bash")
        defined = run(installed, tmp_path, "-c", script, "--shell-completion", "install=bash")
    finally:
        del os.environ["COMP_LINE"], os.environ["COMP_POINT"]
    assert set(printed.split()) == expected
    assert "complete -o nospace -o default -F hydra_bash_completion" in defined

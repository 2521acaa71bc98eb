"""The documentation is true: its drawings, lists, links, keys and commands; and its code trains."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from tests.support.schedules import training_schedule
from trainer.config import schema
from trainer.schedule.actions import Tied
from trainer.schedule.draw import draw_text
from trainer.schedule.resolve import recipes
from trainer.schedule.simulate import simulate

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
STAGES, MICRO_BATCHES = 4, 6

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(page: Path) -> str:
    """Return a page's text without HTML comments."""
    return re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)


def blocks(page: Path, language: str = "") -> Iterator[str]:
    """Yield a page's fenced blocks in a language."""
    for found, block in re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL):
        if found == language:
            yield block


def commands(page: Path) -> Iterator[str]:
    """Yield the commands on a page that run a module of the trainer, each as one line."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if "python -m trainer" in line:
                yield line.partition(" # ")[0]


def test_drawings_match_the_code() -> None:
    drawings = [block.splitlines() for page in PAGES for block in blocks(page)]
    drawings = [lines for lines in drawings if lines[0] in recipes()]
    assert drawings
    for name, *rows in drawings:
        schedule = training_schedule(name, STAGES, MICRO_BATCHES)
        timeline = simulate(schedule, [1.0] * STAGES, [2.0] * STAGES)
        assert rows == draw_text(schedule, timeline).splitlines()


def test_action_lists_match_the_code() -> None:
    page = REPOSITORY / "docs/schedules.md"
    (lists,) = [block.splitlines() for block in blocks(page) if block.startswith("rank 0")]
    schedule = training_schedule("1f1b", 2, 2, [Tied(0, 1)])
    assert lists == [
        f"rank {rank}  {' '.join(map(str, actions))}" for rank, actions in enumerate(schedule.workers)
    ]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and MkDocs generate for a page's headings."""
    titles = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@each_page
def test_links_have_targets(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_every_page_of_the_site_is_reachable_from_the_readme() -> None:
    links = set(re.findall(r"\]\((docs/[^)\s#]+\.md)\)", text_of(REPOSITORY / "README.md")))
    pages = {f"docs/{page.name}" for page in REPOSITORY.glob("docs/*.md")}
    assert pages - links == {"docs/index.md"}


def keys_of(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a configuration class, including those of every choice of a group."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield prefix + field.name
        types: list[Any] = [hints[field.name], *get_args(hints[field.name])]
        for part in [each for each in types if dataclasses.is_dataclass(each)]:
            for choice in [part, *subclasses(part)]:
                yield from keys_of(choice, f"{prefix}{field.name}.")


def subclasses(kind: type) -> Iterator[type]:
    for sub in kind.__subclasses__():
        yield sub
        yield from subclasses(sub)


@each_page
def test_keys_exist(page: Path) -> None:
    known = set(keys_of(schema.Config))
    groups = {key.partition(".")[0] for key in known if "." in key}
    named = re.findall(r"(?<![\w./+])([a-z]+(?:\.[a-z_]+)+)(?==)", text_of(page))
    named += re.findall(r"`([a-z]+(?:\.[a-z_]+)+)`", text_of(page))
    options = ("model.options.", "data.options.", "optimizer.options.")  # named by the user
    unknown = [
        key
        for key in named
        if key.partition(".")[0] in groups and key not in known and not key.startswith(options)
        if not key.endswith((".json", ".jsonl", ".lsf", ".pbs", ".py", ".sbatch", ".sh", ".txt"))
    ]
    assert not unknown, f"{page.name} names keys that do not exist"


@each_page
def test_commands_exist(page: Path) -> None:
    modules = re.findall(r"python -m (trainer[\w.]*)", text_of(page))
    assert not [name for name in modules if not runs(name)], f"{page.name} runs modules that do not exist"


def runs(name: str) -> bool:
    """Return whether `python -m` finds a module: a file, or a package with a `__main__`."""
    path = REPOSITORY.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def own_code(page: Path, folder: Path) -> list[list[str]]:
    """Write a page's Python files to a folder; return the commands that use them, without the launcher."""
    for block in blocks(page, "python"):
        if name := re.match(r"# (my_\w+\.py)\n", block):
            (folder / name.group(1)).write_text(block)
    modules = [path.stem for path in folder.glob("my_*.py")]
    assert modules
    using = [command for command in commands(page) if all(f"={name}:" in command for name in modules)]
    return [shlex.split(command[command.index("python -m ") :])[1:] for command in using]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "module", "last_line"),
    [
        ("README.md", "trainer", "step 2  validation loss"),
        ("docs/any-module.md", "trainer", "step 2  validation loss"),
        ("docs/data.md", "trainer", "step 2/2  loss"),
        ("docs/tutorial.md", "trainer.verify", "the layout does not change the training"),
    ],
)
def test_code_on_the_pages_trains(page: str, module: str, last_line: str, tmp_path: Path) -> None:
    """Use the page's files and overrides, in one process for two steps."""
    command = next(words for words in own_code(REPOSITORY / page, tmp_path) if words[1] == module)
    short = [
        "train.steps=2",
        "verify.steps=2",
        "batch.global_size=8",
        "eval.samples=8",
        "threads=1",
        "generate.tokens=0",
    ]
    done = subprocess.run(
        [sys.executable, *command, *short, "threads=1", "run.dir=run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(last_line)


def test_the_site_builds_and_loads_nothing_external(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the documentation tools are not installed (make setup WHEELS=...)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {"index.html", "contributing", "tutorial"} <= {path.name for path in tmp_path.iterdir()}
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img)\b[^>]*\b(?:src|href)=\"([^\"]+)\"", page.read_text())
        assert loaded
        assert not [address for address in loaded if "//" in address], page.name

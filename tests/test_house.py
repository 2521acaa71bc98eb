"""Packages import in one direction only, and the root of `trainer` holds the spine and nothing else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TRAINER = Path(__file__).parents[1] / "trainer"

# From the ground up. A unit is a package, or a module in the root; it may import those before it.
ORDER = [
    "errors",
    "seeds",
    "activation",
    "distributed",
    "schedule",
    "config",
    "launch",
    "watch",
    "command",
    "data",
    "tokenize",
    "models",
    "pipeline",
    "cut",
    "replication",
    "optim",
    "checkpoint",
    "hf",
    "export",
    "plan",
    "run",
    "step",
    "evaluation",
    "generate",
    "generation",
    "metrics",
    "evaluate",
    "resume",
    "train",
    "fitting",
    "report",
    "verify",
    "bench",
    "__main__",
]
MOST_IN_THE_ROOT = 13


def unit(module: str) -> str:
    """Return the unit of a module's dotted name, such as "config" of "trainer.config.schema"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> Iterator[str]:
    """Yield the trainer's modules that a file imports, also inside functions and for type checkers only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "trainer")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trainer":
            assert node.level == 0
            if node.module == "trainer":  # from the root: each name may be a unit
                yield from (f"trainer.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def files() -> list[Path]:
    return sorted(TRAINER.rglob("*.py"))


def test_every_unit_has_its_place() -> None:
    found = {path.relative_to(TRAINER).parts[0].removesuffix(".py") for path in files()}
    assert found - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(TRAINER)))
def test_imports_run_downwards(path: Path) -> None:
    mine = path.relative_to(TRAINER).parts[0].removesuffix(".py")
    if path == TRAINER / "__init__.py":
        assert set(imports(path)) == {"trainer.fitting"}  # for type checkers
        return
    for module in imports(path):
        other = unit(module)
        if other in (mine, "__version__"):
            continue
        assert ORDER.index(other) < ORDER.index(mine), f"{mine} imports {module}, which lies above it"


def test_the_root_holds_the_spine() -> None:
    modules = [path.name for path in TRAINER.glob("*.py")]
    assert len(modules) <= MOST_IN_THE_ROOT, modules


EXACT = ["evaluation", "step", "run", "pipeline", "replication", "optim", "checkpoint", "models", "verify"]
HARMLESS = re.compile(r"count|numel|bytes|size|len\(|int\(|waited")  # whole numbers, and times


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(TRAINER)))
def test_floats_whose_bits_matter_are_added_in_a_loop(path: Path) -> None:
    """From Python 3.12 on, the builtin `sum` of floats is compensated: other bits than a loop's."""
    if path.relative_to(TRAINER).parts[0].removesuffix(".py") not in EXACT:
        return
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "sum":
            source = str(ast.get_source_segment(text, node))
            assert HARMLESS.search(source), f"line {node.lineno}: {source} may add floats: use a loop"

"""`trainer.fit`: the README's lines, on one rank and on two, and what it refuses."""

import re
import sys
from pathlib import Path

import pytest

from tests.support.launch import REPOSITORY, horovodrun, run
from tests.support.refusals import assert_refused

pytestmark = [pytest.mark.parallel, pytest.mark.slow]


def script(*further: str) -> str:
    """Return the README's lines, shortened, and what follows them."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    (lines,) = [block for block in blocks if "import fit" in block]
    assert len([line for line in lines.splitlines() if line.strip()]) <= 15
    lines = lines.replace("train.epochs=10", "train.epochs=2").replace("lr=3e-3", 'lr=3e-3", "threads=1')
    return "\n".join([lines, *further])


def test_the_lines_of_the_readme_train_alike_on_one_rank_and_on_two(tmp_path: Path) -> None:
    check = [
        "trained = fitted.module()(digits.tensors[0]).argmax(1)",
        "right = (trained == classes).float().mean().item()",
        "print('FOUND', right, fitted.validation, fitted.steps[-1]['loss'])",
    ]
    (tmp_path / "script.py").write_text(script(*check))
    outputs = [
        run([sys.executable, "script.py"], tmp_path).check(),
        run(["horovodrun", "-np", "2", sys.executable, "script.py"], tmp_path).check(),
    ]
    found = [set(re.findall(r"FOUND (.*)", output.out)) for output in outputs]
    assert found[0] == found[1]
    (line,) = found[0]
    assert float(line.split()[0]) > 0.8


def test_modules_that_differ_between_ranks_are_refused(tmp_path: Path) -> None:
    lines = script().replace("fit(network,", "fit(network(),")
    (tmp_path / "script.py").write_text(lines.replace("def network", "torch.seed()\n\n\ndef network"))
    command = horovodrun(2, [], module="script")
    assert_refused(run(command, tmp_path), tmp_path, "the ranks differ in their modules")

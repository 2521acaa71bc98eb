"""Every way to start ranks in a Slurm job trains, or says what to use: the table of docs/clusters.md."""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.support.launch import REPOSITORY, Result

LIMIT = 150.0  # seconds; on an idle machine it takes ten
PAGE = REPOSITORY / "docs" / "clusters.md"
RANKS = re.compile(r"(\d+) ranks? = ")


@dataclass(frozen=True)
class Way:
    """A row of the table.

    Attributes:
        job: The options of the job.
        start: What starts the ranks; `...` stands for `python -m trainer` and its overrides, or after
            `trainer.launch` for the overrides alone.
        ranks: How many ranks train; 0 if it is refused.
        says: What the message says, if it is refused.
        by: The command that takes the job: `sbatch` for a script, `salloc` or `srun` for a shell.
    """

    job: str
    start: str
    ranks: int = 0
    says: str = ""
    by: str = "sbatch"

    def __str__(self) -> str:
        return f"{self.by} {self.job}: {self.start}"

    def row(self) -> str:
        """Return the row of the table on the page."""
        result = f"{self.ranks} ranks" if self.ranks else f"refused: “{self.says}”"
        return f"| `{self.by} {self.job}` | `{self.start}` | {result} |"


WAYS = [
    Way("-N1 -n2", "horovodrun -np 2 ...", 2),
    Way("-N1 -n1", "horovodrun -np 2 ...", 2),
    Way("-N2 --ntasks-per-node=1", "horovodrun -np 2 ...", 2),
    Way("-N2 --ntasks-per-node=1", "horovodrun -np 4 ...", 4),
    Way("-N2 --ntasks-per-node=1 --array=1", "horovodrun -np 2 ...", 2),
    Way("-N1 -n2", "mpirun ...", 2),
    Way("-N1 -n1", "mpirun -np 2 ...", says="There are not enough slots available"),
    Way("-N2 -n2", "mpirun ...", 2),
    Way("-N2 -n2", "srun --mpi=pmix ...", 2),
    Way("-N1 -n2", "srun ...", says="in Slurm srun --mpi=pmix"),
    Way("-N2 -n2", "horovodrun -np 2 ...", 2, by="salloc"),
    Way("-N1 -n1", "horovodrun -np 2 ...", 2, by="srun"),
    Way("-N1 -n1 -c4", "python -m trainer.launch -np 4 ...", 4),
    Way("-N2 --ntasks-per-node=1", "python -m trainer.launch ...", 2),
    Way("-N2 --ntasks-per-node=1 --array=1", "python -m trainer.launch ...", 2),
    Way("-N2 -n2", "python -m trainer.launch ...", 2, by="salloc"),
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_way(way: Way, cluster: Slurm, small: list[str], tmp_path: Path) -> None:
    python = shlex.quote(sys.executable)
    program = "" if "trainer.launch" in way.start else f"{python} -m trainer "
    line = way.start.replace("...", program + shlex.join(small)).replace(
        "python -m trainer.launch", f"{python} -m trainer.launch"
    )
    result = _run(way, line, cluster, tmp_path)
    printed = result.out + result.err
    if way.ranks:
        assert result.code == 0, printed
        assert {int(ranks) for ranks in RANKS.findall(printed)} == {way.ranks}
        assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) >= 3
    else:
        assert result.code != 0
        assert way.says in printed
        assert "Traceback" not in printed
    assert cluster.hosts.left() == {}


def _run(way: Way, line: str, cluster: Slurm, folder: Path) -> Result:
    options = shlex.split(way.job)
    if way.by != "sbatch":
        return cluster.launch([way.by, *options, *shlex.split(line)], folder).wait(LIMIT)
    job = cluster.submit(line, folder, *options)
    code = job.wait(LIMIT)
    return Result(code, job.output(), "", 0.0, (), frozenset())


def test_the_page_has_this_table() -> None:
    rows = [
        line
        for line in PAGE.read_text().splitlines()
        if line.startswith(("| `sbatch ", "| `salloc ", "| `srun "))
    ]
    assert rows == [way.row() for way in WAYS]

"""`python -m tests.generated.run --seconds 3600 --ranks 4`: verifies random models until the time is over.

Every number of ranks and of replicas has ranks of its own, which take some cases, then others take theirs.
Each case that does not end as it should is printed, with the command that repeats it.
"""

import argparse
import collections
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.generated.cases import BASE, case
from tests.generated.rank import ERROR, Outcome
from tests.support.launch import Result
from tests.support.pool import Pool

_AT_ONCE = 25  # cases of a job
_JOBS = 6  # after which ranks start anew
HUNG = "hung"


class Group:
    """A number of ranks and replicas, and the processes that run their cases.

    Args:
        ranks: The number of ranks.
        replicas: The number of replicas.
        folder: Where to work.
    """

    def __init__(self, ranks: int, replicas: int, folder: Path) -> None:
        self.ranks, self.replicas = ranks, replicas
        self._folder = folder
        self._pool: Pool | None = None
        self._jobs = 0

    def run(self, seeds: list[int]) -> Iterator[Outcome]:
        """Yield the outcome of every case, whatever becomes of the ranks."""
        while seeds:
            seen, died = self._run(seeds)
            yield from seen
            done = {outcome.seed for outcome in seen}
            seeds = [seed for seed in seeds if seed not in done] if died else []

    def end(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.end()
        self._pool = None

    def _run(self, seeds: list[int]) -> tuple[list[Outcome], bool]:
        if self._pool is None or not self._pool.usable or self._jobs >= _JOBS:
            self.end()
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            self._pool, self._jobs = Pool(self.ranks, folder), 0
        self._jobs += 1
        work = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            result = self._pool.run(
                job(seeds, self.replicas),
                work,
                module="tests.generated.rank",
                deterministic=True,
                limit=60.0 + 10.0 * len(seeds),
            )
        except AssertionError as error:
            result = Result(1, str(error), "", 0.0, (), frozenset())
        outcomes, began = read(result.out)
        assert outcomes or began is not None or result.code == 0, result.out + result.err
        if began is not None:
            outcomes.append(_of_failure(began, result))
        return outcomes, result.code != 0


def job(seeds: list[int], replicas: int) -> list[str]:
    """Return the arguments of a job that runs these cases."""
    asked = [f"+model.options.seeds={seeds}", f"+model.options.replicas={replicas}"]
    return [*BASE, *asked, "optimizer=sgd", "train.steps=1"]


def read(text: str) -> tuple[list[Outcome], int | None]:
    """Return the outcomes in a job's output, and the case that began and did not end."""
    outcomes, began = [], None
    for line in text.splitlines():
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        if "began" in fields:
            began = fields["began"]
        elif "verdict" in fields:
            outcomes.append(Outcome(**fields))
            began = None
    return outcomes, began


def _of_failure(seed: int, result: Result) -> Outcome:
    """Return the outcome of the case at which the ranks ended."""
    for line in result.err.splitlines():
        _, found, fields = line.partition("ALONE ")
        if found and fields.startswith("{"):
            alone = Outcome(**json.loads(fields))
            alone.message = f"on one rank alone: {alone.message}"
            return alone
    return Outcome(
        seed, HUNG if "TimeoutError" in result.err else ERROR, result.err[-3000:] or result.out[-3000:]
    )


def shapes(ranks: int) -> list[tuple[int, int]]:
    """Return the numbers of ranks and replicas to run."""
    return [(n, r) for n in range(1, ranks + 1) for r in range(1, n + 1) if n % r == 0]


def main() -> int:
    """Run cases; return 1 if some did not end as they should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--ranks", type=int, default=4, help="at most")
    parser.add_argument("--replicas", type=int, help="only these")
    parser.add_argument("--first", type=int, default=0, help="the first number")
    parser.add_argument("--count", type=int, default=1 << 30, help="how many numbers at most")
    parser.add_argument("--log", type=Path, help="where to write every outcome")
    asked = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    bad, seconds = 0, 0.0
    wanted = [shape for shape in shapes(asked.ranks) if asked.replicas in (None, shape[1])]
    if asked.replicas is not None:
        wanted = [shape for shape in wanted if shape[0] == asked.ranks]
    until, last = time.monotonic() + asked.seconds, asked.first + asked.count
    with tempfile.TemporaryDirectory() as folder:
        groups = [Group(*shape, Path(folder)) for shape in wanted]
        try:
            for number, first in enumerate(range(asked.first, last, _AT_ONCE)):
                if time.monotonic() > until:
                    break
                group = groups[number // _JOBS % len(groups)]
                if number % _JOBS == 0:
                    for other in groups:
                        other.end()
                for outcome in group.run(list(range(first, min(first + _AT_ONCE, last)))):
                    counts[outcome.verdict] += 1
                    seconds += outcome.seconds
                    bad += not outcome.good
                    _report(outcome, group, asked.log)
        finally:
            for group in groups:
                group.end()
    total = sum(counts.values())
    sys.stdout.write(f"{total} cases, {dict(counts)}, {bad} bad, {seconds / max(1, total):.2f} s each\n")
    return int(bad > 0)


def _report(outcome: Outcome, group: Group, log: Path | None) -> None:
    drawn = case(outcome.seed, group.ranks, group.replicas)
    if log is not None:
        with log.open("a") as file:
            fields = vars(outcome) | {"ranks": group.ranks, "replicas": group.replicas}
            file.write(json.dumps(fields) + "\n")
    if not outcome.good:
        sys.stdout.write(
            f"--- {outcome.verdict}: seed {outcome.seed}, {group.ranks} ranks, {group.replicas} replicas\n"
            f"{drawn.drawn}\n{outcome.message}\n{drawn.command()}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

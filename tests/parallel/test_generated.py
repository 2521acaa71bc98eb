"""Random models, data and layouts equal a plain loop, or are refused: see `tests/generated`."""

from pathlib import Path

import pytest

from tests.generated.cases import case
from tests.generated.rank import DIFFERS, Outcome
from tests.generated.run import job, read
from tests.support.pools import Pools

pytestmark = pytest.mark.parallel


@pytest.mark.parametrize(
    ("ranks", "replicas", "seeds"),
    [
        pytest.param(1, 1, range(10), id="one rank"),
        pytest.param(2, 1, range(100, 108), id="two ranks of one replica"),
        pytest.param(2, 2, range(200, 206), id="two replicas"),
        pytest.param(4, 2, range(300, 304), id="two replicas of two ranks"),
    ],
)
def test_fixed_numbers(ranks: int, replicas: int, seeds: range, pools: Pools, tmp_path: Path) -> None:
    for outcome in outcomes(pools, (ranks, replicas), seeds, tmp_path):
        assert outcome.good, f"{outcome}\n{case(outcome.seed, ranks, replicas).command()}"


def test_a_mistake_in_the_trainer_is_found(pools: Pools, tmp_path: Path) -> None:
    found = outcomes(pools, (2, 2), range(202, 204), tmp_path, "averaging_is_a_mean")
    assert [outcome.verdict for outcome in found] == [DIFFERS, DIFFERS]


def outcomes(
    pools: Pools, shape: tuple[int, int], seeds: range, folder: Path, mutation: str | None = None
) -> list[Outcome]:
    """Run cases on some ranks and replicas, perhaps with a mistake of `tests.support.mutations`."""
    ranks, replicas = shape
    arguments = [*job(list(seeds), replicas), f"layout.stages={ranks // replicas}"]
    result = pools.run(ranks, arguments, folder, module="tests.generated.rank", mutation=mutation)
    found, began = read(result.out)
    assert began is None, result.err
    assert [outcome.seed for outcome in found] == list(seeds)
    return found

"""Random models, data and layouts equal a plain loop, or are refused: see `tests/generated`."""

from pathlib import Path

import pytest

from tests.generated.cases import case
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
    arguments = [*job(list(seeds), replicas), f"layout.stages={ranks // replicas}"]
    result = pools.run(ranks, arguments, tmp_path, module="tests.generated.rank")
    outcomes, began = read(result.out)
    assert began is None, result.err
    assert [outcome.seed for outcome in outcomes] == list(seeds)
    for outcome in outcomes:
        assert outcome.good, f"{outcome}\n{case(outcome.seed, ranks, replicas).command()}"

"""All ranks of all replicas learn in the same step what one of them asks for."""

from itertools import product

import numpy as np
import pytest

from trainer.distributed.requests import Request, Requests


class Ranks:
    """Replicas of stages that exchange what a step exchanges."""

    def __init__(self, replicas: int, stages: int) -> None:
        self.replicas = [[Requests(replicas) for _ in range(stages)] for _ in range(replicas)]

    def step(self) -> list[Request]:
        last = [pipeline[-1] for pipeline in self.replicas]
        rows = np.array([each.for_replicas() for each in last])
        for each in last:
            each.from_replicas(rows)
        for pipeline in self.replicas:
            rows = np.array([each.for_pipeline() for each in pipeline])
            for each in pipeline:
                each.from_pipeline(rows)
        return [each.agreed for each in self.all()]

    def all(self) -> list[Requests]:
        return [each for pipeline in self.replicas for each in pipeline]


LAYOUTS = [(1, 1), (1, 3), (2, 1), (3, 2), (2, 4)]


@pytest.mark.parametrize(
    ("replicas", "stages", "rank"), [(r, s, rank) for r, s in LAYOUTS for rank in range(r * s)]
)
def test_agreed_in_the_same_step(replicas: int, stages: int, rank: int) -> None:
    ranks = Ranks(replicas, stages)
    assert set(ranks.step()) == {Request()}
    ranks.all()[rank].ask = lambda: Request(stop=15)
    for _ in range(1 if replicas == 1 else 2):
        agreed = ranks.step()
        assert len(set(agreed)) == 1
    assert agreed[0] == Request(stop=15)


@pytest.mark.parametrize(("replicas", "stages"), LAYOUTS)
def test_a_checkpoint_that_is_due_is_saved_once(replicas: int, stages: int) -> None:
    """Rank 0 asks until its clock is reset, which is when all have saved."""
    ranks = Ranks(replicas, stages)
    due = True
    ranks.all()[0].ask = lambda: Request(save=due)
    saves = 0
    for _ in range(6):
        agreed = ranks.step()
        assert len(set(agreed)) == 1
        if agreed[0].save:
            saves, due = saves + 1, False
            for each in ranks.all():
                each.saved()
    assert saves == 1


def test_every_signal_stops_once() -> None:
    """Ranks that got different signals agree on one."""
    ranks = Ranks(2, 2)
    for number, each in zip((10, 15, 12, 10), ranks.all(), strict=True):
        each.ask = lambda number=number: Request(stop=number)  # type: ignore[misc]
    for _, agreed in product(range(2), [ranks.step()]):
        assert len({each.stop for each in agreed}) == 1
        assert agreed[0].stop in (10, 12, 15)

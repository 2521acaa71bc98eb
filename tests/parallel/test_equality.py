"""The layout does not change the training: the same numbers, bit for bit, at a fixed number of replicas."""

from pathlib import Path

import pytest

from tests.support.runs import Trained

pytestmark = pytest.mark.parallel
OWN_SCHEDULE = Path(__file__).parents[1] / "fixtures" / "own_schedule.txt"


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        pytest.param(1, ["schedule=gpipe"], id="1 stage, gpipe"),
        pytest.param(2, [], id="2 stages, 1f1b", marks=pytest.mark.quick),
        pytest.param(2, ["schedule=gpipe"], id="2 stages, gpipe"),
        pytest.param(3, ["layout.stages=3"], id="3 stages, 1f1b"),
        pytest.param(2, ["schedule=interleaved"], id="2 ranks of 2 stages each, interleaved"),
        pytest.param(3, ["layout.stages=3", "schedule=zb_h1"], id="3 stages, zb_h1"),
        pytest.param(3, ["layout.stages=3", "schedule=gpipe"], id="3 stages, gpipe"),
        pytest.param(2, ["schedule=zb_v"], id="2 ranks of 2 stages each, zb_v"),
        pytest.param(2, [f"schedule={OWN_SCHEDULE}"], id="2 stages, a file"),
        pytest.param(2, ["memory.recompute=selective"], id="2 stages, selective recomputation"),
        pytest.param(
            3,
            ["layout.stages=3", "schedule=zb_h1", "memory.recompute=full"],
            id="3 stages, zb_h1, recomputed",
        ),
        pytest.param(4, ["layout.stages=4"], id="4 stages, 1f1b"),
        pytest.param(1, ["layout.devices_per_rank=3"], id="3 stages in one process"),
        pytest.param(2, ["layout.devices_per_rank=2", "layout.stages=4"], id="2 ranks of 2 devices each"),
    ],
)
def test_one_replica(trained: Trained, ranks: int, overrides: list[str]) -> None:
    one, other = trained(1), trained(ranks, *overrides)
    assert len(one.losses) == 6
    assert other.losses == one.losses
    assert other.grad_norms == one.grad_norms
    assert other.validation == one.validation
    for step in (3, 6):
        assert other.layer_files(step) == one.layer_files(step)
    assert other.written == one.written


def test_clipping_had_an_effect(trained: Trained) -> None:
    """Otherwise the runs above would not test clipping."""
    assert max(trained(1).grad_norms) > 1.0


@pytest.mark.parametrize("stages", [1, 2])
def test_two_replicas_against_one(trained: Trained, stages: int) -> None:
    """Equal up to the order of summation."""
    one, two = trained(1), trained(2 * stages, f"layout.stages={stages}")
    assert two.losses == pytest.approx(one.losses, rel=1e-6)
    assert two.grad_norms == pytest.approx(one.grad_norms, rel=1e-4)
    assert two.validation == pytest.approx(one.validation, rel=1e-6)


def test_two_replicas_whatever_their_stages(trained: Trained) -> None:
    one_stage, two_stages = trained(2, "layout.stages=1"), trained(4, "layout.stages=2")
    assert two_stages.losses == one_stage.losses
    assert two_stages.grad_norms == one_stage.grad_norms
    assert two_stages.layer_files(6) == one_stage.layer_files(6)

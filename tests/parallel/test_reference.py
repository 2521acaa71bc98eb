"""Split training matches a plain PyTorch loop without micro-batches, stages or replicas."""

from pathlib import Path

import pytest

from tests.support.plain import SPLIT, adam, network, plain
from tests.support.runs import Trained

pytestmark = pytest.mark.parallel


@pytest.mark.parametrize(("ranks", "stages"), [(2, 2), (2, 1)])
def test_plain_loop(ranks: int, stages: int, finished: Trained, small: list[str], text_file: Path) -> None:
    split = finished(ranks, *small, *SPLIT, f"layout.stages={stages}")
    model = network()
    losses, norms = plain(text_file.read_bytes(), model, adam(model))
    assert split.losses == pytest.approx(losses, rel=1e-6)
    assert split.grad_norms == pytest.approx(norms, rel=1e-4)
    assert losses[-1] < losses[0] - 0.5  # the compared runs did learn

"""On real ranks too, ties and skips connect any two stages, and micro-batches have any length and count."""

import numpy as np
import pytest

from tests.fixtures import FIXTURES
from tests.support.runs import Trained
from trainer.data.order import Order
from trainer.distributed.layout import assign_micro_batches, micro_batch_sizes
from trainer.models.gpt import MASKED
from trainer.pipeline.micro_batches import split_batch

pytestmark = pytest.mark.parallel

STEPS = 6
GLOBAL_SIZE = 11
MICRO_SIZE = 2
RUN = [
    f"batch.global_size={GLOBAL_SIZE}",
    f"batch.micro_size={MICRO_SIZE}",
    f"train.steps={STEPS}",
    "checkpoint.every=3",
    "run.dir=run",
    "threads=1",
    "device=cpu",
]


@pytest.fixture(scope="module")
def trained(finished: Trained) -> Trained:
    """Return a function that trains a fixture on some ranks, once for the same overrides."""
    return lambda ranks, name, *overrides: finished(ranks, *FIXTURES[name].overrides, *RUN, *overrides)


@pytest.mark.parametrize(
    ("name", "boundaries", "schedule"),
    [
        pytest.param("tied", [1, 5], "1f1b", id="tied across a stage without the weight"),
        pytest.param("ties", [2, 4], "1f1b", id="ties between every two stages"),
        pytest.param("skip", [3, 5], "gpipe", id="skips across a stage that does not use them"),
        pytest.param("encoder_decoder", [3, 6], "1f1b", id="an encoder's output for two stages"),
        pytest.param("mixed", [2, 4], "1f1b", id="everything that an activation may contain"),
    ],
)
def test_three_stages(trained: Trained, name: str, boundaries: list[int], schedule: str) -> None:
    first, second = boundaries
    overrides = ["layout.stages=3", f"layout.boundaries=[{first},{second}]", f"schedule={schedule}"]
    one, three = trained(1, name), trained(3, name, *overrides)
    assert len(one.losses) == STEPS
    assert three.losses == one.losses
    assert three.grad_norms == one.grad_norms
    assert three.validation == one.validation
    for step in (3, 6):
        assert three.layer_files(step) == one.layer_files(step)


@pytest.mark.parametrize(
    ("name", "ranks", "overrides"),
    [
        pytest.param("masked", 4, ["layout.stages=2", "layout.boundaries=[2]"], id="masked"),
        pytest.param("mixed", 2, ["layout.stages=1"], id="mixed"),
    ],
)
def test_two_replicas(trained: Trained, name: str, ranks: int, overrides: list[str]) -> None:
    one, two = trained(1, name), trained(ranks, name, *overrides)
    assert len(one.losses) == STEPS
    assert two.losses == pytest.approx(one.losses, rel=1e-6)
    assert two.grad_norms == pytest.approx(one.grad_norms, rel=1e-5)
    assert two.validation == pytest.approx(one.validation, rel=1e-6)


def test_replicas_have_different_counts_and_some_micro_batches_zero() -> None:
    """Otherwise the run of "masked" above would not test it."""
    data = FIXTURES["masked"].data().training
    order, sizes = Order(len(data), seed=0), micro_batch_sizes(GLOBAL_SIZE, MICRO_SIZE)
    shares = [assign_micro_batches(len(sizes), 2, replica) for replica in range(2)]
    counts = []
    for step in range(STEPS):
        batch = order.samples(step * GLOBAL_SIZE, GLOBAL_SIZE)
        targets = [
            [data.targets(samples) for samples in split_batch(batch, sizes, share)] for share in shares
        ]
        counts.append([[np.count_nonzero(target != MASKED) for target in share] for share in targets])
    assert any((0 in first) != (0 in second) for first, second in counts)
    assert any(sum(first) != sum(second) for first, second in counts)


def test_frozen_layers_stay_as_they_are(trained: Trained) -> None:
    before, after = (trained(1, "mixed").layer_files(step) for step in (3, 6))
    assert after["frozen.safetensors"] == before["frozen.safetensors"]
    assert after["middle.0.safetensors"] != before["middle.0.safetensors"]

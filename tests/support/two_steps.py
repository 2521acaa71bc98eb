"""Two training steps of a fixture model in one process, cut or not."""

from functools import cache

from torch import Tensor

from tests.fixtures import FIXTURES
from tests.support.one_process import Pipeline

LAYERS = {name: len(fixture.build().layers) for name, fixture in FIXTURES.items()}


@cache
def one_stage(name: str) -> tuple[list[float], dict[str, Tensor | None]]:
    """Return the losses of two steps of an uncut model, and the sum of their gradients."""
    pipeline = Pipeline(FIXTURES[name].build(), [LAYERS[name]])
    return two_steps(pipeline, name), pipeline.gradients()


def two_steps(pipeline: Pipeline, name: str) -> list[float]:
    """Train two steps; nothing clears the gradients, so the second step's add to the first's."""
    count = len(FIXTURES[name].sizes)
    return [loss for _ in range(2) for loss in pipeline.train(FIXTURES[name].micro_batches(), count)]

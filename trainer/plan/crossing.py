"""What crosses the cuts between stages, and what stages share, in words."""

from collections.abc import Iterator
from typing import Any

from trainer.activation import TensorSpec, unflatten
from trainer.config.sizes import size_text
from trainer.models.model import Model
from trainer.plan.stages import Partition

_SHOWN = 4  # tensors of one cut


def crossing_lines(model: Model, partition: Partition, samples: int) -> Iterator[str]:
    """Yield a line for every cut between stages, equal neighbours in one, and one for every shared parameter.

    Nothing of a model that has nothing to say of what crosses.

    Args:
        model: The model.
        partition: The layers of each stage.
        samples: How many a micro-batch has.
    """
    if model.crossing is None:
        return
    cuts = [_cut(model, partition, layers[-1], samples) for layers in partition.stages[:-1]]
    start = 0
    for stage, text in enumerate(cuts):
        if stage + 1 == len(cuts) or cuts[stage + 1] != text:
            last = f" .. {stage}|{stage + 1}" if stage > start else ""
            yield f"  crosses {start}|{start + 1}{last}: {text}"
            start = stage + 1
    yield from _ties(model, partition)


def _cut(model: Model, partition: Partition, layer: int, samples: int) -> str:
    """Return what a layer hands on to the next stage."""
    outputs = partition.costs[layer].outputs
    if outputs is None or model.crossing is None:
        return "known when it runs"
    handed_on: Any = unflatten(outputs.tensors, outputs.nest)  # type: ignore[arg-type]
    named = {key: spec for key, spec in handed_on.items() if isinstance(spec, TensorSpec)}
    words = [
        f"{model.crossing(layer, key)}, {str(spec.dtype).removeprefix('torch.')} {list(spec.shape)}"
        for key, spec in named.items()
    ]
    more = [f"and {len(words) - _SHOWN} more"] if len(words) > _SHOWN else []
    return f"{'; '.join([*words[:_SHOWN], *more])} ({size_text(outputs.bytes / samples)} a sample)"


def _ties(model: Model, partition: Partition) -> Iterator[str]:
    stage_of = {layer.name: stage for layer, stage in zip(model.layers, partition.stage_of, strict=True)}
    for layer in model.layers:
        for tie in layer.ties:
            uses, owns = stage_of[layer.name], stage_of[tie.owner]
            where = (
                f"stage {owns}" if uses == owns else f"stages {owns} and {uses}, which add up its gradients"
            )
            same = "" if tie.parameter == tie.owner_parameter else f" = {tie.parameter}"
            yield f"  shared: {tie.owner_parameter}{same} on {where}"

"""What a cut model's activations hold, and what about its cuts a user should know, in words."""

from collections.abc import Iterator
from itertools import pairwise

from trainer.cut.analysis import Cuts

_FEWEST = 3  # cuts that show a trend


def crossing_name(cuts: Cuts, layer: int, key: str) -> str:
    """Return what a tensor is that a layer hands on.

    Args:
        cuts: The cuts.
        layer: The layer's number.
        key: The tensor's name in the activation, of a `Source`.
    """
    kind, number, part = key.split(".")
    if kind == "argument" and int(number) == layer:
        return "the block's input" + (f" {part}" if int(part) else "")
    if kind == "argument":
        return f"input {part} of {cuts.blocks[int(number)]}"
    if kind == "block":
        return f"output {part} of {cuts.blocks[int(number)]}"
    if kind == "call":
        return f"the output of {cuts.outer[cuts.calls[int(number)][0]]}"
    return f"the model's input {number}"


def notes(cuts: Cuts) -> Iterator[str]:
    """Yield what a user should know of the cuts."""
    numbers = [len(crossing.arguments) + len(crossing.sources) for crossing in cuts.crossing]
    growth = {later - earlier for earlier, later in pairwise(numbers)}
    if len(numbers) >= _FEWEST and len(growth) == 1 and (grows := growth.pop()) > 0:
        yield (
            f"what crosses a cut grows by {grows} tensor{'s' * (grows > 1)} a block, because code between "
            "blocks reads the outputs of all earlier ones (x = x + block(x)): wrap such code and its block "
            "in one module, and name that in model.blocks"
        )
    if cuts.unused:
        shown = ", ".join(cuts.unused[:_FEWEST])
        more = f" and {len(cuts.unused) - _FEWEST} more" if len(cuts.unused) > _FEWEST else ""
        yield f"no forward reads {shown}{more}: kept as they are, and not trained"

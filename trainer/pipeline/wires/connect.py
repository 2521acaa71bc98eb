"""Connects the ranks of a model-parallel group: MPI for control, the most suitable wire for tensors."""

from collections.abc import Mapping, Sequence

import torch

from trainer.distributed.waiting import WaitMeter
from trainer.distributed.world import Communicator
from trainer.pipeline.messages import Messages, number_of_tags
from trainer.pipeline.wires.mpi import MpiWire
from trainer.pipeline.wires.registry import Place, open_wires


def connect(
    group: Communicator, rank_of: Sequence[int], devices: Mapping[int, torch.device], meter: WaitMeter
) -> Messages:
    """Return the messages to and from the other ranks of the group; all of its ranks call this together.

    Args:
        group: The model-parallel group.
        rank_of: The rank, within the group, that holds each stage.
        devices: The devices of this rank's stages.
        meter: Adds up the seconds of waiting.
    """
    tags = number_of_tags(len(rank_of))
    control = MpiWire(group, tags)
    wires = open_wires(Place(group, devices, control, tags))
    return Messages(
        rank=group.rank,
        rank_of=rank_of,
        devices=devices,
        control=control,
        wire_to=wires.__getitem__,
        meter=meter,
    )

"""The registered wires, and the choice of one for each pair of ranks.

A wire is a module of this package, which imports all of its modules. It ends with

    register(WireType(name="shared memory", preference=10, facts=..., suits=..., open=SharedMemory))

    facts   [1] every rank states what a peer must know about it to use the wire, such as its host
    suits   [2] a pair of ranks takes the wire of highest preference that suits the facts of both
    open    [3] a rank opens the wire to all peers that it shares it with

Both ends of a pair choose by the same facts, so they agree. A pair that no wire suits takes the control wire.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.distributed.world import Communicator
from trainer.pipeline import wires
from trainer.pipeline.wires.wire import ControlWire, Wire


@dataclass(frozen=True)
class Place:
    """Where a rank opens its wires.

    Attributes:
        group: The model-parallel group.
        devices: The devices of this rank's stages, by stage.
        control: Reaches every rank of the group.
        tags: The number of its tags that `Messages` uses, counted from 0; a wire may use the others.
    """

    group: Communicator
    devices: Mapping[int, torch.device]
    control: ControlWire
    tags: int


@dataclass(frozen=True)
class WireType:
    """A kind of wire.

    Attributes:
        name: Distinguishes it from others.
        preference: Higher is tried first.
        facts: Returns what peers must know about this rank, as plain values; None if it cannot use the wire.
        suits: Returns whether two ranks with these facts can use it; both orders must suit.
        open: Returns the wire to some peers, given their facts by rank. Ranks open the same kinds of wire in
            the same order, so both ends may talk to each other while they do.
    """

    name: str
    preference: int
    facts: Callable[[Place], Any]
    suits: Callable[[Any, Any], bool]
    open: Callable[[Place, Mapping[int, Any]], Wire]


_registered: dict[str, WireType] = {}


def register(wire_type: WireType) -> WireType:
    """Add a kind of wire.

    Raises:
        ValueError: A wire of that name is already registered.
    """
    if wire_type.name in _registered:
        raise ValueError(f"there are two wires called {wire_type.name!r}: rename one")
    _registered[wire_type.name] = wire_type
    return wire_type


def wire_types() -> list[WireType]:
    """Import every module of this package; return the kinds of wire, most preferred first."""
    for module in pkgutil.iter_modules(wires.__path__):
        importlib.import_module(f"{wires.__name__}.{module.name}")
    return sorted(_registered.values(), key=lambda each: (-each.preference, each.name))


def choose(types: Sequence[WireType], mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> WireType | None:
    """Return the kind of wire that a pair of ranks takes; None: the control wire.

    Args:
        types: Most preferred first.
        mine: What one of the ranks stated, by the wire's name.
        theirs: What the other rank stated.
    """
    for each in types:
        here, there = mine.get(each.name), theirs.get(each.name)
        if here is not None and there is not None and each.suits(here, there) and each.suits(there, here):
            return each
    return None


def open_wires(place: Place) -> dict[int, Wire]:
    """Return the wire to every other rank of the group; all of its ranks call this together."""
    group, types = place.group, wire_types()
    chosen: dict[int, Wire] = {rank: place.control for rank in range(group.size) if rank != group.rank}
    if not types:
        return chosen
    everyone = group.all_gather_objects({each.name: each.facts(place) for each in types})
    by_peer = {peer: choose(types, everyone[group.rank], everyone[peer]) for peer in chosen}
    for each in types:
        peers = {peer: everyone[peer][each.name] for peer, kind in by_peer.items() if kind is each}
        if peers:
            chosen |= dict.fromkeys(peers, each.open(place, peers))
    return chosen

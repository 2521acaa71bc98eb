"""Wires: a pair of ranks uses the best one that suits both; adding one takes a single module."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from trainer.distributed.waiting import WaitMeter
from trainer.pipeline import wires
from trainer.pipeline.messages import Messages, number_of_tags
from trainer.pipeline.wires import registry
from trainer.pipeline.wires.registry import Place, WireType, choose, open_wires, register, wire_types
from trainer.schedule.actions import Action, Kind

CONTRIBUTED = Path(__file__).parent / "fixtures" / "wires"
MODULE = f"{wires.__name__}.in_process"
CPU = torch.device("cpu")


@pytest.fixture
def contributed(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Add a contributor's module to the package; remove it afterwards."""
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(wires, "__path__", [*wires.__path__, str(CONTRIBUTED)])
    wire_types()
    yield sys.modules[MODULE]
    del sys.modules[MODULE]
    del wires.in_process  # type: ignore[attr-defined]


class Threads:
    """A group of ranks that are threads."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, values: dict[int, Any]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._values = barrier, values

    def all_gather_objects(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait(30.0)
        return [self._values[rank] for rank in range(self.size)]


def _places(module: ModuleType, size: int) -> list[Place]:
    barrier, values, control = threading.Barrier(size), {}, module.Exchange()
    return [
        Place(
            Threads(rank, size, barrier, values),  # type: ignore[arg-type]
            {rank: CPU},
            module.InProcess(control, rank),
            number_of_tags(size),
        )
        for rank in range(size)
    ]


def _on_all(places: list[Place]) -> list[dict[int, Any]]:
    with ThreadPoolExecutor(len(places)) as ranks:
        return list(ranks.map(open_wires, places))


def test_mpi_is_the_only_built_in_wire() -> None:
    """No module of the package registers a wire: MPI's is the control wire, which always exists."""
    ours = [each for each in wire_types() if each.open.__module__.startswith(wires.__name__)]
    assert ours == []


def test_a_contributed_wire_is_found_and_carries_the_tensors(contributed: ModuleType) -> None:
    assert [each.name for each in wire_types()] == ["in process"]
    places = _places(contributed, 2)
    opened = _on_all(places)
    assert all(isinstance(wire, contributed.InProcess) for each in opened for wire in each.values())
    ends = [
        Messages(
            rank=rank,
            rank_of=[0, 1],
            devices={rank: CPU},
            control=place.control,
            wire_to=opened[rank].__getitem__,
            meter=WaitMeter(),
        )
        for rank, place in enumerate(places)
    ]
    send, receive = Action(Kind.SEND_ACTIVATION, 0, 0, 1), Action(Kind.RECEIVE_ACTIVATION, 1, 0, 0)
    ends[0].begin([send], ["same"], "training")
    ends[1].begin([receive], None, "training")
    sent = torch.randn(3, 2)
    ends[0].send(send, [sent], 0)
    assert torch.equal(ends[1].receive(receive)[0][0], sent)
    assert len(contributed.DATA.sent) == 1
    assert contributed.DATA.empty


def test_a_pair_that_no_wire_suits_uses_the_control_wire(
    contributed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three ranks, the first two share a host; the last one cannot use the wire."""
    opened: dict[int, dict[int, Any]] = {}

    def open_(place: Place, peers: Any) -> Any:
        opened[place.group.rank] = dict(peers)
        return contributed.InProcess(contributed.Exchange(), place.group.rank)

    monkeypatch.setattr(registry, "_registered", {})
    hosts = ["here", "here", None]
    register(WireType("by host", 1, lambda place: hosts[place.group.rank], lambda a, b: a == b, open_))
    places = _places(contributed, 3)
    wires_of = _on_all(places)
    assert opened == {0: {1: "here"}, 1: {0: "here"}}
    for rank, place in enumerate(places):
        by_control = {peer for peer, wire in wires_of[rank].items() if wire is place.control}
        assert by_control == ({2} if rank < 2 else {0, 1})


def _type(name: str, preference: int, suits: Any = lambda mine, theirs: True) -> WireType:
    return WireType(name, preference, facts=lambda place: 0, suits=suits, open=lambda place, peers: None)  # type: ignore[arg-type,return-value]


def test_the_most_preferred_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    for each in (_type("slow", 1), _type("quick", 9), _type("also slow", 1)):
        register(each)
    assert [each.name for each in wire_types()] == ["quick", "also slow", "slow"]


def test_two_wires_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    register(_type("same", 1))
    with pytest.raises(ValueError, match="two wires called 'same': rename one"):
        register(_type("same", 2))


def test_both_ends_choose_alike() -> None:
    quick = _type("quick", 9, lambda mine, theirs: mine < theirs)  # suits only one direction
    slow = _type("slow", 1, lambda mine, theirs: mine == theirs)
    types = [quick, slow]
    for mine in ({"quick": 1, "slow": "a"}, {"quick": 2, "slow": "a"}):
        for theirs in ({"quick": 1, "slow": "a"}, {"quick": 2, "slow": "a"}):
            assert choose(types, mine, theirs) is slow
    assert choose([_type("quick", 9), slow], {"quick": 0, "slow": "a"}, {"quick": 0}).name == "quick"  # type: ignore[union-attr]
    assert choose(types, {"quick": 1, "slow": "a"}, {"quick": 2, "slow": "b"}) is None
    assert choose(types, {"quick": None, "slow": None}, {"quick": 1, "slow": "a"}) is None
    assert choose(types, {}, {"quick": 1, "slow": "a"}) is None


def test_messages_know_nothing_of_mpi() -> None:
    unwanted = {"mpi4py", "trainer.distributed.world"}
    code = f"import sys, trainer.pipeline.messages; print({unwanted} & {{*sys.modules}})"
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout.strip() == "set()"

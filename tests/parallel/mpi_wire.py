"""Two ranks of a node exchange all kinds of messages over the MPI wire; prints "exchanged" at the end."""

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from trainer.distributed import environment

environment.prepare()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import trainer.distributed.world  # noqa: E402
from trainer.activation import spec_of  # noqa: E402
from trainer.distributed.failure import fail  # noqa: E402
from trainer.distributed.waiting import wait  # noqa: E402
from trainer.distributed.wakeup import WakeupSocket, open_wakeup_socket  # noqa: E402
from trainer.distributed.world import World  # noqa: E402
from trainer.pipeline.wires.mpi import MpiWire  # noqa: E402

CPU = torch.device("cpu")
EAGER = torch.arange(environment.EAGER_LIMIT // 4, dtype=torch.int32)  # just as large as is sent eagerly
LARGE = torch.arange(environment.EAGER_LIMIT, dtype=torch.int32)
MESSAGES: list[Sequence[Tensor]] = [
    [torch.arange(6.0).reshape(2, 3)],
    [torch.arange(6.0).reshape(2, 3).t()],  # not contiguous
    [torch.linspace(-1, 1, 7, dtype=torch.bfloat16), torch.tensor([True, False]), torch.tensor(5)],
    [torch.zeros(0, 4, dtype=torch.float16)],
    [torch.ones(2, requires_grad=True)],
    [],
    [EAGER],
    [LARGE],
]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Return whether two messages have equal numbers, types and shapes."""
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a, b) and a.dtype is b.dtype and a.shape == b.shape for a, b in pairs)


def hang_up_late(**given: Any) -> WakeupSocket | None:
    """Open the socket that wakes this rank some time after the other rank has opened its own."""
    time.sleep(0.5)
    return open_wakeup_socket(**given)


def exchange(wire: MpiWire, world: World, peer: int) -> None:
    """Post two receives ahead, then send both messages: messages of one tag keep their order."""
    for first, second in pairwise(MESSAGES):
        arrivals = [wire.receive(spec_of(list(each), 0), CPU, peer, 1) for each in (first, second)]
        world.barrier()
        sends = [wire.send(each, peer, 1) for each in (first, second)]
        for arrival, sent in zip(arrivals, (first, second), strict=True):
            size = sum(tensor.nbytes for tensor in sent)
            assert arrival.expects_wakeup == (size <= environment.EAGER_LIMIT), size
            wait(arrival.done, expects_wakeup=arrival.expects_wakeup)
            assert same(arrival.tensors(), sent)
        for send in sends:
            wait(send.done)


def exchange_bytes(wire: MpiWire, world: World, peer: int) -> None:
    """Send bytes whose length the receiver does not know; another tag does not match them."""
    assert wire.probe(peer, 2) is None
    world.barrier()
    texts = [b"", bytes(range(256)), bytes(2 * environment.EAGER_LIMIT)]
    sends = [wire.send_bytes(text, peer, 2) for text in texts]
    for text in texts:
        found: list[bytes | None] = [None]

        def look(found: list[bytes | None] = found) -> bool:
            found[0] = wire.probe(peer, 2)
            return found[0] is not None

        wait(look)
        assert found[0] == text
        assert wire.probe(peer, 1) is None
    for send in sends:
        wait(send.done)


def main() -> None:
    """Do it all on a rank; the one with number 1 is late with its bell."""
    if environment.rank() == 1:
        trainer.distributed.world.open_wakeup_socket = hang_up_late
    world = World()
    peer, wire = 1 - world.rank, MpiWire(world, tags=3)
    exchange(wire, world, peer)
    exchange_bytes(wire, world, peer)
    try:
        MpiWire(world, tags=1 << 40)
    except ValueError as error:
        assert "tags" in str(error)  # noqa: PT017
    else:
        raise AssertionError("no MPI has 2^40 tags")
    world.barrier()
    if world.rank == 0:
        sys.stdout.write("exchanged\n")


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        fail(error)

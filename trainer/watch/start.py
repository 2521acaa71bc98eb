"""Where the rest of the trainer meets the watch: it is started, configured, and learns of the other hosts."""

import atexit
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from trainer.distributed import environment
from trainer.distributed.heartbeat import Phase, heartbeat, open_page
from trainer.distributed.layout import Layout
from trainer.watch.hosts import Answers, Hosts, Place, own_addresses
from trainer.watch.stacks import offer_stack
from trainer.watch.watch import Settings, Watch

if TYPE_CHECKING:
    from trainer.distributed.world import Communicator


class Keys(Protocol):
    """The part of the configuration that the watch reads."""

    stall_seconds: float
    busy_seconds: float


_watch: Watch | None = None


def start() -> None:
    """Watch the ranks of this node from now on, in a thread of this process."""
    global _watch  # noqa: PLW0603  (a process has one)
    if _watch is not None:
        return
    page = open_page()
    _watch = Watch(page, socket.gethostname())
    _watch.settings.world = environment.size()
    offer_stack(crashes=page.slots > 1)
    atexit.register(heartbeat.leave)
    os.register_at_fork(after_in_child=heartbeat.detach)
    threading.Thread(target=_watch.run, name="watch", daemon=True).start()


def configure(keys: Keys) -> None:
    """Give the watch its limits."""
    if _watch is not None:
        _watch.settings.stall_seconds = keys.stall_seconds
        _watch.settings.busy_seconds = keys.busy_seconds


def meet(world: "Communicator") -> None:
    """Let the watches of all hosts ask one another; every rank calls this."""
    host = socket.gethostname()
    hosts = world.all_gather_objects(host)
    if _watch is not None:
        _watch.settings.world = world.size
    if len(set(hosts)) == 1:
        return
    answers = None if _watch is None else Answers(_watch.node.seen)
    mine = (host, own_addresses(), 0 if answers is None else answers.port, uuid4().hex)
    everyone = world.all_gather_objects(mine)
    token = everyone[0][-1]
    places = [Place(rank, name, ips, port) for rank, (name, ips, port, _) in enumerate(everyone) if port]
    if answers is not None and _watch is not None:
        answers.begin(token)
        _watch.settings.hosts = Hosts(places, host, token)


def settings() -> Settings | None:
    """Return what the watch knows; None where nobody watches."""
    return None if _watch is None else _watch.settings


def know(layout: Layout, rank: int, layers: list[str], planned: int) -> None:
    """Let the watch name what this rank holds.

    Args:
        layout: Who holds what.
        rank: This rank.
        layers: The names of its layers.
        planned: The bytes that the plan expects it to hold.
    """
    if _watch is not None:
        _watch.settings.layout = layout
    what = layers[:1] + layers[-1:] if len(layers) > 1 else layers
    heartbeat.describe(
        stages=layout.stages_of(layout.group_rank(rank)),
        replica=layout.replica(rank),
        layers=" to ".join(what),
        planned=planned,
    )
    heartbeat.enter(Phase.IDLE)


def place_run(folder: Path) -> None:
    """Let the watch write stacks into a run's folder."""
    if _watch is not None:
        _watch.settings.folder = folder

"""Every rank but the first waits two seconds in a receive; prints the CPU seconds that each rank used."""

import sys
import time

from trainer.distributed import environment

environment.prepare()

import torch  # noqa: E402

from trainer.distributed.layout import Layout  # noqa: E402
from trainer.distributed.waiting import WaitMeter  # noqa: E402
from trainer.distributed.world import World  # noqa: E402
from trainer.pipeline.wires.connect import connect  # noqa: E402
from trainer.schedule.actions import Action, Kind  # noqa: E402

WAIT = 2.0  # seconds
STAGES = 2

world = World()
group = world.split(Layout(world.size, STAGES)).model_parallel
transport = connect(group, range(STAGES), {group.rank: torch.device("cpu")}, WaitMeter())
actions = [
    Action(Kind.SEND_ACTIVATION, 0, 0, 1) if group.rank == 0 else Action(Kind.RECEIVE_ACTIVATION, 1, 0, 0)
]
transport.begin(actions, ["same"] if group.rank == 0 else None, "training")
world.barrier()
start = time.process_time()
if group.rank == 0:
    time.sleep(WAIT)
    transport.send(actions[0], [torch.zeros(4)], 0)
else:
    transport.receive(actions[0])
transport.finish()
burnt = world.all_gather_objects(time.process_time() - start)
if world.rank == 0:
    # One write: the launcher puts its tags between writes.
    sys.stdout.write(" ".join(["burnt", *map(str, burnt)]) + "\n")
world.barrier()

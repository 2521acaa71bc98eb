"""Where `horovodrun` starts ranks, and how it reaches other hosts.

Part of the patch of Horovod: `launch/install/runner_patch.py` adds this file to the installed package as it
is, so it needs the standard library alone. Hosts that nobody names:

    no Slurm, or a job on this node alone       this host
    a Slurm job with a task for every rank      its nodes in order, as many ranks as each has tasks
    a Slurm job with fewer tasks                its nodes alike

In a Slurm job, mpirun starts its daemons with srun: no host needs ssh.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from shlex import quote

_KEEP_ALIVE = {
    "OMPI_MCA_oob_tcp_keepalive_time": "4",  # seconds of silence before the first probe
    "OMPI_MCA_oob_tcp_keepalive_intvl": "1",  # seconds between probes
    "OMPI_MCA_oob_tcp_keepalive_probes": "3",
}
# Open MPI would take a Slurm job's task for a slot, and Slurm's srun for a way to any host.
_WITHOUT_SLURM = {"OMPI_MCA_ras": "^slurm", "OMPI_MCA_plm": "^slurm"}


def default_hosts(ranks: int, environment: Mapping[str, str] = os.environ) -> str:
    """Return where ranks start if nobody says so, as `-H` takes it; name hosts on standard error."""
    job = environment.get("SLURM_JOB_ID")
    here = environment.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]
    listed = environment.get("SLURM_JOB_NODELIST", here)
    if job is None or listed == here:
        return f"localhost:{ranks}"
    tasks = tasks_of_nodes(environment.get("SLURM_TASKS_PER_NODE", ""))
    hosts = ",".join(f"{node}:{slots}" for node, slots in share(ranks, nodes(listed), tasks))
    print(f"horovodrun: {ranks} ranks on {hosts}: Slurm's job {job} (-H names others)", file=sys.stderr)
    return hosts


def nodes(listed: str) -> list[str]:
    """Return the nodes of a Slurm job in order, from the short form of the list (`h[1-2,5]`)."""
    command = ["scontrol", "show", "hostnames", listed]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"horovodrun: `{' '.join(command)}` fails: name hosts with -H ({error})", file=sys.stderr)
        raise SystemExit(2) from None
    return done.stdout.split()


def tasks_of_nodes(text: str) -> list[int]:
    """Return the tasks of every node of a Slurm job, such as [2, 2, 1] of `2(x2),1`."""
    tasks: list[int] = []
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        tasks += [int(number)] * int(times or 1)
    return tasks


def share(ranks: int, names: list[str], tasks: list[int]) -> list[tuple[str, int]]:
    """Return how many ranks start on each node: by its tasks, or alike where there are too few."""
    if len(tasks) != len(names) or sum(tasks) < ranks:
        each, more = divmod(ranks, len(names))
        tasks = [each + (number < more) for number in range(len(names))]
    shared = []
    for name, slots in zip(names, tasks, strict=True):
        taken = min(slots, ranks)
        ranks -= taken
        shared += [(name, taken)] if taken else []
    return shared


def started_by_slurm(names: Iterable[str], environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether Slurm's srun starts mpirun's daemons on these hosts: all are nodes of the job."""
    listed = environment.get("SLURM_JOB_NODELIST")
    return listed is not None and "SLURM_JOB_ID" in environment and set(names) <= set(nodes(listed))


def path_of_mpirun(environment: Mapping[str, str]) -> str:
    """Return mpirun as a shell takes it, with its folder.

    Open MPI then looks for its daemon in the same folder on every host. Without, ssh would have to find it,
    and a shell without a login knows nothing of an activated environment.
    """
    found = shutil.which("mpirun", path=environment.get("PATH", os.environ.get("PATH")))
    if found is None or str(Path(found).parent) in ("/usr/bin", "/bin"):
        return "mpirun"  # every shell finds it; Open MPI would add its folder to the ranks' library path
    return quote(found)


def variables_of_mpirun(environment: Mapping[str, str], hosts: str) -> dict[str, str]:
    """Return mpirun's environment; say on standard error what was chosen for a job of several hosts.

    mpirun and its daemons probe the links between them: one that is silent for 7 seconds ends the job. The
    kernel's default is 2 hours.

    Args:
        environment: The user's, which goes first.
        hosts: All hosts and their slots, such as `h1:2,h2:2`.
    """
    slots = dict(host.partition(":")[::2] for host in hosts.split(","))
    here = {"localhost", "127.0.0.1", socket.gethostname(), socket.gethostname().partition(".")[0]}
    others = set(slots) - here
    if others and not set(_KEEP_ALIVE) & set(environment):
        values = " ".join(f"{name}={value}" for name, value in _KEEP_ALIVE.items())
        print(
            f"horovodrun: a host that is silent for 7 s ends the job: {values}", file=sys.stderr, flush=True
        )
    if others and started_by_slurm(slots, environment):
        return {**_KEEP_ALIVE, **environment, **_slots_of_nodes(slots, environment)}
    return {**_KEEP_ALIVE, **(_WITHOUT_SLURM if "SLURM_JOB_ID" in environment else {}), **environment}


def _slots_of_nodes(slots: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables from which mpirun takes a Slurm job's nodes, with our slots for Slurm's tasks.

    Open MPI has to take them from there: it would start its daemons on any nodes of the job otherwise.
    """
    listed = environment["SLURM_JOB_NODELIST"]
    tasks = ",".join(slots.get(node) or "1" for node in nodes(listed))
    within_step = {"SLURM_OVERLAP": "1"} if "SLURM_STEP_ID" in environment else {}  # shares the step's CPUs
    return {"SLURM_NODELIST": listed, "SLURM_TASKS_PER_NODE": tasks, **within_step}

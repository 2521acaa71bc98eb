"""Where the launcher is, and which hosts and slots that offers.

| place | found by | hosts and slots |
| --- | --- | --- |
| hosts | `-H`, `--hostfile` | as given; a host without a number has one slot |
| Slurm | `SLURM_JOB_ID` | `scontrol show hostnames`; a slot for each task |
| PBS | `PBS_NODEFILE` | a slot for each line |
| LSF | `LSB_DJOB_HOSTFILE`, `LSB_MCPU_HOSTS` | a slot for each line; as listed |
| hosts | `OMPI_MCA_orte_default_hostfile`, as the MPI operator of Kubernetes sets it | as given |
| this machine | none of these | as many slots as ranks are asked for |
"""

import re
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from trainer.errors import UserError

# Variables that name a file of hosts.
_FILES = ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "OMPI_MCA_orte_default_hostfile")


class Reach(Enum):
    """How a command gets to the other hosts."""

    LOCAL = "this machine alone"
    SSH = "ssh"
    SRUN = "srun"


@dataclass(frozen=True)
class Host:
    """A host of the job.

    Attributes:
        name: Its name, as mpirun shall use it.
        slots: How many ranks it takes.
        cores: How many it takes if the job asks for more ranks than there are slots.
    """

    name: str
    slots: int
    cores: int = 0


@dataclass(frozen=True)
class Place:
    """What was found.

    Attributes:
        found: In words, by what.
        hosts: The hosts; none for this machine alone, which takes any number of ranks.
        reach: How to get to them.
        job: The number of the Slurm job, as `scontrol requeue` takes it; empty elsewhere.
        nodes: All nodes of the Slurm allocation.
    """

    found: str
    hosts: tuple[Host, ...] = ()
    reach: Reach = Reach.LOCAL
    job: str = ""
    nodes: tuple[str, ...] = ()


def find(
    hosts: str | None,
    hostfile: str | None,
    environment: Mapping[str, str],
    expand: Callable[[str], Sequence[str]],
) -> Place:
    """Return where this is.

    Args:
        hosts: What `-H` says.
        hostfile: What `--hostfile` says.
        environment: Variables.
        expand: Returns the names in a Slurm list of nodes.

    Raises:
        UserError: A list of hosts is wrong.
    """
    allocation = _slurm(environment, expand) if "SLURM_JOB_ID" in environment else None
    if hosts is not None:
        return _within(_settle("-H", from_list(hosts)), allocation)
    if hostfile is not None:
        return _within(_settle(f"--hostfile {hostfile}", from_file(hostfile)), allocation)
    if allocation is not None:
        return allocation
    for name in _FILES:
        if environment.get(name) and (name == _FILES[0] or Path(environment[name]).is_file()):
            return _settle(name, from_file(environment[name]))
    if "LSB_MCPU_HOSTS" in environment:
        return _settle("LSB_MCPU_HOSTS", _from_lsf(environment["LSB_MCPU_HOSTS"]))
    return Place("no batch system and no -H")


def expand_by_slurm(nodes: str) -> list[str]:
    """Return the names in a Slurm list of nodes, such as "n[1-3],m7".

    Raises:
        UserError: `scontrol` does not answer.
    """
    try:
        ran = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"scontrol show hostnames {nodes}: {error}; put Slurm's programs on PATH") from None
    if ran.returncode or not ran.stdout.split():
        raise UserError(f"scontrol show hostnames {nodes}: {ran.stderr.strip() or 'no names'}; or give -H")
    return ran.stdout.split()


def from_list(text: str) -> list[Host]:
    """Return the hosts of a list such as "h1:2,h2".

    Raises:
        UserError: It is no such list.
    """
    hosts = []
    for entry in text.split(","):
        found = re.fullmatch(r"\s*([^\s:,]+)(?::(\d+))?\s*", entry)
        if found is None or found[2] == "0":
            raise UserError(f"-H {text}: {entry!r} must be a host and its slots, such as h1:2")
        hosts.append(Host(found[1], int(found[2] or 1)))
    return hosts


def from_file(path: str) -> list[Host]:
    """Return the hosts of a file: Open MPI's form (`h1 slots=2`), MPICH's (`h1:2`), or a line for each slot.

    Raises:
        UserError: It cannot be read, or a line is wrong.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the file of hosts {path} cannot be read: {error}") from None
    hosts = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        found = re.fullmatch(r"([^\s:=]+)(?::(\d+))?", words[0])
        slots = [word.partition("=")[2] for word in words[1:] if word.startswith("slots=")]
        if found is None or not all(text.isdigit() and int(text) for text in slots):
            raise UserError(f"{path}, line {number}: {line.strip()!r} must be like `h1 slots=2`, or `h1:2`")
        hosts.append(Host(found[1], int(slots[0] if slots else found[2] or 1)))
    if not hosts:
        raise UserError(f"the file of hosts {path} names none")
    return hosts


def per_node(text: str) -> list[int]:
    """Return the numbers in Slurm's short form, such as "2(x3),1"."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is not None:
            numbers += [int(found[1])] * int(found[2] or 1)
    return numbers


def is_here(name: str) -> bool:
    """Return whether a host's name is this machine's."""
    mine = socket.gethostname()
    if name in ("localhost", "127.0.0.1", "::1", mine, mine.partition(".")[0]):
        return True
    return not name[:1].isdigit() and name.partition(".")[0] == mine.partition(".")[0]


def others(names: Sequence[str]) -> list[str]:
    """Return the hosts that are not this machine."""
    return [name for name in names if not is_here(name)]


def _slurm(environment: Mapping[str, str], expand: Callable[[str], Sequence[str]]) -> Place:
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1") or 1) > 1 and "SLURM_PROCID" in environment:
        tasks = environment["SLURM_STEP_NUM_TASKS"]
        raise UserError(
            f"srun has started this launcher {tasks} times, and each would start a job: call it once, in the "
            "batch script or the shell of the allocation, without srun"
        )
    nodes = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST", "")
    names = list(expand(nodes)) if nodes else [socket.gethostname()]
    tasks_per_node = per_node(environment.get("SLURM_TASKS_PER_NODE", ""))
    cpus = per_node(environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
    hosts = tuple(
        Host(
            name,
            tasks_per_node[node] if node < len(tasks_per_node) else 1,
            cpus[node] if node < len(cpus) else 0,
        )
        for node, name in enumerate(names)
    )
    job = environment["SLURM_JOB_ID"]
    return Place(f"Slurm job {job}", hosts, _reach(hosts, Reach.SRUN), _number(environment), tuple(names))


def _number(environment: Mapping[str, str]) -> str:
    """Return the number by which Slurm knows the job, or the task of an array."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment["SLURM_JOB_ID"]


def _from_lsf(text: str) -> list[Host]:
    words = text.split()
    pairs = list(zip(words[::2], words[1::2], strict=False))
    if not pairs or len(words) % 2 or not all(slots.isdigit() and int(slots) for _, slots in pairs):
        raise UserError(
            f"LSB_MCPU_HOSTS={text!r} must be hosts and their slots, such as 'h1 4 h2 4'; give -H"
        )
    return [Host(name, int(slots)) for name, slots in pairs]


def _settle(found: str, hosts: Sequence[Host]) -> Place:
    """Return the place, with the slots of a host that is named several times added."""
    slots: Counter[str] = Counter()
    for host in hosts:
        slots[host.name] += host.slots
    merged = tuple(Host(name, number) for name, number in slots.items())
    return Place(found, merged, _reach(merged, Reach.SSH))


def _within(given: Place, allocation: Place | None) -> Place:
    """Return given hosts, reached as those of the allocation that they are in."""
    if allocation is None:
        return given
    inside = {host.name for host in allocation.hosts}
    known = all(host.name in inside for host in given.hosts)
    reach = _reach(given.hosts, Reach.SRUN) if known else given.reach
    found = f"{given.found}, in {allocation.found}"
    return replace(given, reach=reach, job=allocation.job, nodes=allocation.nodes, found=found)


def _reach(hosts: Sequence[Host], by: Reach) -> Reach:
    return Reach.LOCAL if all(is_here(host.name) for host in hosts) else by

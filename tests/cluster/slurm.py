"""A whole Slurm over the hosts of a bed: slurmctld on h0, slurmd on the others, munge for all."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.files import address
from tests.cluster.hosts import LIMIT, Hosts, within
from tests.support.launch import Launch

CPUS = 4  # of a node, as Slurm sees it
JOB_LIMIT = 90.0  # seconds for a job that trains

# Times are short, so that tests are: what waits minutes on a cluster waits seconds here. `cred_expire` is how
# long a job that was put back into the queue waits at least.
_SETTINGS = """\
ClusterName=bed
SlurmctldHost=h0({control})
AuthType=auth/munge
AuthInfo=socket={state}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={state}/control
SlurmdSpoolDir={state}/spool.%n
TmpFS={state}/tmp.%n
SlurmctldPidFile={state}/control.pid
SlurmdPidFile={state}/node.%n.pid
SlurmctldLogFile={state}/control.log
SlurmdLogFile={state}/node.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
TCPTimeout=2
MessageTimeout=10
KillWait={kill_wait}
InactiveLimit=0
MinJobAge=300
JobRequeue=1
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=h[1-{last}] CPUs={cpus} CoresPerSocket={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=work Nodes=h[1-{last}] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=urgent Nodes=h[1-{last}] PriorityTier=10 PreemptMode=OFF
"""


_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")


class Slurm:
    """Slurm as its user sees it, on h0, where jobs are submitted.

    Args:
        hosts: The bed; its first host has the controller, the others are nodes.
        state: Slurm's folder.
    """

    def __init__(self, hosts: Hosts, state: Path) -> None:
        self.hosts, self.state = hosts, state
        self.login = hosts["h0"]
        self._env = {"SLURM_CONF": str(state / "slurm.conf")}

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands on h0, and return its output."""
        variables = [f"{name}={value}" for name, value in self._env.items()]
        return self.login.run("env", *variables, *command, check=check).strip()

    def launch(self, command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> Launch:
        """Start a command on h0, such as `srun` or `salloc`, as its user would in a shell."""
        return self.login.launch(command, folder, self._env | dict(env or {}))

    def submit(self, script: str, folder: Path, *options: str) -> "Job":
        """Submit a batch script; its output goes to `job-<number>.txt` in the folder.

        Args:
            script: The script, without its first line.
            folder: Where it runs.
            options: sbatch's.
        """
        file = folder / "job.sh"
        file.write_text(f"#!/bin/bash\n{script}\n")
        output = [f"--chdir={folder}", f"--output={folder}/job-%j.txt", "--open-mode=append"]
        return Job(self, self.run("sbatch", "--parsable", *output, *options, str(file)), folder)

    def start_daemons(self) -> None:
        """Start slurmctld, munged and every slurmd, and wait until all nodes are idle."""
        self.login.run(*_munged(self.state))
        self.run("slurmctld", "-i")
        for name in self.nodes:
            self.start_node(name)
        assert within(LIMIT, lambda: all(self.node_state(name) == "idle" for name in self.nodes)), self.logs()
        for host in self.hosts.values():
            host.keep()

    def start_node(self, name: str) -> None:
        """Start slurmd on a host, also after it was off."""
        variables = [f"{key}={value}" for key, value in self._env.items()]
        self.hosts[name].run("env", *variables, "slurmd", "-N", name)
        self.hosts[name].keep()

    @property
    def nodes(self) -> list[str]:
        """Return the names of the nodes."""
        return [name for name in self.hosts if name != "h0"]

    def node_state(self, name: str) -> str:
        """Return a node's state in Slurm's words, such as `idle` or `drained`."""
        return self.run("sinfo", "--noheader", "--partition=work", f"--nodes={name}", "--format=%T")

    def drain(self, name: str) -> None:
        """Let a node finish its job and take no other."""
        self.run("scontrol", "update", f"nodename={name}", "state=drain", "reason=test")

    def resume(self, name: str) -> None:
        """Let a drained node take jobs again."""
        self.run("scontrol", "update", f"nodename={name}", "state=resume")

    def clear(self) -> None:
        """Cancel every job, and wait until all nodes are idle."""
        self.run("scancel", "--user=root", "--full", check=False)
        self.run("scancel", "--user=root", "--signal=KILL", "--full", check=False)
        idle = within(LIMIT, lambda: all(self.node_state(name) == "idle" for name in self.nodes))
        assert idle, self.logs()

    def logs(self) -> str:
        """Return what the daemons have written."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in self.state.glob("*.log"))


class Job:
    """A batch job.

    Args:
        slurm: Where it was submitted.
        number: Its id.
        folder: Where it runs.
    """

    def __init__(self, slurm: Slurm, number: str, folder: Path) -> None:
        self._slurm, self.number, self._folder = slurm, number, folder

    def field(self, name: str) -> str:
        """Return a field of `scontrol show job`, such as `JobState`, `Restarts` or `ExitCode`."""
        shown = self._slurm.run("scontrol", "show", "job", self.number)
        found = re.search(rf"\b{name}=(\S+)", shown)
        assert found, f"no {name} in {shown}"
        return found[1]

    def wait_for(self, condition: Callable[[], bool], limit: float = JOB_LIMIT) -> None:
        """Wait until something is so while the job lives."""
        if not within(limit, condition):
            shown = self._slurm.run("scontrol", "show", "job", self.number)
            raise AssertionError(f"not within {limit} s:\n{self.output()}\n{shown}")

    def wait(self, limit: float = JOB_LIMIT) -> int:
        """Wait until the job has ended, and return its exit code (128 + the signal that ended its script)."""
        self.wait_for(lambda: self.field("JobState") in _ENDED, limit)
        code, number = self.field("ExitCode").split(":")
        return 128 + int(number) if int(number) else int(code)

    def output(self) -> str:
        """Return what the job has printed so far."""
        paths = self._folder.glob("job-*.txt")
        return "".join(path.read_text(errors="replace") for path in sorted(paths))


@contextmanager
def slurm(hosts: Hosts, *, kill_wait: int = 5) -> Iterator[Slurm]:
    """Start Slurm over a bed; it ends with the hosts.

    Args:
        hosts: At least two.
        kill_wait: Seconds from a job's SIGTERM to its SIGKILL.
    """
    state = hosts.state / "slurm"
    for folder in ("control", *[f"{kind}.{name}" for name in hosts for kind in ("spool", "tmp")]):
        (state / folder).mkdir(parents=True)
    key = state / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    settings = _SETTINGS.format(
        state=state, control=address(0), last=len(hosts) - 1, cpus=CPUS, kill_wait=kill_wait
    )
    (state / "slurm.conf").write_text(settings)
    started = Slurm(hosts, state)
    started.start_daemons()
    yield started


def _munged(state: Path) -> list[str]:
    """Return the command that starts munge. Its socket is a file, so it serves every host."""
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid"}
    files |= {"log-file": "munge.log", "seed-file": "munge.seed"}
    return ["munged", "--force", *[f"--{option}={state / file}" for option, file in files.items()]]

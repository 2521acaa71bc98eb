"""Hosts on one machine: each has its own network, name, processes, /dev/shm and sshd; the disk is shared.

A host is a set of Linux namespaces, and ends with its first process. A bed is several hosts on a switch:

    h0  10.79.0.10 --+
    h1  10.79.0.11 --+-- switch    (a bridge in a namespace of its own; nothing reaches the real network)
    h2  10.79.0.12 --+

No namespace has a name outside, so several beds, with the same names and addresses, run side by side. The
kernel ends them all with the process that opened the bed, whatever ends that.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.cluster.files import HOST, SWITCH, address, write
from tests.support.launch import REPOSITORY, Launch, die_with_the_parent

LIMIT = 20.0  # seconds; a host starts in a tenth of one
_SETTLED = 10.0  # seconds within which what a launch started must be gone


class Host:
    """One host of a bed.

    Args:
        name: Its host name.
        address: Its address.
        state: The bed's folder.
        switch: A process on the bed's switch.
    """

    def __init__(self, name: str, address: str, state: Path, switch: int) -> None:
        self.name, self.address = name, address
        self._state = state
        self._on_switch = ["nsenter", "--target", str(switch), "--net"]
        self._own: set[int] = set()
        self.start()

    def start(self) -> None:
        """Switch the host on, also after it was off."""
        names = {"NAME": self.name, "ADDRESS": self.address, "STATE": str(self._state)}
        kinds = ["--net", "--uts", "--pid", "--ipc", "--mount", "--mount-proc", "--fork", "--kill-child"]
        with (self._state / f"{self.name}.log").open("ab") as log:
            self._process = _start(["unshare", *kinds, "sh", "-c", HOST], os.environ | names, log)
        _wait_for_ready(self._process, f"host {self.name}", self._state / f"{self.name}.log")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self._first = int(children[0])
        card = f"02:00:0a:4f:00:{self.address.rpartition('.')[2]}"  # the same after it was off
        link = ["link", "add", self.name, "type", "veth", "peer", "name", "eth0", "address", card]
        self._ip(*link, "netns", str(self._first))
        self.mend()
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        assert within(LIMIT, self._answers), f"host {self.name} has no sshd"
        self.keep()

    def keep(self) -> None:
        """Count what runs now as the host's own: it is not left over from a job."""
        self._own = set(self.processes())

    def command(self, command: Sequence[str], folder: Path | None = None) -> list[str]:
        """Return the command that runs one on this host, from a folder."""
        spaces = [
            "nsenter",
            "--target",
            str(self._first),
            "--net",
            "--uts",
            "--pid",
            "--ipc",
            "--mount",
            "--",
        ]
        return [*spaces, "env", "--chdir", str(folder or self._state), *command]

    def launch(self, command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> Launch:
        """Start a command on this host, as its user would in a shell."""
        return Launch(self.command(command, folder), folder, self.variables() | dict(env or {}))

    def run(self, *command: str, limit: float = LIMIT, check: bool = True) -> str:
        """Run a command on this host, and return its output."""
        done = subprocess.run(
            self.command(command),
            env=os.environ | self.variables(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command} on {self.name}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def variables(self) -> dict[str, str]:
        """Return the variables of a shell on this host: a home and a temporary folder that the bed shares."""
        search = [
            str(Path(sys.executable).parent),
            "/usr/local/bin",
            "/usr/bin",
            "/bin",
            "/usr/sbin",
            "/sbin",
        ]
        return {
            "HOME": str(self._state / "home"),
            "TMPDIR": str(self._state / "tmp"),
            "PATH": os.pathsep.join(search),
            "PYTHONPATH": str(REPOSITORY),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }

    def cut(self) -> None:
        """Pull the link's plug: the host sees that it has no carrier."""
        self._ip("link", "set", self.name, "down")

    def vanish(self) -> None:
        """Let packets vanish, as when a switch between hosts dies: the carrier stays."""
        self._ip("link", "set", self.name, "nomaster")

    def mend(self) -> None:
        """Restore the link."""
        self._ip("link", "set", self.name, "master", "br0", "up")

    def power_off(self) -> None:
        """Switch the host off: nobody hears from it again."""
        self.vanish()
        self.reset()

    def reset(self) -> None:
        """Kill everything on the host with the link in: connections close, as when a kernel reboots."""
        if not self._runs():
            return
        self._process.kill()
        self._process.wait()
        assert within(LIMIT, lambda: not self.processes()), f"host {self.name} does not end"
        unplug = ["ip", "link", "delete", self.name]  # the kernel does it too, a little later
        subprocess.run([*self._on_switch, *unplug], stderr=subprocess.DEVNULL, check=False)

    def private(self, folder: Path, size: int) -> None:
        """Give this host a folder of its own where others see a shared one.

        Args:
            folder: A folder that exists.
            size: How many bytes it has room for.
        """
        self.run("mount", "-t", "tmpfs", "-o", f"size={size}", "private", str(folder))

    def share(self, folder: Path) -> None:
        """Undo `private`."""
        self.run("umount", str(folder))

    def processes(self, words: str = "") -> dict[int, str]:
        """Return the commands on this host that contain some words, by process id (that of the machine)."""
        try:
            space = Path(f"/proc/{self._first}/ns/pid").readlink()
        except OSError:
            return {}
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if (entry / "ns/pid").readlink() == space:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(entry.name)] = line.strip()
            except OSError:  # it has ended
                continue
        return {process: line for process, line in found.items() if line and words in line}

    def left(self, limit: float = _SETTLED) -> list[str]:
        """Return what jobs have left on this host after some seconds: processes, and shared memory."""
        within(limit, lambda: not self._left())
        return self._left()

    def _left(self) -> list[str]:
        jobs = {process: line for process, line in self.processes().items() if process not in self._own}
        found = [line for line in jobs.values() if not line.startswith("sshd:")]  # a login that hears nothing
        memory = Path(f"/proc/{self._first}/root/dev/shm")
        return found + [f"/dev/shm/{path.name}" for path in (memory.iterdir() if self._runs() else ())]

    def _runs(self) -> bool:
        return self._process.poll() is None

    def _answers(self) -> bool:
        """Return whether a process of the host listens on port 22."""
        assert self._runs(), f"host {self.name} has ended"
        return " 00000000:0016 " in Path(f"/proc/{self._first}/net/tcp").read_text()

    def _ip(self, *arguments: str) -> None:
        subprocess.run([*self._on_switch, "ip", *arguments], check=True)


class Hosts(dict[str, Host]):
    """The hosts of a bed by name, in order.

    Attributes:
        state: A folder for the bed's keys, settings and logs, which all hosts see.
    """

    def __init__(self, state: Path) -> None:
        super().__init__()
        self.state = state

    def left(self, limit: float = _SETTLED) -> dict[str, list[str]]:
        """Return what jobs have left on the hosts that run, after some seconds."""
        end = time.monotonic() + limit
        found = {name: host.left(max(0.0, end - time.monotonic())) for name, host in self.items()}
        return {name: left for name, left in found.items() if left}


@contextmanager
def hosts(count: int, state: Path) -> Iterator[Hosts]:
    """Open a bed of hosts h0, h1, ...; all of it ends with the context.

    Args:
        count: How many hosts.
        state: An empty folder for keys, settings and logs.
    """
    write(count, state)
    bed = Hosts(state)
    switch = _start(["unshare", "--net", "sh", "-c", SWITCH], os.environ, None)
    try:
        _wait_for_ready(switch, "the switch", None)
        for number in range(count):
            bed[f"h{number}"] = Host(f"h{number}", address(number), state, switch.pid)
        yield bed
    finally:
        for host in bed.values():
            host.reset()
        switch.kill()
        switch.wait()


def within(limit: float, happened: Callable[[], bool]) -> bool:
    """Return whether something happens within `limit` seconds."""
    end = time.monotonic() + limit
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _start(command: Sequence[str], env: Mapping[str, str], log: IO[bytes] | None) -> subprocess.Popen[bytes]:
    """Start a process that ends with this one, and that no Ctrl-C at a terminal reaches."""
    return subprocess.Popen(
        command,
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
        preexec_fn=die_with_the_parent,  # noqa: PLW1509  (only a system call)
    )


def _wait_for_ready(process: subprocess.Popen[bytes], what: str, log: Path | None) -> None:
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        raise AssertionError(f"{what} does not start: {log.read_text() if log else ''}")

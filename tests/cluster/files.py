"""What hosts are made of: how one starts, and the keys and settings that all hosts of a bed share."""

import subprocess
from pathlib import Path

NETWORK = "10.79.0"

SWITCH = "ip link add br0 type bridge && ip link set br0 up && echo ready && exec sleep infinity"

# slurmd starts only where it finds a cgroup of systemd's name. The machine's own memory controller is there
# too, so that a process can ask how much it may use.
HOST = """
set -e
hostname "$NAME"
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mkdir /run/sshd
memory=$(awk '$5 != "/" && / - cgroup /&& /[ ,]memory(,|$)/ {print $5; exit}' /proc/self/mountinfo)
mount -t sysfs sys /sys  # with this host's links
mount -t tmpfs cgroup /sys/fs/cgroup
mkdir /sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
if [ -n "$memory" ]; then
    mkdir /sys/fs/cgroup/memory
    mount -t cgroup -o memory cgroup /sys/fs/cgroup/memory
fi
mount --bind "$STATE/hosts" /etc/hosts
mount --bind "$STATE/ssh_config" /etc/ssh/ssh_config
ip link set lo up
echo ready
read plugged
ip address add "$ADDRESS/24" dev eth0
ip link set eth0 up
exec /usr/sbin/sshd -D -e -f "$STATE/sshd_config" </dev/null >&2
"""

_SSHD = """\
Port 22
HostKey {state}/host_key
AuthorizedKeysFile {state}/key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
MaxStartups 100
PidFile none
SetEnv HOME={state}/home TMPDIR={state}/tmp
"""

_SSH = """\
Host h*
    IdentityFile {state}/key
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    ConnectTimeout 5
"""


def address(number: int) -> str:
    """Return the address of a host by its number."""
    return f"{NETWORK}.{10 + number}"


def write(count: int, state: Path) -> None:
    """Write keys and settings that all hosts of a bed share."""
    for folder in ("home", "tmp"):
        (state / folder).mkdir()
    for key in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(state / key)], check=True)
    (state / "sshd_config").write_text(_SSHD.format(state=state))
    (state / "ssh_config").write_text(_SSH.format(state=state))
    names = [f"{address(number)} h{number}" for number in range(count)]
    (state / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))

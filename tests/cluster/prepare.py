"""What the bed needs of a machine; `python -m tests.cluster.prepare` installs it, or says what is missing."""

import os
import shutil
import subprocess
import sys

PACKAGES = ["slurm-wlm", "munge", "openssh-server", "iproute2", "libpmix2", "libpmix-dev"]
_PROGRAMS = ["slurmctld", "slurmd", "sbatch", "munged", "sshd", "ssh-keygen", "ip", "nsenter", "unshare"]
_SPACES = ["--net", "--uts", "--pid", "--ipc", "--mount", "--fork"]
_SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def why_not() -> str:
    """Return in one line why this machine cannot have a bed; empty if it can."""
    if sys.platform != "linux":
        return "hosts are namespaces of Linux"
    if os.geteuid() != 0:
        return "hosts are namespaces, which only root may make"
    missing = _missing()
    if missing:
        return f"no {', '.join(missing)}: install Debian's {' '.join(PACKAGES)}"
    tried = subprocess.run(["unshare", *_SPACES, "true"], capture_output=True, text=True, check=False)
    return f"this machine lets no namespaces be made: {tried.stderr.strip()}" if tried.returncode else ""


def install() -> None:
    """Install Debian's packages where root misses some, and a package manager is there."""
    if os.geteuid() != 0 or not _missing() or shutil.which("apt-get") is None:
        return
    print(f"installing {' '.join(PACKAGES)}", flush=True)
    apt = ["apt-get", "--quiet=2", "-o", "DPkg::Lock::Timeout=300"]
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run([*apt, *command], env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr.strip(), file=sys.stderr)
            return


def _missing() -> list[str]:
    return [program for program in _PROGRAMS if shutil.which(program, path=_SEARCH) is None]


if __name__ == "__main__":
    install()
    if reason := why_not():
        print(f"no cluster tests on this machine: {reason}")

"""What a host has that a job needs: run on every host, as text, by the Python that the ranks will use.

Reads from standard input `{"folder": ..., "programs": [...], "tokens": [...], "write": bool}`, and prints one
line. It imports the standard library alone, and the root of the trainer, which imports nothing.
"""

import fcntl
import importlib
import importlib.metadata
import ipaddress
import json
import os
import socket
import struct
import sys

_ADDRESS = 0x8915  # SIOCGIFADDR of linux/sockios.h
_MASK = 0x891B  # SIOCGIFNETMASK


def main() -> None:
    """Print the facts."""
    given = json.load(sys.stdin)
    if given["write"]:
        for token in given["tokens"]:
            with open(token, "x", encoding="utf-8"):  # noqa: PTH123
                pass
    answer = {
        "node": os.environ.get("SLURMD_NODENAME", ""),
        "name": socket.gethostname(),
        "folder": os.path.isdir(given["folder"]),  # noqa: PTH112
        "tokens": [os.path.exists(token) for token in given["tokens"]],  # noqa: PTH110
        "programs": [os.access(program, os.X_OK) for program in given["programs"]],
        "python": ".".join(map(str, sys.version_info[:3])),
        "networks": networks(),
        **versions(given["folder"]),
    }
    print("trainer-launch-answer " + json.dumps(answer))


def versions(folder: str) -> "dict[str, str]":
    """Return the versions of what must be the same everywhere, and where the trainer is."""
    if os.path.isdir(folder):  # noqa: PTH112
        sys.path.insert(0, folder)  # as `python -m` does
    found = {}
    for name in ("torch", "horovod", "mpi4py"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    try:
        trainer = importlib.import_module("trainer")  # may be missing here
    except ImportError as error:
        return {**found, "trainer": "none", "trainer_path": str(error)}
    where = os.path.dirname(os.path.abspath(trainer.__file__ or ""))  # noqa: PTH100, PTH120
    return {**found, "trainer": trainer.__version__, "trainer_path": where}


def networks() -> "list[tuple[str, str, str]]":
    """Return (interface, address, network) of every interface that leads to other hosts."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, interface in socket.if_nameindex():
            request = struct.pack("256s", interface.encode()[:15])
            try:
                address = socket.inet_ntoa(fcntl.ioctl(asked, _ADDRESS, request)[20:24])
                mask = socket.inet_ntoa(fcntl.ioctl(asked, _MASK, request)[20:24])
            except OSError:  # it has no address
                continue
            network = ipaddress.ip_network(f"{address}/{mask}", strict=False)
            if not network.is_loopback:
                found.append((interface, address, str(network)))
    return found


if __name__ == "__main__":
    main()

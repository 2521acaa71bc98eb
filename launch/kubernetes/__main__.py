"""`python -m launch.kubernetes FILE ...`: check MPIJobs as mpi-operator would, without a cluster."""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from launch.kubernetes.mpijob import faults

_WRONG_INPUT = 2


def main(arguments: Sequence[str]) -> int:
    """Print what is wrong with each file; return 0 if nothing is, and 2 otherwise."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m launch.kubernetes FILE ...", file=sys.stderr)
        return _WRONG_INPUT
    found = [f"{file}: {fault}" for file in arguments for fault in faults_of_file(Path(file))]
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        print(f"valid: {', '.join(arguments)}")
    return _WRONG_INPUT if found else 0


def faults_of_file(file: Path) -> list[str]:
    """Return what is wrong with a file of one MPIJob."""
    try:
        job = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        return [str(error.strerror)]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return [f"no YAML of one document: {' '.join(str(error).split())}"]
    return faults(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

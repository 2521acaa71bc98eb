"""Which ranks of a job run on this host, by what the kernel says of mpirun's children."""

from pathlib import Path

_CARRIERS = ("ssh", "rsh", "srun", "orted", "hydra_pmi_proxy", "hydra_bstrap_pr")  # lead to other hosts


def ranks_of(mpirun: int) -> list[int]:
    """Return the children of mpirun that are ranks, and run."""
    try:
        found = [
            int(child)
            for task in Path(f"/proc/{mpirun}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:  # it has ended, or the kernel does not say
        return []
    return [child for child in found if _is_rank(child)]


def _is_rank(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    name, state = stat.partition("(")[2].rpartition(")")[0], stat.rpartition(")")[2].split()[0]
    return state not in ("Z", "X") and name not in _CARRIERS

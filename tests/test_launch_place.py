"""The launcher finds hosts and slots where batch systems leave them."""

import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.launch.place import Host, Place, Reach, find, from_list, is_here, per_node

HERE = socket.gethostname()


def expand(nodes: str) -> Sequence[str]:
    """Return the names of a list as `scontrol show hostnames` of Slurm 22.05 did."""
    return {"h[1-2]": ["h1", "h2"], "h[1-3]": ["h1", "h2", "h3"], "h1": ["h1"], HERE: [HERE]}[nodes]


def place(environment: dict[str, str], hosts: str | None = None, hostfile: str | None = None) -> Place:
    return find(hosts, hostfile, environment, expand)


# What batch scripts of Slurm 22.05 had in their environment: sbatch -N2 --ntasks-per-node=2, -n1 -c4, -N2.
TWO_NODES = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "h[1-2]",
    "SLURM_NODELIST": "h[1-2]",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_CPUS_PER_NODE": "2(x2)",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
}
ONE_TASK = {
    "SLURM_JOB_ID": "8",
    "SLURM_JOB_NODELIST": "h1",
    "SLURM_TASKS_PER_NODE": "1",
    "SLURM_JOB_CPUS_PER_NODE": "4",
    "SLURM_CPUS_PER_TASK": "4",
    "SLURM_NTASKS": "1",
}


def test_slurm() -> None:
    found = place(TWO_NODES)
    assert found.hosts == (Host("h1", 2, 2), Host("h2", 2, 2))
    assert (found.reach, found.job, found.nodes) == (Reach.SRUN, "7", ("h1", "h2"))


def test_slurm_with_one_task_of_four_cpus() -> None:
    assert place(ONE_TASK).hosts == (Host("h1", 1, 4),)


def test_slurm_on_this_node_alone_needs_no_srun() -> None:
    assert place({**ONE_TASK, "SLURM_JOB_NODELIST": HERE}).reach is Reach.LOCAL


def test_slurm_with_uneven_nodes() -> None:
    environment = {**TWO_NODES, "SLURM_JOB_NODELIST": "h[1-3]", "SLURM_TASKS_PER_NODE": "3(x2),1"}
    assert [host.slots for host in place(environment).hosts] == [3, 3, 1]


def test_task_of_an_array() -> None:
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}
    assert place({**TWO_NODES, **array}).job == "5_3"


def test_srun_must_not_start_several_launchers() -> None:
    with pytest.raises(UserError, match="4 times"):
        place({**TWO_NODES, "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"})


def test_hosts_of_the_allocation_are_reached_by_srun_others_by_ssh() -> None:
    assert place(TWO_NODES, hosts="h2:2").reach is Reach.SRUN
    elsewhere = place(TWO_NODES, hosts="h9:2")
    assert (elsewhere.reach, elsewhere.job) == (Reach.SSH, "7")


def test_pbs(tmp_path: Path) -> None:
    file = tmp_path / "nodes"
    file.write_text("n1\nn1\nn2\nn2\nn2\n")
    found = place({"PBS_NODEFILE": str(file)})
    assert found.hosts == (Host("n1", 2), Host("n2", 3))
    assert found.reach is Reach.SSH


def test_lsf(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("n1\nn1\nn2\n")
    both = {"LSB_DJOB_HOSTFILE": str(file), "LSB_MCPU_HOSTS": "n7 4"}
    assert place(both).hosts == (Host("n1", 2), Host("n2", 1))
    assert place({"LSB_MCPU_HOSTS": "n1 4 n2 2"}).hosts == (Host("n1", 4), Host("n2", 2))
    with pytest.raises(UserError, match="LSB_MCPU_HOSTS"):
        place({"LSB_MCPU_HOSTS": "n1 four"})


def test_mpi_operator(tmp_path: Path) -> None:
    file = tmp_path / "hostfile"
    file.write_text("job-worker-0.job.default.svc slots=2\njob-worker-1.job.default.svc slots=2\n")
    found = place({"OMPI_MCA_orte_default_hostfile": str(file)})
    assert [host.slots for host in found.hosts] == [2, 2]


@pytest.mark.parametrize(
    "lines", ["h1 slots=2\nh2 slots=1 max_slots=4\n", "# hosts\nh1:2\n\nh2\n", "h1\nh2\nh1\n"]
)
def test_forms_of_a_file(lines: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(lines)
    assert place({}, hostfile=str(file)).hosts == (Host("h1", 2), Host("h2", 1))


@pytest.mark.parametrize(
    ("lines", "words"),
    [("h1 slots=two\n", "line 1"), ("h1\nh2 slots=0\n", "line 2"), ("# none\n", "names none")],
)
def test_wrong_files(lines: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(lines)
    with pytest.raises(UserError, match=words):
        place({}, hostfile=str(file))


def test_this_machine() -> None:
    assert place({}) == Place("no batch system and no -H")
    assert is_here(HERE)
    assert is_here("localhost")
    assert not is_here("h9.elsewhere")


@pytest.mark.parametrize("text", ["h1:0", "h1:2,,h2", "h1:two", ""])
def test_wrong_lists(text: str) -> None:
    with pytest.raises(UserError, match="-H"):
        from_list(text)


def test_short_form_of_slurm() -> None:
    assert per_node("2(x3),1") == [2, 2, 2, 1]

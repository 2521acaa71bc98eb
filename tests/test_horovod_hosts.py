"""Where horovodrun starts ranks that nobody gives hosts, and with which mpirun."""

import os
import socket
from pathlib import Path

import pytest

from launch.install import horovod_hosts

HERE = socket.gethostname().partition(".")[0]


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in for Slurm's scontrol on PATH."""
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\n[ "$*" = "show hostnames [a-b]" ] && echo a && echo b\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.parametrize(
    ("ranks", "tasks", "shared"),
    [
        pytest.param(4, "2(x2)", "a:2,b:2", id="a task for every rank"),
        pytest.param(3, "2(x2)", "a:2,b:1", id="fewer ranks than tasks"),
        pytest.param(2, "2(x2)", "a:2", id="ranks that fit on one node"),
        pytest.param(5, "1,4", "a:1,b:4", id="nodes that differ"),
        pytest.param(4, "1(x2)", "a:2,b:2", id="one task on every node"),
        pytest.param(5, "1(x2)", "a:3,b:2", id="a number that does not divide"),
        pytest.param(1, "1(x2)", "a:1", id="one rank"),
        pytest.param(4, "", "a:2,b:2", id="unknown tasks"),
    ],
)
def test_nodes_of_a_slurm_job(
    ranks: int, tasks: str, shared: str, scontrol: None, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "[a-b]", "SLURM_TASKS_PER_NODE": tasks}
    assert horovod_hosts.default_hosts(ranks, job) == shared
    said = capsys.readouterr().err
    assert said == f"horovodrun: {ranks} ranks on {shared}: Slurm's job 7 (-H names others)\n"
    assert horovod_hosts.started_by_slurm(["a", "b"], job)
    assert not horovod_hosts.started_by_slurm(["a", "c"], job)


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({}, id="no Slurm"),
        pytest.param({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": HERE}, id="a job on this host"),
        pytest.param(
            {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURMD_NODENAME": "n1"}, id="by another name"
        ),
    ],
)
def test_this_host(variables: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert horovod_hosts.default_hosts(3, variables) == "localhost:3"
    assert capsys.readouterr().err == ""


def test_no_scontrol(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/none")
    with pytest.raises(SystemExit) as ended:
        horovod_hosts.default_hosts(2, {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "[a-b]"})
    assert ended.value.code == 2
    assert "`scontrol show hostnames [a-b]` fails: name hosts with -H" in capsys.readouterr().err


def test_mpirun_has_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    (folder / "mpirun").touch(0o755)
    assert horovod_hosts.path_of_mpirun({"PATH": f"/none:{folder}"}) == f"'{folder}/mpirun'"
    assert horovod_hosts.path_of_mpirun({"PATH": "/none"}) == "mpirun"


def test_links_are_watched_unless_the_user_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    time = "OMPI_MCA_oob_tcp_keepalive_time"
    assert horovod_hosts.variables_of_mpirun({"A": "1"}, f"localhost:2,{HERE}:1")[time] == "4"
    assert capsys.readouterr().err == ""  # there is no link
    assert horovod_hosts.variables_of_mpirun({}, "elsewhere:1")[time] == "4"
    assert capsys.readouterr().err.startswith("horovodrun: a host that is silent for 7 s ends the job")
    assert horovod_hosts.variables_of_mpirun({time: "60"}, "elsewhere:1")[time] == "60"
    assert capsys.readouterr().err == ""


def test_mpirun_takes_slots_from_the_ranks_asked_for(scontrol: None) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "[a-b]", "SLURM_TASKS_PER_NODE": "1(x2)"}
    chosen = horovod_hosts.variables_of_mpirun(job, "a:3,b:2")
    assert (chosen["SLURM_NODELIST"], chosen["SLURM_TASKS_PER_NODE"]) == ("[a-b]", "3,2")
    assert "OMPI_MCA_ras" not in chosen
    assert "SLURM_OVERLAP" not in chosen
    assert horovod_hosts.variables_of_mpirun(job, "b:2")["SLURM_TASKS_PER_NODE"] == "1,2"
    assert horovod_hosts.variables_of_mpirun(job | {"SLURM_STEP_ID": "0"}, "b:2")["SLURM_OVERLAP"] == "1"


@pytest.mark.parametrize("hosts", ["localhost:2", f"{HERE}:2", "a:1,elsewhere:1"])
def test_slurm_is_left_out_where_it_does_not_reach(hosts: str, scontrol: None) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "[a-b]", "SLURM_TASKS_PER_NODE": "1(x2)"}
    chosen = horovod_hosts.variables_of_mpirun(job, hosts)
    assert chosen["OMPI_MCA_ras"] == chosen["OMPI_MCA_plm"] == "^slurm"
    assert chosen["SLURM_TASKS_PER_NODE"] == "1(x2)"

"""The MPIJob: valid, in keeping with the image, and mistakes in it are found, each with its path."""

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.kubernetes.mpijob import faults
from tests.support.launch import REPOSITORY

FOLDER = REPOSITORY / "launch/kubernetes"
TEXT = (FOLDER / "mpijob.yaml").read_text()
LAUNCHER, WORKER = (f"spec.mpiReplicaSpecs.{role}" for role in ("Launcher", "Worker"))
FIRST = "template.spec.containers[0]"
NO_ROOT = "is missing; its default, /root/.ssh, is not the image's home"

Job = dict[str, Any]


def job() -> Job:
    loaded: Job = yaml.safe_load(TEXT)
    return loaded


def check(*files: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "launch.kubernetes", *map(str, files)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_the_job_is_valid() -> None:
    done = check(Path("launch/kubernetes/mpijob.yaml"))
    assert (done.returncode, done.stdout) == (0, "valid: launch/kubernetes/mpijob.yaml\n")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "slotsPerWorker:",
            "slotsPerWorkr:",
            "spec.slotsPerWorkr: no such field; did you mean slotsPerW",
        ),
        (
            "backoffLimit: 10",
            "backoffLimit: ten",
            "spec.runPolicy.backoffLimit: expected integer, found ",
        ),
        (
            'cpu: "1"',
            "cpu: [1]",
            f"{LAUNCHER}.{FIRST}.resources.limits.cpu: expected integer or string, found [1]",
        ),
        (
            "memory: 16Gi",
            "memory: 16 GB",
            f'{WORKER}.{FIRST}.resources.limits.memory: "16 GB" does not have the form ',
        ),
        (
            "{name: runs, mountPath: /runs}",
            "{name: runs, mountPath: /runs, readOnyl: true}",
            f"{LAUNCHER}.{FIRST}.volumeMounts[0].readOnyl: no such field; did you mean readO",
        ),
        (
            "{name: shm, mountPath: /dev/shm}",
            "{name: shm}",
            f"{WORKER}.{FIRST}.volumeMounts[1].mountPath: is missing",
        ),
        (
            "{name: shm, mountPath",
            "{name: memory, mountPath",
            f"{WORKER}.{FIRST}.volumeMounts[1].name: the pod has no volume memory; it has runs, ",
        ),
        ("replicas: 1", "replicas: 2", f"{LAUNCHER}.replicas: expected 1, found 2"),
        ("replicas: 2", "replicas: 0", f"{WORKER}.replicas: expected the number of workers, 1 or more"),
        (
            "slotsPerWorker: 4",
            "slotsPerWorker: 0",
            "spec.slotsPerWorker: expected the number of ranks",
        ),
        (
            "name: hybrid-trainer",
            "name: Hybrid_trainer",
            "metadata.name: 'Hybrid_trainer' makes no host name of a pod (Hybrid_trainer-worker-1): ",
        ),
        (
            "name: hybrid-trainer",
            f"name: {'a' * 56}",
            f"metadata.name: '{'a' * 56}' makes no host name",
        ),
        ("  name: hybrid-trainer", "  namespace: default", "metadata.name: is missing"),
        ("  sshAuthMountPath: /home/trainer/.ssh\n", "", f"spec.sshAuthMountPath: {NO_ROOT}"),
        (
            "cleanPodPolicy: Running",
            "cleanPodPolicy: running",
            "spec.runPolicy.cleanPodPolicy: expected one ",
        ),
        (
            "restartPolicy: OnFailure",
            "restartPolicy: Always",
            f"{LAUNCHER}.restartPolicy: expected one of Never, OnFailure",
        ),
        ("    Worker:", "    Workers:", f"{WORKER}: is missing"),
        ("org/v2beta1", "org/v1", "apiVersion: expected kubeflow.org/v2beta1"),
        ("kind: MPIJob", "kind: Job", "kind: expected MPIJob"),
        (
            "spec:\n  slots",
            "specs: {}\nspec:\n  mpiImplementation: Open MPI\n  slots",
            'spec.mpiImplementation: expected one of OpenMPI, Intel, MPICH, found "Open MPI"',
        ),
    ],
)
def test_a_mistake_is_found_and_named(old: str, new: str, fault: str, tmp_path: Path) -> None:
    assert old in TEXT
    file = tmp_path / "job.yaml"
    file.write_text(TEXT.replace(old, new, 1))
    found = faults(yaml.safe_load(file.read_text()))
    assert any(line.startswith(fault) for line in found), found


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every field, at any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        if isinstance(key, str):
            yield (*path, key)
        yield from places(part, (*path, key))


def changed(path: tuple[str | int, ...], change: Callable[[Any, Any], None]) -> Job:
    """Return the job with a change to one field, of which `change` gets the parent and the key."""
    copied = copy.deepcopy(job())
    parent: Any = copied
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return copied


FREE = ("limits",)  # resources have any name


def misspell(parent: Any, key: Any) -> None:
    parent[f"{key}x"] = parent.pop(key)


def nest(parent: Any, key: Any) -> None:
    parent[key] = [{"wrong": parent[key]}]


@pytest.mark.parametrize("change", [misspell, nest])
def test_every_field_is_checked(change: Callable[[Any, Any], None]) -> None:
    checked = [path for path in places(job()) if path[0] == "spec" and not set(path[:-1]) & set(FREE)]
    assert len(checked) > 40
    for path in checked:
        found = faults(changed(path, change))
        assert any(str(path[-1]) in line for line in found), f"{path}: {found}"


def test_several_files_and_the_exit_code(tmp_path: Path) -> None:
    wrong, not_yaml = tmp_path / "wrong.yaml", tmp_path / "not.yaml"
    wrong.write_text(TEXT.replace("slotsPerWorker", "slots"))
    not_yaml.write_text("{")
    done = check(FOLDER / "mpijob.yaml", wrong, not_yaml, tmp_path / "missing.yaml")
    assert done.returncode == 2
    first, *others = done.stderr.splitlines()
    assert first.startswith(f"{wrong}: spec.slots: no such field; ")
    assert [line.partition(": ")[0] for line in others] == [str(not_yaml), str(tmp_path / "missing.yaml")]
    assert check().returncode == 2


def test_the_job_fits_the_image() -> None:
    image = (REPOSITORY / "launch/Containerfile").read_text()
    sshd, ssh = ((FOLDER / name).read_text() for name in ("sshd_config", "ssh_config"))
    spec = job()["spec"]
    pods = {role: part["template"]["spec"] for role, part in spec["mpiReplicaSpecs"].items()}
    (worker,) = pods["Worker"]["containers"]

    (port,) = re.findall(r"^Port (\d+)$", sshd, re.MULTILINE)
    assert re.findall(r"^ +Port (\d+)$", ssh, re.MULTILINE) == [port]
    assert worker["readinessProbe"] == {"tcpSocket": {"port": int(port)}}
    assert f"HostKey {spec['sshAuthMountPath']}/id_rsa\n" in sshd
    assert f"sshd_config {worker['command'][-1]}\n" in image
    (user,) = re.findall(r"useradd --uid (\d+)", image)
    assert {pod["securityContext"]["fsGroup"] for pod in pods.values()} == {int(user)}
    assert "openssh-server" in image

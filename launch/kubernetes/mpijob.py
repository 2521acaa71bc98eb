"""What mpi-operator asks of an MPIJob beyond its schema, and what makes the pods work together."""

import re
from collections.abc import Iterator
from typing import Any

from launch.kubernetes import schema

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035
_LONGEST_LABEL = 63
_ROLES = ("Launcher", "Worker")
_RESTART = ("Never", "OnFailure")
_CLEAN = ("None", "Running", "All")


def faults(job: object) -> list[str]:
    """Return what is wrong with an MPIJob, each with the path of the field; nothing if it is valid."""
    if not isinstance(job, dict):
        return ["the file: expected one MPIJob, a mapping of fields"]
    wanted = {"apiVersion": f"kubeflow.org/{schema.VERSION}", "kind": "MPIJob"}
    found = [f"{name}: expected {text}" for name, text in wanted.items() if job.get(name) != text]
    found += [f"{name}: no such field" for name in job if name not in (*wanted, "metadata", "spec", "status")]
    found += schema.faults(job.get("spec"), schema.load(), "spec")
    if not found:  # only then are the parts where these rules look for them
        found = [*_of_name(job), *_of_operator(job["spec"]), *_of_volumes(job["spec"])]
    return found


def _of_name(job: dict[str, Any]) -> Iterator[str]:
    metadata = job.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str):
        yield "metadata.name: is missing"
        return
    workers = job["spec"]["mpiReplicaSpecs"].get("Worker", {}).get("replicas", 1)
    host = f"{name}-worker-{max(workers, 1) - 1}"
    if not _LABEL.fullmatch(name) or len(host) > _LONGEST_LABEL:
        yield (
            f"metadata.name: {name!r} makes no host name of a pod ({host}): expected small letters, digits "
            f"and '-', a letter first, at most {_LONGEST_LABEL} in all"
        )


def _of_operator(spec: dict[str, Any]) -> Iterator[str]:
    """Yield what mpi-operator refuses, and where its defaults do not fit the image."""
    if spec.get("slotsPerWorker", 0) < 1:
        yield "spec.slotsPerWorker: expected the number of ranks on a worker, 1 or more"
    if not spec.get("sshAuthMountPath"):
        yield "spec.sshAuthMountPath: is missing; its default, /root/.ssh, is not the image's home"
    if spec.get("runPolicy", {}).get("cleanPodPolicy") not in _CLEAN:
        yield f"spec.runPolicy.cleanPodPolicy: expected one of {', '.join(_CLEAN)}"
    for role in _ROLES:
        if role not in spec["mpiReplicaSpecs"]:
            yield f"spec.mpiReplicaSpecs.{role}: is missing"
    for role, replica in spec["mpiReplicaSpecs"].items():
        yield from _of_replica(role, replica, f"spec.mpiReplicaSpecs.{role}")


def _of_replica(role: str, replica: dict[str, Any], path: str) -> Iterator[str]:
    if role not in _ROLES:
        yield f"{path}: no such role; expected {' and '.join(_ROLES)}"
    if role == "Launcher" and replica.get("replicas", 1) != 1:
        yield f"{path}.replicas: expected 1, found {replica['replicas']}"
    if role == "Worker" and replica.get("replicas", 0) < 1:
        yield f"{path}.replicas: expected the number of workers, 1 or more"
    if replica.get("restartPolicy", "Never") not in _RESTART:
        yield f"{path}.restartPolicy: expected one of {', '.join(_RESTART)}"
    if not replica.get("template", {}).get("spec", {}).get("containers"):
        yield f"{path}.template.spec.containers: is missing: expected one container or more"


def _of_volumes(spec: dict[str, Any]) -> Iterator[str]:
    """Yield mounts of volumes that the pod does not have."""
    for role, replica in spec["mpiReplicaSpecs"].items():
        pod = replica.get("template", {}).get("spec", {})
        volumes = [volume["name"] for volume in pod.get("volumes", [])]
        for number, container in enumerate(pod.get("containers", [])):
            for index, mount in enumerate(container.get("volumeMounts", [])):
                if mount["name"] not in volumes:
                    yield (
                        f"spec.mpiReplicaSpecs.{role}.template.spec.containers[{number}].volumeMounts[{index}]."
                        f"name: the pod has no volume {mount['name']}; it has {', '.join(volumes) or 'none'}"
                    )

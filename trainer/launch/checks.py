"""What must be the same on every host, asked before anything starts: each problem is one line.

A host answers once, with all facts. One host writes a file into each folder that must be shared, and all
others look for it: a file that was never asked for is not in the cache of a network file system.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from trainer.launch.place import Reach, is_here
from trainer.launch.remote import Answer, ask

_FACTS = Path(__file__).with_name("facts.py")
_SAME = ("python", "trainer", "trainer_path", "torch", "horovod", "mpi4py")


@dataclass(frozen=True)
class Found:
    """What the hosts say.

    Attributes:
        problems: What keeps the job from running, a line each.
        networks: The networks that all hosts share, such as "10.0.0.0/24".
        addresses: By host: the interfaces and addresses in those networks.
    """

    problems: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    addresses: tuple[tuple[str, str], ...] = ()


def look_at(hosts: Sequence[str], reach: Reach, mpirun: str, run_dir: Path | None) -> Found:
    """Ask all hosts at once.

    Args:
        hosts: Their names.
        reach: How to get to them.
        mpirun: The path of mpirun.
        run_dir: The run's folder, if the user gives it.
    """
    folder, number = Path.cwd(), uuid4().hex
    # What ranks write together is the run's folder; without run.dir it is made in the working folder.
    tokens = [str((folder if run_dir is None else _existing(run_dir)) / f".trainer-launch-{number}")]
    programs = [sys.executable, mpirun]
    given = {"folder": str(folder), "programs": programs, "tokens": tokens, "write": False}
    mine = [host for host in hosts if is_here(host)]
    problems: list[str] = []
    try:
        if mine:
            problems += _write(tokens)
            answers = ask(hosts, reach, _FACTS, given)
        else:  # the launcher's own host may share nothing with them
            answers = ask(hosts[:1], reach, _FACTS, {**given, "write": True})
            answers += ask(hosts[1:], reach, _FACTS, given)
    finally:
        _remove(tokens, hosts[:1], reach, here=bool(mine))
    problems += judge(answers, str(folder), programs, [str(Path(token).parent) for token in tokens])
    networks, addresses = common_networks(answers)
    return Found(tuple(problems), networks, addresses)


def judge(
    answers: Sequence[Answer], folder: str, programs: Sequence[str], shared: Sequence[str]
) -> Iterator[str]:
    """Yield what is wrong, a line each.

    Args:
        answers: Those of the hosts; the first is what the others are compared with.
        folder: The working folder.
        programs: This Python and mpirun.
        shared: The folders that hold a token.
    """
    silent = [answer for answer in answers if answer.value is None]
    for answer in silent:
        yield _unreached(answer, programs[0])
    reached = [answer for answer in answers if answer.value is not None]
    for answer in reached:
        value: Any = answer.value
        if not value["folder"]:
            yield (
                f"host {answer.host} has no folder {folder}: start from a folder that all hosts have, on a "
                "shared file system or as a copy"
            )
        for program, there in zip(programs, value["programs"], strict=True):
            if not there:
                yield (
                    f"host {answer.host} has no program {program}: install the same environment at the same "
                    "path, or put it on a shared file system"
                )
        first: Any = reached[0].value
        for fact in _SAME:
            if value[fact] != first[fact]:
                what, other = fact.replace("_", " "), reached[0].host
                yield (
                    f"host {answer.host} has {what} {value[fact]}, but {other} has {first[fact]}: all hosts "
                    "need the same; run the same set-up on each"
                )
        if value["folder"]:
            yield from _unshared(answer, shared)


def common_networks(answers: Sequence[Answer]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the networks that all hosts share, and each host's interfaces in them.

    A bridge of containers has the same network everywhere, and the same address: it leads nowhere.
    """
    values: list[Any] = [answer.value for answer in answers if answer.value is not None]
    shared = []
    for network in dict.fromkeys(entry[2] for value in values for entry in value["networks"]):
        addresses = [[e[1] for e in value["networks"] if e[2] == network] for value in values]
        flat = [address for each in addresses for address in each]
        if all(addresses) and len(set(flat)) == len(flat):
            shared.append(network)
    by_host = tuple(
        (answer.host, ", ".join(f"{e[0]} {e[1]}" for e in answer.value["networks"] if e[2] in shared))
        for answer in answers
        if answer.value is not None
    )
    return tuple(shared), by_host


def _unreached(answer: Answer, python: str) -> str:
    complaint = answer.complaint
    if python in complaint or "No such file" in complaint or "not found" in complaint:
        return (
            f"host {answer.host} cannot run {python}: {complaint}; install the same environment at the same "
            "path, or put it on a shared file system"
        )
    return (
        f"host {answer.host} cannot be reached: {complaint}; `ssh {answer.host} hostname` must work without "
        "a password, or leave the host out"
    )


def _unshared(answer: Answer, shared: Sequence[str]) -> Iterator[str]:
    for folder, there in zip(shared, answer.value["tokens"], strict=True):
        if not there:
            yield (
                f"host {answer.host} does not see what others write to {folder}: all ranks write the run's "
                "checkpoints into one folder; give run.dir=FOLDER on a shared file system, and start there"
            )


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def _write(tokens: Sequence[str]) -> Iterator[str]:
    for token in tokens:
        try:
            Path(token).touch(exist_ok=False)
        except OSError as error:
            yield f"{Path(token).parent} cannot be written: {error.strerror}; start from a folder of yours"


def _remove(tokens: Sequence[str], hosts: Sequence[str], reach: Reach, *, here: bool) -> None:
    if not here and not all(Path(token).exists() for token in tokens):
        ask(hosts, reach, _FACTS.with_name("remove.py"), {"tokens": list(tokens)})
        return
    for token in tokens:
        try:
            os.unlink(token)  # noqa: PTH108
        except OSError:
            continue

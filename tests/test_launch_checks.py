"""What hosts answer, and what is wrong with it; here from this machine's own facts."""

import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.launch import checks
from trainer.launch.checks import common_networks, judge, look_at
from trainer.launch.place import Reach
from trainer.launch.remote import Answer, ask

FACTS = Path(checks.__file__).with_name("facts.py")


def facts(tmp_path: Path) -> dict[str, Any]:
    """Return what this machine answers."""
    given = {"folder": str(tmp_path), "programs": [sys.executable], "tokens": [], "write": False}
    (answer,) = ask(["localhost"], Reach.LOCAL, FACTS, given)
    assert answer.value is not None, answer.complaint
    return dict(answer.value)


def problems(*values: Any, shared: tuple[str, ...] = ()) -> list[str]:
    answers = [Answer(f"h{number}", value, "" if value else "gone") for number, value in enumerate(values, 1)]
    return list(judge(answers, "/work", [sys.executable], shared))


def test_facts(tmp_path: Path) -> None:
    mine = facts(tmp_path)
    assert mine["folder"]
    assert mine["programs"] == [True]
    assert mine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert mine["trainer_path"].endswith("trainer")
    assert not any(address.startswith("127.") for _, address, _ in mine["networks"])
    assert problems(mine, mine) == []


def test_each_difference_is_one_line(tmp_path: Path) -> None:
    mine = facts(tmp_path)
    assert "host h2 has python 3.9.1, but h1 has" in problems(mine, {**mine, "python": "3.9.1"})[0]
    assert "host h2 has no folder /work" in problems(mine, {**mine, "folder": False})[0]
    assert "host h2 has no program" in problems(mine, {**mine, "programs": [False]})[0]
    both = problems(mine, {**mine, "torch": "none", "trainer_path": "/elsewhere"})
    assert len(both) == 2


def test_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    mine = facts(tmp_path)
    (line,) = problems({**mine, "tokens": [True]}, {**mine, "tokens": [False]}, shared=("/work",))
    assert line.startswith("host h2 does not see what others write to /work")


def test_unreached_hosts() -> None:
    (line,) = problems(None)
    assert line.startswith("host h1 cannot be reached: gone")


def test_ssh_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_MCA_plm_rsh_agent", "ssh")
    answers = ask(["no-such-host.invalid"], Reach.SSH, FACTS, {}, limit=5.0)
    assert answers[0].value is None
    assert answers[0].complaint


def test_a_stand_in_for_ssh_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the MPI operator of Kubernetes sets one; this one runs the command here."""
    agent = tmp_path / "agent"
    agent.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    agent.chmod(0o755)
    monkeypatch.setenv("OMPI_MCA_plm_rsh_agent", str(agent))
    monkeypatch.chdir(tmp_path)
    found = look_at(["far1", "far2"], Reach.SSH, sys.executable, None)
    assert found.problems == ()
    assert not list(tmp_path.glob(".trainer-launch-*"))


def test_networks_that_lead_somewhere() -> None:
    def host(name: str, last: int) -> Answer:
        networks = [("eth0", f"10.0.0.{last}", "10.0.0.0/24"), ("docker0", "172.17.0.1", "172.17.0.0/16")]
        return Answer(name, {"networks": networks})

    alone = Answer("h3", {"networks": [("eth1", "192.168.0.3", "192.168.0.0/24")]})
    networks, addresses = common_networks([host("h1", 1), host("h2", 2)])
    assert networks == ("10.0.0.0/24",)
    assert addresses == (("h1", "eth0 10.0.0.1"), ("h2", "eth0 10.0.0.2"))
    assert common_networks([host("h1", 1), alone])[0] == ()

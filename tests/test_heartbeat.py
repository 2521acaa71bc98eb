"""What a rank does is readable by the others of its node, and leaves no file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch import REPOSITORY
from trainer.distributed.heartbeat import (
    Heartbeat,
    Page,
    Phase,
    State,
    Waits,
    Word,
    heartbeat,
    job_name,
    text_of,
)
from trainer.schedule.actions import Action, Kind
from trainer.schedule.coding import action_of, number_of


@pytest.mark.parametrize("kind", Kind)
def test_an_action_is_a_number(kind: Kind) -> None:
    for action in (Action(kind, 0), Action(kind, 7, 0), Action(kind, 9_999, 1_000_000, 3)):
        assert action_of(number_of(action)) == action
        assert number_of(action) != 0


def test_no_action_is_none() -> None:
    assert action_of(0) is None
    assert action_of(63) is None


def test_phases_and_waits() -> None:
    mine = Heartbeat()
    mine.enter(Phase.TRAIN)
    with mine.during(Phase.SAVE):
        assert mine.words[Word.PHASE] == Phase.SAVE
        mine.join(Waits.REPLICAS)
    assert mine.words[Word.PHASE] == Phase.TRAIN
    assert [mine.words[Word.JOINED + i] for i in range(3)] == [0, 0, 1]
    assert mine.words[Word.WAITS] == Waits.REPLICAS
    mine.wait_for(5)
    assert (mine.words[Word.WAITS], mine.words[Word.PEER]) == (Waits.RANK, 5)
    mine.go_on()
    assert mine.words[Word.WAITS] == Waits.NOBODY


def test_the_longest_text_is_left_out() -> None:
    slot = memoryview(bytearray(1024))
    mine = Heartbeat()
    mine.use(slot)
    mine.describe(layers="head", stages=[1])
    mine.describe(mapped={"x" * 2000: 1})
    assert text_of(slot) == {"layers": "head", "stages": [1]}


WRITES = """
import sys
from pathlib import Path
from trainer.distributed.heartbeat import Heartbeat, Page, State, Word
page = Page("job", 2, Path(sys.argv[1]))
mine = Heartbeat()
mine.use(page.slot(page.own))
mine.words[Word.RANK], mine.words[Word.STATE] = 7, State.ALIVE
mine.describe(layers="head")
print("ready", flush=True)
sys.stdin.read()
"""


def test_another_process_reads_it_also_when_the_writer_is_dead(tmp_path: Path) -> None:
    page = Page("job", 2, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    assert not list(tmp_path.iterdir())  # all have arrived
    writer.kill()
    writer.wait()
    other = 1 - page.own
    assert page.words(other)[Word.RANK] == 7
    assert page.words(other)[Word.STATE] == State.ALIVE
    assert text_of(page.slot(other)) == {"layers": "head"}


def test_the_next_run_sweeps_up_after_one_that_never_was_complete(tmp_path: Path) -> None:
    writer = subprocess.run(
        [sys.executable, "-c", WRITES, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    assert writer.returncode == 0
    (left,) = tmp_path.iterdir()
    living = Page("another", 2, tmp_path)
    assert living.own == 0
    assert not left.exists()
    Page("third", 2, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # those of living ranks stay


def test_a_fork_does_not_write_into_the_slot() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        heartbeat.detach()
        heartbeat.enter(Phase.SAVE)
        os.write(write, b"x")
        os._exit(0)
    assert os.read(read, 1) == b"x"
    assert os.waitpid(child, 0)[1] == 0
    assert heartbeat.words[Word.PHASE] != Phase.SAVE


def test_the_ranks_of_a_launcher_share_a_name() -> None:
    one = {"PMIX_NAMESPACE": "7", "PMIX_SERVER_URI21": "7.0;tcp4://127.0.0.1:5", "PMIX_RANK": "0"}
    assert job_name(one) == job_name({**one, "PMIX_RANK": "1"})
    assert job_name(one) != job_name({**one, "PMIX_NAMESPACE": "8"})
    assert job_name({}) == job_name({"ANY": "thing"})

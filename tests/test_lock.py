"""Two live runs cannot share a folder; a dead one blocks nobody."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.metrics import lock
from trainer.metrics.lock import RunLock

HOLD = """
import os, sys
from pathlib import Path
from trainer.metrics.lock import RunLock
held = RunLock(Path(sys.argv[1]))
if os.fork() == 0:  # such as a process that loads data, and outlives its parent
    sys.stdin.read()
    os._exit(0)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_PATIENCE", 0.2)


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_live_run_keeps_others_out_and_a_killed_one_does_not(tmp_path: Path) -> None:
    with hold(tmp_path) as other:
        words = f"run.dir={tmp_path} belongs to another run, process {other.pid} on {socket.gethostname()}"
        with pytest.raises(UserError, match=words):
            RunLock(tmp_path)
        other.send_signal(signal.SIGKILL)
        assert other.wait(10) == -signal.SIGKILL
        RunLock(tmp_path).release()
        assert other.stdin is not None
        other.stdin.close()


def test_nothing_is_left(tmp_path: Path) -> None:
    held = RunLock(tmp_path)
    assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    held.release()
    held.release()
    assert not list(tmp_path.iterdir())
    held = RunLock(tmp_path)
    del held  # without a word, as when the run fails before it begins
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', "\0" * 50])
def test_a_damaged_file_blocks_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock.json").write_text(content)
    RunLock(tmp_path).release()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"lock\.json"):
        RunLock(tmp_path / "nowhere")


class TestWithoutLocks:
    """A file system without locks: the file has to do."""

    @pytest.fixture(autouse=True)
    def no_locks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(fcntl, "lockf", refuse)

    def write(self, folder: Path, **changes: object) -> None:
        owner = vars(lock._myself()) | changes
        (folder / "lock.json").write_text(json.dumps(owner))

    def test_a_live_process_of_this_host(self, tmp_path: Path) -> None:
        parent = os.getppid()
        self.write(tmp_path, pid=parent, began=lock._began(parent))
        with pytest.raises(UserError, match=f"process {parent} on "):
            RunLock(tmp_path)

    @pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"began": "1"}, {"boot": "another"}])
    def test_a_dead_process_of_this_host(self, tmp_path: Path, change: dict[str, object]) -> None:
        parent = os.getppid()
        self.write(tmp_path, **({"pid": parent, "began": lock._began(parent)} | change))
        RunLock(tmp_path).release()

    def test_another_host(self, tmp_path: Path) -> None:
        self.write(tmp_path, host="elsewhere", pid=1)
        with pytest.raises(UserError, match=r"process 1 on elsewhere: .* remove .*lock\.json"):
            RunLock(tmp_path)

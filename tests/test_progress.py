"""Progress output: complete lines, or a bar on a terminal, from rank 0 only."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support.steps import RESULT
from trainer.metrics import progress
from trainer.metrics.progress import Display, build_display

STEPS = 5


def display(mode: str, *, rank: int = 0, start: int = 0, steps: int = STEPS) -> Display:
    return build_display(mode, rank=rank, start=start, steps=steps)


def test_bubble_is_the_waiting_share_of_all_ranks() -> None:
    assert RESULT.bubble == pytest.approx(0.4)


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    shown = display("line")
    for step in range(1, STEPS + 1):
        shown.step(replace(RESULT, step=step))
    shown.say("a table\nof two lines")
    shown.close()
    first, last, *said = capsys.readouterr().out.splitlines()
    pattern = r"step {}/5  loss 1\.2500  norm 0\.500  lr 1\.00e-03  bubble 40%  2,000 tokens/s  \d:\d\d left"
    assert re.fullmatch(pattern.format(1), first)
    assert re.fullmatch(pattern.format(5), last)
    assert said == ["a table", "of two lines"]


def test_a_line_a_second_and_the_remaining_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred steps of 0.3 s, from step 20 on: after resuming, only steps of this run count."""
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown = display("line", start=20, steps=120)
    for step in range(21, 121):
        now += 0.3
        shown.step(replace(RESULT, step=step))
    lines = capsys.readouterr().out.splitlines()
    steps = [int(re.match(r"step (\d+)/120", line).group(1)) for line in lines]
    assert steps[:3] == [21, 25, 29]
    assert steps[-1] == 120
    for step, line in zip(steps, lines, strict=True):
        assert line.endswith(f"  0:{round(0.3 * (120 - step)):02} left")


def test_speed_follows_the_last_steps(capsys: pytest.CaptureFixture[str]) -> None:
    shown = display("line", steps=100)
    for step in range(1, 50):
        shown.step(replace(RESULT, step=step))
    for step in range(50, 101):
        shown.step(replace(RESULT, step=step, seconds=1.0))
    assert "  1,000 tokens/s" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(("mode", "rank"), [("off", 0), ("line", 1), ("bar", 1), ("auto", 3)])
def test_nothing(mode: str, rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    shown = display(mode, rank=rank)
    shown.say("table")
    shown.step(RESULT)
    shown.close()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


class Terminal:
    """A pseudo-terminal of 120 columns that can replace standard output."""

    def __init__(self) -> None:
        self._reader, writer = pty.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 120, 0, 0))
        self.output = os.fdopen(writer, "w")

    def text(self) -> str:
        """Close the terminal, and return what was written."""
        self.output.close()
        found = b""
        try:
            while part := os.read(self._reader, 65536):
                found += part
        except OSError:  # how Linux reports the end
            pass
        os.close(self._reader)
        return found.decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    made = Terminal()
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.output.close()


@pytest.mark.parametrize("mode", ["bar", "auto"])
def test_bar_on_a_terminal(mode: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal.output)
    shown = display(mode, start=2)
    shown.say("a table\nof two lines")
    for step in range(3, STEPS + 1):
        shown.step(replace(RESULT, step=step))
    shown.say("validation")
    shown.close()
    text = terminal.text()
    assert "\r" in text
    drawn = re.split(r"[\r\n]+", text)
    assert any("100%" in part and "5/5" in part and "loss 1.2500" in part for part in drawn)
    assert any("2,000 tokens/s" in part for part in drawn)
    for said in ("a table", "of two lines", "validation"):
        assert sum(part.strip() == said for part in drawn) == 1


def test_lines_under_a_launcher_even_on_a_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mpirun gives ranks a terminal, and then puts a tag in front of every line."""
    monkeypatch.setattr(sys, "stdout", terminal.output)
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    shown = display("auto", steps=1)
    shown.step(RESULT)
    assert re.fullmatch(r"step 1/1  loss [^\r\n]*\r\n", terminal.text())

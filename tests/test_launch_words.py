"""Open MPI's messages become one line each; everything else passes as it came."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.launch.stderr_filter import Filter
from trainer.launch.words import Means, Word

RECORDED = Path(__file__).parent / "fixtures/open_mpi_words"  # of Open MPI 4.1.8, on two hosts


class Taken:
    """A filter with what it shows and hears, and a clock."""

    def __init__(self) -> None:
        self.shown, self.hidden, self.now = b"", b"", 0.0
        self.words: list[Word] = []
        self.filter = Filter(self._show, self._hear, lambda: self.now)

    def _show(self, data: bytes) -> None:
        self.shown += data

    def _hear(self, word: Word, text: bytes) -> None:
        self.words.append(word)
        self.hidden += text

    @property
    def lines(self) -> list[str]:
        return [word.text for word in self.words if word.text]


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for first in range(0, len(data), size):
        yield data[first : first + size]


@pytest.mark.parametrize("size", [1, 7, 100000])
@pytest.mark.parametrize(
    ("name", "means", "line", "code"),
    [
        ("killed", Means.RANK, "rank 1 on host h2 was killed by SIGKILL, by someone, or by the kernel", 137),
        ("exit_code", Means.RANK, "", 3),
        ("abort", Means.NOTHING, "", None),
        ("primary", Means.NOTHING, "", None),
        ("improper", Means.RANK, "rank 0 on host h1 ended without a word", None),
        ("lost_host", Means.HOST, "host h3 is lost", None),
        ("no_daemon", Means.HOST, "a host is lost, or Open MPI's daemon did not start there", None),
        ("slots", Means.START, "the hosts have fewer than 4 slots", None),
        ("program", Means.START, "host h1 cannot run /nonexistent: install", None),
        ("folder", Means.START, "host h1 has no folder /nodir: start", None),
    ],
)
def test_recorded(name: str, means: Means, line: str, code: int | None, size: int) -> None:
    text = (RECORDED / f"{name}.txt").read_bytes()
    taken = Taken()
    for piece in pieces(b"before\n" + text + b"after\n", size):
        taken.filter.feed(piece)
    assert taken.shown == b"before\nafter\n"
    assert taken.hidden == text
    assert taken.words[-1].means is means
    assert taken.words[-1].code == code
    assert len(taken.lines) == bool(line)
    assert not line or taken.lines[0].startswith(line)


@pytest.mark.parametrize("size", [1, 3, 100000])
@pytest.mark.parametrize(
    "text",
    [
        b"step 1/10 \rstep 2/10 \r",
        b"--------\nours\n--------\n",
        b"-" * 74 + b"\nA table of ours\n" + b"-" * 74 + b"\n",
        b"-" * 80 + b"\n",
        b"[h1] a line\n[h2:12] another\n[] \n",
        "\u2588\u2588 50%".encode() + b"\x1b[K\n\n",
        b"mpirun: Forwarding signals is what it does\n",
        b"\xff\x00\n",
    ],
)
def test_other_text_passes(text: bytes, size: int) -> None:
    taken = Taken()
    for piece in pieces(text, size):
        taken.filter.feed(piece)
    taken.filter.flush()
    assert taken.shown == text
    assert not taken.words


def test_what_cannot_be_open_mpis_passes_at_once() -> None:
    taken = Taken()
    taken.filter.feed(b"step 1/10")
    assert taken.shown == b"step 1/10"
    taken.filter.feed(b"-" * 74)  # in the middle of a line
    assert taken.shown == b"step 1/10" + b"-" * 74
    assert taken.filter.patience is None


def test_a_block_that_does_not_end_passes_after_a_second() -> None:
    taken = Taken()
    begun = b"-" * 74 + b"\nmpirun noticed that"
    taken.filter.feed(begun)
    assert taken.shown == b""
    assert taken.filter.patience == 1.0
    taken.now = 1.1
    taken.filter.expire()
    assert taken.shown == begun


def test_single_lines() -> None:
    lines = (
        b"mpirun: Forwarding signal 10 to job\n",
        b"[h1:01544] 1 more process has sent help message help-mpi-btl-tcp.txt / peer hung up\n",
        b'[h1:01544] Set MCA parameter "orte_base_help_aggregate" to 0 to see all help / error messages\n',
    )
    for size in (1, 1000):
        taken = Taken()
        for piece in pieces(b"".join(lines) + b"ours\n", size):
            taken.filter.feed(piece)
        assert taken.shown == b"ours\n"
        assert taken.hidden == b"".join(lines)

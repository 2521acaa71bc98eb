"""Limits of the system: raised, named, or no reason to fail."""

import errno
import os
import resource
import subprocess
import sys

import pytest
import torch

from tests.support.launch import REPOSITORY
from trainer.distributed import failure
from trainer.distributed.failure import message
from trainer.distributed.heartbeat import Heartbeat
from trainer.distributed.limits import explain


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOMEM, "no"), "out of memory"),
        (ImportError("libx.so: failed to map segment from shared object"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), "out of memory"),
        (OSError(errno.EMFILE, "no"), "`ulimit -n` is"),
        (RuntimeError("can't start new thread"), "no further thread"),
    ],
)
def test_a_limit_is_named(error: BaseException, words: str) -> None:
    assert words in str(explain(error))
    assert message(error, 0).splitlines()[-1].startswith("trainer: ")


def test_memory_of_a_gpu_is_named_with_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.distributed.failure.heartbeat", Heartbeat())
    failure.heartbeat.describe(stages=[1], replica=2, layers="block.4 to head")
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    last = message(error, 5).splitlines()[-1]
    assert last.startswith("trainer: rank 5 (stage 1, replica 2, layers block.4 to head, host ")
    assert "out of memory of the GPU: memory.recompute=full, more layout.stages" in last


def test_other_errors_are_not_explained() -> None:
    assert explain(ValueError("no")) is None
    assert explain(OSError(errno.ENOENT, "no")) is None


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"from trainer.distributed.limits import prepare_process\n{code}"]
    env = {**os.environ, **variables}
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)


def test_text_that_the_locale_cannot_print() -> None:
    result = python("prepare_process(); print('caf\\u00e9')", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout) == (0, "caf?\n")


def test_more_files_may_be_opened() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    lower = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, {hard}))"
    look = "prepare_process(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    assert python(f"{lower}\n{look}").stdout == f"{hard}\n"


def test_too_few_files() -> None:
    result = python(
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30)); prepare_process()"
    )
    assert "may open 30 files, but MPI needs at least 64" in result.stderr

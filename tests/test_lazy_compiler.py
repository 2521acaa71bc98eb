"""A process that compiles nothing does not import torch's compiler; one that compiles does, once."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SETUP = """
import inspect, sys
import torch
from torch.utils.flop_counter import FlopCounterMode
from trainer.distributed.lazy_compiler import postpone_compiler
postpone_compiler()
@torch._disable_dynamo
def hidden(x):
    return torch.compiler.is_compiling(), x + 1
def visible(x):
    return torch.compiler.is_compiling(), x + 1
weight = torch.nn.Parameter(torch.ones(2))
hidden(weight)
optimizer = torch.optim.AdamW([weight])
optimizer.step()
"""
IMPORTED = "'torch._dynamo.eval_frame' in sys.modules"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_uses_that_only_hide_do_not_import_it() -> None:
    """Those of optimizers, dispatch modes and the meta device; nor does a tool that looks at every module."""
    code = f"""{SETUP}
with FlopCounterMode(display=False), torch.device("meta"):
    torch.nn.Linear(2, 2)(torch.zeros(1, 2))
inspect.getmodule(inspect.currentframe())
print({IMPORTED})
"""
    assert run(code) == "False\n"


@pytest.mark.parametrize("use", ["torch.compiler.reset()", "from torch._dynamo.utils import counters"])
def test_other_uses_import_it_once(use: str) -> None:
    """A second copy of a submodule would count nothing; a function that ran before it still hides."""
    code = f"""{SETUP}
{use}
print({IMPORTED}, *(torch.compile(f, backend="eager")(weight)[0] for f in (visible, hidden)))
import torch._dynamo.utils
print(torch._dynamo.utils.counters["frames"]["ok"] > 0)
"""
    assert run(code).splitlines() == ["True True False", "True"]


def test_training_does_not_import_it(tmp_path: Path) -> None:
    arguments = ["experiment=small", "train.steps=1", "eval.samples=1", f"run.dir={tmp_path}/run"]
    code = f"""
import runpy, sys
sys.argv += {arguments}
runpy.run_module("trainer", run_name="__main__")
print({IMPORTED})
"""
    assert run(code).splitlines()[-1] == "False"

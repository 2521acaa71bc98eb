"""What Horovod's build must know about a torch, read from its files because importing it takes seconds.

`python -m launch.install.torch_facts` prints the facts about its own interpreter's torch as JSON.
"""

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class TorchFacts:
    """One installed torch.

    Attributes:
        version: Its version with the local part, such as `2.13.0+cpu`.
        cuda: The CUDA version that it was built for; empty for a CPU build.
        folder: The package's folder.
        cxx_standard: The C++ standard that its headers need: 17, or 20 from torch 2.14 on.
        distribution: The version that pip sees; empty if the package has no metadata.
        python_tag: Python's version and ABI, such as `cp311`.
    """

    version: str
    cuda: str
    folder: str
    cxx_standard: int
    distribution: str
    python_tag: str


def read_version(folder: Path) -> str:
    """Return the version in `torch/version.py`, or an empty string if there is none."""
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^__version__ = ['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return found.group(1) if found else ""


def required_standard(all_h: str) -> int:
    """Return the C++ standard that `torch/all.h` requires.

    Args:
        all_h: The text of the header, with a line such as `__cplusplus < 202002L`.
    """
    found = re.search(r"__cplusplus < (20\d\d)\d\dL", all_h)
    return {"2017": 17, "2020": 20, "2023": 23}.get(found.group(1), 17) if found else 17


def facts() -> TorchFacts | None:
    """Return the facts about this interpreter's torch, or None if it has none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    version_text = (folder / "version.py").read_text(encoding="utf-8")
    cuda = re.search(r"^cuda\b[^=]*= ['\"]([\d.]+)['\"]", version_text, re.MULTILINE)
    header = folder / "include/torch/csrc/api/include/torch/all.h"
    try:
        distribution = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        distribution = ""
    return TorchFacts(
        version=read_version(folder),
        cuda=cuda.group(1) if cuda else "",
        folder=str(folder),
        cxx_standard=required_standard(header.read_text(encoding="utf-8") if header.exists() else ""),
        distribution=distribution,
        python_tag=f"cp{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}",
    )


def ask(python: Path, root: Path, env: Mapping[str, str]) -> TorchFacts | None:
    """Return the facts about another interpreter's torch, or None if it has none."""
    command = [str(python), "-m", "launch.install.torch_facts"]
    answer = subprocess.run(command, cwd=root, env=dict(env), stdout=subprocess.PIPE, text=True, check=True)
    data = json.loads(answer.stdout)
    return TorchFacts(**data) if data else None


if __name__ == "__main__":
    found = facts()
    print(json.dumps(asdict(found) if found else None))

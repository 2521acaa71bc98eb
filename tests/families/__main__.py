"""`python -m tests.families [FAMILY ...]`: compares small models of transformers' families, cut and whole.

Without names all families run on four ranks, and docs/families.md is written. A comparison that ends the
ranks is an outcome too: the others continue in another launch. `--folder` keeps what is known, and continues
from it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from tests.families.configurations import families, small_folder
from tests.families.page import PAGE, page
from tests.families.ranks import OUTCOMES, OVERRIDES, RUNNING

_RANKS = 4
_UNTRIED = "untried.json"


def main() -> None:
    """Compare families, print the outcomes, and write the page if all of them ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        _compare(given.families, given.folder or Path(scratch))


def _compare(names: list[str], folder: Path) -> None:
    import transformers  # noqa: PLC0415

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / _UNTRIED
    untried: dict[str, str] = json.loads(known.read_text()) if known.exists() else {}
    for family in names or families():
        if family not in untried and not (folder / family).exists():
            why = small_folder(family, folder)
            if why is not None:
                untried[family] = why
                print(f"{family}: {why}", flush=True)
    known.write_text(json.dumps(untried, indent=1))
    while not _launched(folder):
        pass
    if not names:
        outcomes = json.loads((folder / OUTCOMES).read_text())
        PAGE.write_text(page(outcomes, untried, families(), transformers.__version__))


def _launched(folder: Path) -> bool:
    """Run what has not run yet; return whether all of it has."""
    command = [sys.executable, "-m", "tests.families.ranks", *OVERRIDES, f"model.path={folder}"]
    launch = subprocess.run(
        ["horovodrun", "-np", str(_RANKS), *command], stderr=subprocess.PIPE, text=True, check=False
    )
    if launch.returncode == 0:
        return True
    written = folder / OUTCOMES
    outcomes = json.loads(written.read_text()) if written.exists() else {}
    if RUNNING not in outcomes:
        raise SystemExit(launch.stderr)
    lines = [line for line in launch.stderr.splitlines() if "Error" in line] or [
        f"exit code {launch.returncode}"
    ]
    outcomes[outcomes.pop(RUNNING)] = f"failed: {lines[-1].strip()[:200]}"
    written.write_text(json.dumps(outcomes, indent=1))
    return False


if __name__ == "__main__":
    main()

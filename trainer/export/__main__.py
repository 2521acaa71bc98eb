"""`python -m trainer.export RUN FOLDER`: writes a run's model as a folder that `from_pretrained` opens.

RUN is the folder of a run with model=hf, or one of its checkpoints. The weights are read and written layer by
layer, so that a model larger than this machine's memory can be exported; ranks are not needed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoint.checkpoint import Checkpoint
from trainer.checkpoint.folders import checkpoint_at
from trainer.errors import EXIT_USER_ERROR, UserError
from trainer.export.run import read_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Export what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run, or of a checkpoint")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder to write; it must not exist")
    given = parser.parse_args(arguments)
    try:
        checkpoint = Checkpoint(checkpoint_at(given.run, "RUN"))
        model = read_model(checkpoint.path)
        from trainer.hf.export import export  # noqa: PLC0415  (imports transformers)

        export(checkpoint, model, given.folder)
        print(f"exported: step {checkpoint.progress().step} of {checkpoint.path} to {given.folder}")
    except UserError as error:
        print(f"trainer: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())

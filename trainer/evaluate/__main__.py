"""`python -m trainer.evaluate run.dir=RUN`: the loss and the metrics of a trained model on held-out samples.

The model is that of a run, of a checkpoint (`checkpoint.resume=PATH`) or of a folder of Hugging Face's
(`model=hf model.path=FOLDER`); the layout is this launch's own.
"""

from typing import TYPE_CHECKING

from trainer.command import run_command
from trainer.config.schema import Config

if TYPE_CHECKING:
    from trainer.distributed.world import World


def main() -> None:
    """Evaluate as configured on the command line."""
    run_command(_evaluate, prepare=_prepare, from_run=True)


def _prepare(config: Config) -> None:
    if config.train.steps is None and config.train.epochs is None:
        config.train.steps = 1  # none is taken


def _evaluate(config: Config, world: "World") -> None:
    from trainer.evaluate.results import report  # noqa: PLC0415  (after the configuration has been checked)
    from trainer.run import Run  # noqa: PLC0415

    report(Run(config, world))
    world.barrier()  # a rank that exits early would shut Horovod down for the others


if __name__ == "__main__":
    main()

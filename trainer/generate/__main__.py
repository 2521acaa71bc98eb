"""`python -m trainer.generate`: continues prompts with a trained model, in any layout.

horovodrun -np 2 python -m trainer.generate run.dir=RUN generate.prompts=prompts.txt
"""

import sys
from typing import TYPE_CHECKING

from trainer.command import run_command
from trainer.config.from_run import Saved
from trainer.config.schema import Config

if TYPE_CHECKING:
    from trainer.distributed.world import World

_TOKENS = 128  # where generate.tokens is 0


def main() -> None:
    """Generate as configured on the command line."""
    sys.argv[1:] = _without_data(sys.argv[1:])
    run_command(_generate, prepare=_prepare, from_run=True)


def _without_data(words: list[str]) -> list[str]:
    """Return a command line that needs no data: that of a Hugging Face folder, without a run."""
    if "model=hf" not in words or Saved.of(words) or any(word.startswith("data") for word in words):
        return words
    at = words.index("model=hf")
    return [*words[:at], "data=text", "data.context=1", *words[at:]]


def _prepare(config: Config) -> None:
    config.generate.tokens = config.generate.tokens or _TOKENS


def _generate(config: Config, world: "World") -> None:
    from trainer.generate.job import generate  # noqa: PLC0415  (after the configuration has been checked)

    generate(config, world)
    world.barrier()  # a rank that exits early would shut Horovod down for the others


if __name__ == "__main__":
    main()

"""`python -m tests.support.mutated_verify MUTATION ...`: `trainer.verify`, with a mistake in the trainer."""

import sys

from tests.support.mutations import MUTATIONS
from trainer.verify.__main__ import main

if __name__ == "__main__":
    with MUTATIONS[sys.argv.pop(1)]():
        main()

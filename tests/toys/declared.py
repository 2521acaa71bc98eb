"""`python -m tests.toys.declared model=toy data=toy optimizer=toy`: the trainer, with three more choices."""

from dataclasses import dataclass

from omegaconf import MISSING

from trainer.__main__ import main
from trainer.config.fields import below_one, one_of, plain, positive
from trainer.config.registry import choice
from trainer.config.schema import DataConfig, ModelConfig, OptimizerConfig


@choice("model", build="tests.toys.built:network")
@dataclass
class ToyModelConfig(ModelConfig):
    """Any number of linear layers with nonlinearities between them."""

    name: str = "toy"
    depth: int = positive(3, "linear layers")
    width: int = positive(8, "hidden units")
    between: str = one_of("tanh", ("tanh", "relu"), "the nonlinearity")


@choice("data", build="tests.toys.built:load", prepare="tests.toys.built:prepare")
@dataclass
class ToyDataConfig(DataConfig):
    """Points of the plane, labelled by whether their coordinates have one sign."""

    name: str = "toy"
    file: str = plain(MISSING, "the file of the points; one rank of each node writes it")
    points: int = positive(64, "points to write")


@choice("optimizer", build="tests.toys.built:sign_descent")
@dataclass
class ToyOptimizerConfig(OptimizerConfig):
    """Steps of the learning rate's size against the sign of a decaying sum of gradients."""

    name: str = "toy"
    lr: float = 0.01
    memory: float = below_one(0.5, "decay of the sum")

    def state_per_weight(self) -> int:
        """Return how many numbers the optimizer keeps for each weight."""
        return 1


if __name__ == "__main__":
    main()

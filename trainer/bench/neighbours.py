"""`python -m trainer.bench.neighbours experiment=bert`: what a model of masked tokens has to surpass.

The likeliest token given its two true neighbours, as counted in the training part, predicts the validation
part's masked tokens: the very ones that validation predicts. The model sees 8 of 10 neighbours masked less
often than it sees them, but the rest of the sample too. The command line is that of `python -m trainer`; it
needs no ranks.

Where the training part never has a pair of neighbours, the likeliest token after the left one answers; where
it never has that one either, the likeliest of all.
"""

from typing import TYPE_CHECKING, Any

from trainer.command import run_command
from trainer.config.schema import Config
from trainer.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer.distributed.world import World


class Neighbours:
    """The likeliest token between two others.

    Args:
        tokens: Samples of tokens [samples, time], from which it counts.
        vocabulary: The number of distinct tokens.
    """

    def __init__(self, tokens: "NDArray[Any]", vocabulary: int) -> None:
        import numpy as np  # noqa: PLC0415  (commands import numbers after the configuration is checked)

        self._edge = vocabulary  # stands before the first token and after the last
        self._size = vocabulary + 1
        left, right = self._sides(tokens)
        middle = tokens.ravel()
        self._of_both = _Likeliest(left * self._size + right, middle, self._size)
        self._of_left = _Likeliest(left, middle, self._size)
        self._of_none = int(np.bincount(middle).argmax())

    def predict(self, tokens: "NDArray[Any]") -> "NDArray[Any]":
        """Return the likeliest token at every place of some samples [samples, time]."""
        left, right = self._sides(tokens)
        guess = self._of_left.of(left, self._of_none)
        return self._of_both.of(left * self._size + right, guess).reshape(tokens.shape)

    def _sides(self, tokens: "NDArray[Any]") -> tuple["NDArray[Any]", "NDArray[Any]"]:
        """Return the left and the right neighbours of all places, one after another."""
        import numpy as np  # noqa: PLC0415

        padded = np.pad(tokens.astype(np.int64), ((0, 0), (1, 1)), constant_values=self._edge)
        return padded[:, :-2].ravel(), padded[:, 2:].ravel()


class _Likeliest:
    """The most frequent token of every key; of equally frequent ones the lowest."""

    def __init__(self, keys: "NDArray[Any]", tokens: "NDArray[Any]", size: int) -> None:
        import numpy as np  # noqa: PLC0415

        joined, counts = np.unique(keys * size + tokens, return_counts=True)
        keys, tokens = np.divmod(joined, size)
        order = np.lexsort((-tokens, counts, keys))  # of a key the best one last
        last = np.flatnonzero(np.append(np.diff(keys[order]), 1))
        self._keys, self._tokens = keys[order][last], tokens[order][last]

    def of(self, keys: "NDArray[Any]", otherwise: Any) -> "NDArray[Any]":
        """Return the token of each key; where it was never seen, `otherwise`."""
        import numpy as np  # noqa: PLC0415

        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        result: NDArray[Any] = np.where(self._keys[places] == keys, self._tokens[places], otherwise)
        return result


def accuracies(data: Any, samples: int) -> tuple[float, float, int]:
    """Return the accuracy on masked tokens: given the neighbours, of the likeliest token; and their number.

    Args:
        data: Data whose samples are `Masked`, and equally long.
        samples: The number of validation samples, from the first on; 0 for all.

    Raises:
        UserError: The data masks no tokens.
    """
    import numpy as np  # noqa: PLC0415

    from trainer.data.masked import IGNORED, Masked, tokens_of  # noqa: PLC0415

    if not isinstance(data.training, Masked) or not isinstance(data.validation, Masked):
        raise UserError("this data masks no tokens: use data.objective=masked, or data=pairs")
    training = tokens_of(data.training.original.inputs(np.arange(len(data.training))))
    held_out = np.arange(min(samples, len(data.validation)) if samples else len(data.validation))
    targets = data.validation.targets(held_out).numpy()
    predicted = Neighbours(training, data.vocabulary).predict(
        tokens_of(data.validation.original.inputs(held_out))
    )
    masked = targets != IGNORED
    common = np.bincount(training.ravel()).argmax()
    right = predicted[masked] == targets[masked]
    return float(right.mean()), float((targets[masked] == common).mean()), int(masked.sum())


def _report(config: Config, _world: "World | None") -> None:
    from trainer.data.build import load_data  # noqa: PLC0415

    given, common, number = accuracies(load_data(config.data), config.eval.samples)
    print(f"accuracy on {number:,} masked tokens of the validation part")
    print(f"  the likeliest token given both neighbours  {given:.4f}")
    print(f"  the likeliest token                        {common:.4f}")


def _prepare(config: Config) -> None:
    if config.train.steps is None and config.train.epochs is None:
        config.train.steps = 1


if __name__ == "__main__":
    run_command(_report, with_ranks=False, prepare=_prepare)

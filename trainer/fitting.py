"""Training from Python, in a script or a notebook: `trainer.fit` takes objects where the command takes paths.

    from trainer import fit

    fitted = fit(network, dataset, blocks=["layers"], overrides=["train.epochs=3"])

A script that calls it trains on as many ranks as start it: `horovodrun -np 4 python script.py`.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.command import run_command, run_jobs
from trainer.config.given import give
from trainer.distributed import environment
from trainer.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from trainer.config.schema import Config
    from trainer.distributed.world import World


@dataclass(frozen=True)
class Fitted:
    """A run that has ended.

    Attributes:
        folder: Its folder, for `trainer.report`, `trainer.evaluate` and `trainer.export`.
        steps: The numbers of every step, as in `metrics.jsonl`.
        validation: The loss and the metrics of the last validation, by name; empty if there was none.
        make: Returns the module that was given or built; None where layers are no module's (`model=gpt`).
    """

    folder: Path
    steps: Sequence[dict[str, Any]]
    validation: dict[str, float]
    make: "Callable[[], nn.Module] | None" = None

    def module(self) -> "nn.Module":
        """Return the module with the weights of the newest checkpoint, whole, on the CPU.

        Raises:
            UserError: The model is not a module, or this machine has no checkpoint of the run.
        """
        from trainer.checkpoint.checkpoint import Checkpoint  # noqa: PLC0415  (imports torch)
        from trainer.checkpoint.folders import checkpoint_at  # noqa: PLC0415
        from trainer.models.model import LOSS  # noqa: PLC0415

        if self.make is None:
            raise UserError("the run's model is a list of layers, not a module")
        module, checkpoint = self.make(), Checkpoint(checkpoint_at(str(self.folder), "run.dir"))
        saved = [checkpoint.weights(layer) for layer in checkpoint.layers if layer != LOSS]
        module.load_state_dict({name: each for layer in saved for name, each in layer.items()}, strict=False)
        return module


def fit(
    model: "nn.Module | Callable[[], nn.Module] | None" = None,
    data: Any = None,
    *,
    blocks: Sequence[str] = (),
    loss: Callable[..., Any] | None = None,
    metrics: Sequence[str | Callable[..., Any]] | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    overrides: Sequence[str] = (),
) -> Fitted:
    """Train a model, and return what the run made of it; every rank calls this alike.

    Args:
        model: A module, whose weights are where training starts and must be equal on all ranks; or what
            builds one, with which each rank makes its own layers only, from the run's seed. None: `overrides`
            choose (`model=gpt`).
        data: A dataset of torch's, a pair of them (to train on and to validate), or what returns one of
            these. None: `overrides` choose (`data=digits`).
        blocks: The paths of the model's parts to cut between.
        loss: A function of output and target, or a module; None: the cross-entropy of classes.
        metrics: What validations report: names, or functions of output and target that return a sum and a
            count. None: what the data suggests.
        collate: Makes a batch of a list of the dataset's items; None: torch's.
        overrides: Any further keys, as on the command line: `["optimizer.lr=1e-3", "layout.stages=2"]`.

    Returns:
        The run.

    Raises:
        UserError: Something given is wrong. Among several ranks the process then exits, as the command does.
    """
    words: list[str] = []
    make = (lambda: model) if _is_module(model) else model
    if model is not None:
        target = give(make, name=_name(model))
        words += ["model=module", f"model.target={target}", f"model.blocks=[{','.join(blocks)}]"]
    if data is not None:
        target = give(data if _is_function(data) else lambda: data, name=_name(data))
        words += ["data=custom", f"data.target={target}"]
    if collate is not None:
        words.append(f"data.collate={give(collate, name=_name(collate))}")
    if loss is not None:
        words.append(f"loss.target={give(loss, name=_name(loss))}")
    if metrics is not None:
        names = [each if isinstance(each, str) else give(each, name=_name(each)) for each in metrics]
        words.append(f"metrics=[{','.join(names)}]")
    words = [] if not words else ["experiment=none", *words]
    return _train([*words, *overrides], model, make)


def _train(words: Sequence[str], model: Any, make: Any) -> Fitted:
    """Run the command in this process; the others of a launch end with it if it fails."""
    fitted: list[Fitted] = []

    def job(config: "Config", world: "World") -> None:
        from trainer.run import Run  # noqa: PLC0415  (imports torch: only once the configuration is valid)
        from trainer.train import train  # noqa: PLC0415

        if _is_module(model):  # each rank made its own
            world.agree("modules", {"weights": _digest(model)})
        train(Run(config, world))
        fitted.append(_fitted(Path(str(config.run.dir)), world, make))

    with _command_line(words):
        if environment.launched():
            run_command(job)
        else:
            run_jobs(job)
    return fitted[-1]


def _fitted(folder: Path, world: "World", make: Any) -> Fitted:
    lines = (folder / "metrics.jsonl").read_text().splitlines() if world.rank == 0 else []
    objects = [json.loads(line) for line in world.all_gather_objects(lines)[0]]
    validations = [each for each in objects if "val_loss" in each]
    last = {} if not validations else validations[-1]
    return Fitted(
        folder,
        [each for each in objects if "loss" in each],
        {name.removeprefix("val_"): value for name, value in last.items() if name != "step"},
        make,
    )


@contextmanager
def _command_line(words: Sequence[str]) -> Iterator[None]:
    """Replace the process's command line, which Hydra and the messages read."""
    before, sys.argv = sys.argv, ["trainer", *words]
    try:
        yield
    finally:
        sys.argv = before


def _is_module(thing: Any) -> bool:
    from torch import nn  # noqa: PLC0415  (takes a second)

    return isinstance(thing, nn.Module)


def _is_function(thing: Any) -> bool:
    return callable(thing) and not hasattr(thing, "__getitem__")


def _digest(module: "nn.Module") -> str:
    from trainer.pipeline.tensor_bytes import bytes_of  # noqa: PLC0415  (imports torch)

    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(bytes_of(tensor.detach().cpu()))
    return digest.hexdigest()


def _name(thing: Any) -> str:
    return str(getattr(thing, "__name__", type(thing).__name__))

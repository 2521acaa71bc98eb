"""What every rank of a launch does: train one small model after another, on 1, 2 and 4 of the ranks.

For every family in a folder, with a padded batch and without padding: the logits of an evaluation, and the
logits and all gradients of a step of training, against those of transformers' own model in rank 0's process.
Dropout is 0. Rank 0 writes the outcomes to the folder's `outcomes.json`, with the comparison that is running.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families.configurations import VOCABULARY
from tests.support.hf_models import tokens
from trainer import command
from trainer import run as run_module
from trainer.config.schema import Config
from trainer.data.dataset import Data
from trainer.distributed.world import Communicator, World
from trainer.errors import UserError
from trainer.evaluation import evaluate
from trainer.plan import agreed_costs
from trainer.run import Run
from trainer.step import TrainStep
from trainer.verify.values import Values

EQUAL = "equal"
OUTCOMES = "outcomes.json"
RUNNING = "running"
WAYS = ("unpadded", "padded")
SAMPLES = 3  # all in one micro-batch
OVERRIDES = (
    "experiment=none",
    "model=hf",
    "model.load=config",
    "data=custom",
    "data.target=tests.families.ranks:data",
    "+data.options.way=unpadded",
    f"batch.global_size={SAMPLES}",
    f"batch.micro_size={SAMPLES}",
    f"eval.samples={SAMPLES}",
    "threads=1",
    "device=cpu",
    "train.steps=1",
)


def data(way: str) -> Data:
    """Return samples with or without padding."""
    return tokens(VOCABULARY, padded=way == "padded")


def main() -> None:
    """Compare the models in the folders within `model.path`."""
    command.run_command(_compare_all)


def _compare_all(config: Config, world: World) -> None:
    root = Path(_model(config).path)
    written = root / OUTCOMES
    outcomes: dict[str, str] = json.loads(written.read_text()) if written.exists() else {}
    world.barrier()  # all have read
    stages = [number for number in (1, 2, 4) if number <= world.size]
    parts = {number: _first_ranks(world, number) for number in stages}
    for folder in sorted(path.parent for path in root.glob("*/config.json")):
        for way in WAYS:
            with _building_once():
                for number, part in parts.items():
                    case = f"{folder.name} {way} {number}"
                    if case in outcomes:
                        continue
                    if world.rank == 0:
                        written.write_text(json.dumps({**outcomes, RUNNING: case}, indent=1))
                    if part is not None:
                        outcomes[case] = _outcome(_configured(config, folder, way, number), part)
                    world.barrier()
        if world.rank == 0:
            written.write_text(json.dumps(outcomes, indent=1))
            found = dict.fromkeys(outcomes[f"{folder.name} {way} {n}"] for way in WAYS for n in stages)
            print(f"{folder.name}: {'; '.join(found)}", flush=True)


def _first_ranks(world: World, number: int) -> World | None:
    """Return a world of the first ranks; None on the others."""
    comm = world.comm.Split(int(world.rank >= number), world.rank)
    if world.rank >= number:
        return None
    part = copy.copy(world)
    Communicator.__init__(part, comm, world.meter)
    return part


@contextmanager
def _building_once() -> Iterator[None]:
    """Analyse a model, and count its costs, once for all layouts: neither depends on the layout."""
    with ExitStack() as stack:
        for module, name in ((run_module, "build_model"), (agreed_costs, "model_costs")):
            stack.enter_context(mock.patch.object(module, name, _once(getattr(module, name))))
        yield


def _once(function: Any) -> Any:
    known: list[Any] = []

    def first(*args: Any) -> Any:
        if not known:
            try:
                known.append(function(*args))
            except UserError as error:
                known.append(error)
        if isinstance(known[0], UserError):
            raise known[0]
        return known[0]

    return first


def _configured(config: Config, folder: Path, way: str, stages: int) -> Config:
    config = copy.deepcopy(config)
    _model(config).path = str(folder)
    config.data.options["way"] = way  # type: ignore[union-attr]
    config.layout.stages = stages
    return config


def _model(config: Config) -> Any:
    return config.model


def _outcome(config: Config, world: World) -> str:
    """Return `EQUAL`, a refusal's message, or what differs; on rank 0."""
    try:
        run = Run(config, world)
    except UserError as error:
        return f"refused: {error}".replace(_model(config).path, "FOLDER")
    launch = _Launch(run)
    weights = launch.gathered("weight")
    logits = launch.evaluated(), launch.trained()
    gradients = launch.gathered("gradient")
    if world.rank > 0:
        return EQUAL
    with torch.enable_grad():
        return _difference(run, _whole(run, weights), logits, gradients)


class _Launch:
    """What the ranks compute."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._values = Values(run)
        self._outputs: list[Tensor] = []
        if run.holds_last_stage:
            last = run.forwards[-1].layer.module
            last.register_forward_hook(lambda _, __, output: self._outputs.append(output.detach().clone()))

    def gathered(self, kind: str) -> dict[str, Tensor]:
        """Return values of all layers, by their names in the model, on rank 0."""
        return {
            key.partition("/")[2]: value.clone()
            for _, named in self._values.gather(kind)
            for key, value in named.items()
        }

    def evaluated(self) -> Tensor:
        """Return the logits of an evaluation."""
        evaluate(self._run, SAMPLES)
        return self._last()

    def trained(self) -> Tensor:
        """Do a step, and return its logits."""
        TrainStep(self._run, 1, self._values.keep_gradients).run(1, 0)
        return self._last()

    def _last(self) -> Tensor:
        mine = self._outputs[-1] if self._outputs else None
        found: list[Tensor] = [each for each in self._run.world.all_gather_objects(mine) if each is not None]
        return found[-1]


def _whole(run: Run, weights: dict[str, Tensor]) -> nn.Module:
    """Return the model as transformers alone runs it, with the launch's weights."""
    from transformers import AutoConfig  # noqa: PLC0415

    from trainer.hf.folder import model_class  # noqa: PLC0415

    config: Any = AutoConfig.from_pretrained(_model(run.config).path)
    config.use_cache = False
    attention = run.layers[0].module.part.model.config._attn_implementation  # type: ignore[union-attr]
    whole: nn.Module = model_class(config, "")._from_config(
        config,
        dtype=torch.float32,
        # Without padding the launch's own leaves masks out, as transformers does where it may.
        attn_implementation="sdpa" if attention == "sdpa_unpadded" else attention,
        experts_implementation="batched_mm",
    )
    _, unexpected = whole.load_state_dict(weights, strict=False)
    every = list(whole.named_parameters(remove_duplicate=False))
    given = {id(parameter) for name, parameter in every if name in weights}
    lacking = [name for name, parameter in every if id(parameter) not in given]
    if lacking or unexpected:
        raise AssertionError(f"the launch lacks {lacking}, and has {unexpected} besides")
    return whole


def _difference(
    run: Run, whole: nn.Module, logits: tuple[Tensor, Tensor], gradients: dict[str, Tensor]
) -> str:
    """Return `EQUAL`, or what differs."""
    for training, seen in zip((False, True), logits, strict=True):
        samples = torch.as_tensor(run.order.samples(0, SAMPLES) if training else range(SAMPLES))
        inputs, targets = run.data.training.inputs(samples), run.data.training.targets(samples)
        output = whole.train(training)(
            **(inputs if isinstance(inputs, dict) else {"input_ids": inputs})
        ).logits
        if not torch.equal(output, seen):
            worst = (output - seen).abs().max().item()
            return f"the logits of {'training' if training else 'evaluation'} differ by {worst:.1e}"
    assert isinstance(targets, Tensor)
    loss = F.cross_entropy(output.flatten(0, 1), targets.flatten(), reduction="sum")
    (loss / targets.numel()).backward()
    for name, parameter in whole.named_parameters():
        zero = torch.zeros_like(parameter)  # no gradient is a gradient of zero
        expected = zero if parameter.grad is None else parameter.grad
        seen = gradients.get(name, zero)
        if not torch.equal(expected, seen):
            worst = ((seen - expected).abs().max() / expected.abs().max()).item()
            return f"equal but for the gradient of {name}, which is rounded otherwise ({worst:.0e})"
    return EQUAL


if __name__ == "__main__":
    main()

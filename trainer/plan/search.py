"""Every layout of a model on a number of ranks: those that fit, best first, and why the others do not."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from trainer.config.schema import Config
from trainer.config.sizes import parse_size, size_text
from trainer.errors import UserError
from trainer.models.model import Model
from trainer.pipeline.recomputation import Recompute
from trainer.plan.costs import LayerCost
from trainer.plan.hardware import Hardware, predict_step
from trainer.plan.plan import Plan
from trainer.schedule.resolve import recipes, resolve
from trainer.schedule.timeline import Timeline

Overrides = Mapping[str, Any]  # values by dotted key


@dataclass(frozen=True)
class Candidate:
    """A layout that fits.

    Attributes:
        overrides: What makes a run of the configuration have this layout.
        plan: The plan.
        bytes: The most that any rank holds, predicted.
        step: Its step, predicted, in seconds.
    """

    overrides: Overrides
    plan: Plan
    bytes: int
    step: Timeline

    def rank(self) -> tuple[float, int, int]:
        """Return what candidates are sorted by: the fastest first, then the smallest."""
        return self.step.seconds, self.bytes, self.plan.layout.workers


@dataclass(frozen=True)
class Misfit:
    """A layout that a run would refuse, or that needs more memory than a rank has.

    Attributes:
        overrides: What would ask for it.
        reason: Why not, in words.
        bytes: What a rank would hold, if that is the reason; else None.
    """

    overrides: Overrides
    reason: str
    bytes: int | None = None


class _TooLargeError(UserError):
    """A rank would hold more bytes than it has."""

    def __init__(self, held: int, limit: int) -> None:
        super().__init__(f"a rank would hold {size_text(held)}, more than the {size_text(limit)} that it has")
        self.held = held


def search(
    config: Config,
    model: Model,
    costs: Sequence[LayerCost],
    *,
    fixed: frozenset[str],
    hardware: Hardware,
) -> tuple[list[Candidate], list[Misfit]]:
    """Return the layouts that fit, the fastest first, and those that do not; see `settle` for the first.

    Tried are all numbers of stages, schedules, ways to recompute, and sharding of the optimizer, as far as
    the configuration leaves them open. With `plan.memory`, layers also recompute as little as that takes.

    Args:
        config: What every layout has in common; `plan.ranks` is the world's size.
        model: The model.
        costs: What its layers cost.
        fixed: The dotted keys that the user has given: they stay as they are.
        hardware: What the predictions assume.
    """
    found: dict[object, Candidate] = {}
    misfits: list[Misfit] = []
    for overrides in _alternatives(config, fixed, len(model.layers)):
        try:
            candidate = _candidate(
                with_values(config, overrides), overrides, model, costs, hardware, rough=True
            )
        except UserError as error:
            misfits.append(Misfit(overrides, str(error), getattr(error, "held", None)))
            continue
        # What the limit takes may be what a uniform choice is, too.
        choice = [overrides[key] for key in ("layout.stages", "schedule", "optimizer.sharded")]
        found.setdefault((*choice, candidate.plan.partition.recompute), candidate)
    return sorted(found.values(), key=Candidate.rank), misfits


def _alternatives(config: Config, fixed: frozenset[str], layers: int) -> Iterator[Overrides]:
    """Yield what there is to choose, as overrides of what the user left open."""
    workers = config.plan.ranks * config.layout.devices_per_rank
    stages: list[Any] = [n for n in range(1, min(workers, layers) + 1) if workers % n == 0]
    if "layout.stages" in fixed:
        stages = [config.layout.stages]
    schedules = [config.schedule] if "schedule" in fixed else list(recipes())
    shardings = [config.optimizer.sharded] if "optimizer.sharded" in fixed else [False, True]
    for number in stages:
        for schedule in schedules if number != 1 else [config.schedule]:  # one stage has one order
            for sharded in shardings:
                if sharded and number == workers and "optimizer.sharded" not in fixed:
                    continue  # one replica has nothing to divide
                for memory in _memories(config, fixed):
                    yield {
                        "layout.stages": number,
                        "schedule": schedule,
                        "optimizer.sharded": sharded,
                        **memory,
                    }


def _memories(config: Config, fixed: frozenset[str]) -> Iterator[Overrides]:
    """Yield the ways to recompute: uniformly, and as little as the limit takes."""
    if "memory.recompute" in fixed:
        yield {"memory.recompute": config.memory.recompute, "memory.limit": None}
        return
    for mode in Recompute:
        yield {"memory.recompute": mode.value, "memory.limit": None}
    if config.plan.memory is not None:
        yield {"memory.recompute": "none", "memory.limit": config.plan.memory}


def with_values(config: Config, overrides: Overrides) -> Config:
    """Return the configuration with some values changed."""
    changed = deepcopy(config)
    for key, value in overrides.items():
        *path, name = key.split(".")
        part: Any = changed
        for step in path:
            part = getattr(part, step)
        setattr(part, name, value)
    return changed


def settle(candidate: Candidate, hardware: Hardware) -> Candidate:
    """Return a candidate with the very schedule that a run would have, which may take a search to find.

    Raises:
        UserError: With that schedule it does not fit after all.
    """
    plan = candidate.plan
    return _candidate(
        plan.config, candidate.overrides, plan.model, plan.partition.costs, hardware, rough=False
    )


def _candidate(
    config: Config,
    overrides: Overrides,
    model: Model,
    costs: Sequence[LayerCost],
    hardware: Hardware,
    *,
    rough: bool,
) -> Candidate:
    """Return a layout with its predictions.

    Args:
        config: The configuration of the layout.
        overrides: What makes it so.
        model: The model.
        costs: What its layers cost.
        hardware: What the predictions assume.
        rough: Whether a schedule that takes a search to find may be one that is found sooner.

    Raises:
        UserError: It is none, or a rank would hold more than it has.
    """
    recipe = resolve(config.schedule)
    plan = Plan(config, model, costs, config.plan.ranks, recipe.rough() if rough else recipe)
    most = max(plan.memory.total(rank) for rank in range(plan.layout.ranks_per_group))
    limit = parse_size(config.plan.memory)
    if limit is not None and most > limit:
        raise _TooLargeError(most, limit)
    return Candidate(overrides, plan, most, predict_step(plan, hardware))

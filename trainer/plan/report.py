"""What `python -m trainer.plan` prints."""

from collections import Counter
from collections.abc import Sequence

from trainer.config.schema import Config
from trainer.config.sizes import size_text
from trainer.data.build import example_data
from trainer.errors import UserError
from trainer.models.build import build_model
from trainer.models.freeze import freeze
from trainer.models.model import Model
from trainer.optim.build import check_groups
from trainer.pipeline.recomputation import Recompute
from trainer.plan.costs import notes
from trainer.plan.crossing import crossing_lines
from trainer.plan.hardware import Hardware, predict_step
from trainer.plan.plan import Plan, model_costs
from trainer.plan.search import Candidate, Misfit, Overrides, search, settle
from trainer.plan.table import align, stages_table
from trainer.schedule.draw import draw_text
from trainer.schedule.machine import Link
from trainer.schedule.resolve import resolve

_SHOWN = {"layout.stages", "schedule"}  # whoever gives both wants to see that one layout
_REASONS = 12  # shown


def report(config: Config, given: Sequence[str]) -> str:
    """Return the layouts of a configuration, or one of them whole.

    Args:
        config: The configuration.
        given: The overrides of the command line, as they were written.

    Raises:
        UserError: No layout fits, or the one that was asked for is none.
    """
    data = example_data(config.data, config.plan.vocabulary)
    model = freeze(build_model(config.model, data, config.loss), config.train.freeze)
    check_groups(config.optimizer.groups, model)
    costs = model_costs(config, model, data)
    hardware = _hardware(config)
    fixed = frozenset(argument.lstrip("+").partition("=")[0] for argument in given)
    fits, misfits = search(config, model, costs, fixed=fixed, hardware=hardware)
    fits = _settled(fits, hardware)
    workers = config.plan.ranks * config.layout.devices_per_rank
    if not fits:
        Plan(config, model, costs, config.plan.ranks, resolve(config.schedule))  # raises what a run would
        raise UserError(f"no layout fits; these {_refused(fits, misfits, workers)}")
    noted = "\n".join(f"note: {note}" for note in (*model.notes, *notes(costs)))
    parts = [_title(config, fits[0], hardware), noted, _table(fits, config.plan.rows)]
    if fixed >= _SHOWN:
        parts.append(_whole(fits[0], model, hardware))
    parts.append(_refused(fits, misfits, workers))
    parts.append(f"the first of them:\n  {_command_line(config, given, fits[0])}")
    return "\n\n".join(filter(None, parts))


def _settled(fits: list[Candidate], hardware: Hardware) -> list[Candidate]:
    """Return the candidates, the first of them with the very schedule that a run would have."""
    while fits:
        try:
            settled = settle(fits[0], hardware)
        except UserError:  # with that schedule it does not fit after all
            fits = fits[1:]
            continue
        settled.plan.validate()
        return [settled, *fits[1:]]
    return fits


def _hardware(config: Config) -> Hardware:
    assumed = config.plan
    return Hardware(
        assumed.flops,
        inside=Link(assumed.latency, assumed.bandwidth),
        between=Link(assumed.latency, assumed.network),
        ranks_per_node=assumed.ranks_per_node,
    )


def _title(config: Config, first: Candidate, hardware: Hardware) -> str:
    costs, sizes = first.plan.partition.costs, first.plan.sizes
    memory = f" of {config.plan.memory}" if config.plan.memory is not None else ""
    return (
        f"{config.model.name}: {sum(cost.parameters for cost in costs):,} parameters in {len(costs)} layers, "
        f"on {config.plan.ranks} ranks{memory}\n"
        f"a step: {config.batch.global_size} samples in {len(sizes)} micro-batches, {config.precision}, "
        f"optimizer {config.optimizer.name}\n"
        f"times assume {hardware.flops / 1e12:g} TFLOP/s per rank, {hardware.inside.bandwidth / 1e9:g} GB/s "
        f"within a node{_between(hardware)} (plan.flops, plan.bandwidth, plan.network)"
    )


def _between(hardware: Hardware) -> str:
    if hardware.ranks_per_node is None:
        return ""
    return f" of {hardware.ranks_per_node} ranks and {hardware.between.bandwidth / 1e9:g} GB/s between nodes"


def _table(fits: Sequence[Candidate], most: int) -> str:
    rows = [["replicas x stages", "schedule", "recomputed", "sharded", "bytes a rank", "bubble", "step"]]
    shown = fits[:most] if most else fits
    for each in shown:
        layout = each.plan.layout
        rows.append(
            [
                f"{layout.replicas} x {layout.workers}",
                str(each.overrides["schedule"]) if layout.workers > 1 else "-",
                _recomputed(each.plan),
                "yes" if each.overrides["optimizer.sharded"] else "no",
                size_text(each.bytes),
                f"{each.step.bubble:.1%}",
                _seconds(each.step.seconds),
            ]
        )
    more = f"\n  and {len(fits) - len(shown)} more: plan.rows=0 shows all" if len(shown) < len(fits) else ""
    found = f"{len(fits)} layouts fit, the fastest first" if len(fits) > 1 else "one layout fits"
    return f"{found}:\n{align(rows, text_columns=4)}{more}"


def _recomputed(plan: Plan) -> str:
    modes = Counter(mode for mode in plan.partition.recompute if mode is not Recompute.NONE)
    if not modes:
        return "nothing"
    layers = len(plan.partition.recompute)
    return ", ".join(
        mode.value if number == layers else f"{mode.value} in {number} of {layers}"
        for mode, number in modes.items()
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _whole(candidate: Candidate, model: Model, hardware: Hardware) -> str:
    """Return one layout: the table of its stages, and its schedule."""
    plan, schedule = candidate.plan, candidate.plan.schedule(0)
    memory = plan.memory
    lines = [
        f"  rank {rank}: {size_text(memory.fixed[rank])} for weights, gradients, optimizer and messages, "
        f"{size_text(memory.activations[rank])} for activations"
        for rank in range(min(len(schedule.workers), _REASONS))
    ]
    return "\n".join(
        [
            stages_table(plan.layout, plan.partition, schedule, memory),
            *crossing_lines(model, plan.partition, plan.sizes[0]),
            "",
            *lines,
            "",
            draw_text(schedule, predict_step(plan, hardware)),
        ]
    )


def _refused(fits: Sequence[Candidate], misfits: Sequence[Misfit], workers: int) -> str:
    """Return a line for every layout that does not fit however it recomputes: what it needs, or why.

    Args:
        fits: The layouts that fit.
        misfits: Those that do not.
        workers: Of the whole world.
    """
    fitting = {_layout(each.overrides) for each in fits}
    lines: dict[tuple[int, str], str] = {}
    for layout in dict.fromkeys(_layout(each.overrides) for each in misfits):
        if layout not in fitting:
            ways = [each for each in misfits if _layout(each.overrides) == layout]
            sizes = [each.bytes for each in ways if each.bytes is not None]
            lines[layout] = f"needs {size_text(min(sizes))} a rank" if sizes else ways[0].reason
    text = [
        f"  {workers // stages} x {stages}, {schedule}: {line}" for (stages, schedule), line in lines.items()
    ]
    if len(text) > _REASONS:
        text[_REASONS:] = [f"  and {len(text) - _REASONS} more"]
    return "\n".join(["do not fit, whatever they recompute:", *text]) if text else ""


def _layout(overrides: Overrides) -> tuple[int, str]:
    return overrides["layout.stages"], overrides["schedule"]


def _command_line(config: Config, given: Sequence[str], best: Candidate) -> str:
    """Return what trains with the first layout: what the user wrote, and what the plan adds."""
    kept = [argument for argument in given if not argument.lstrip("+").startswith("plan.")]
    keys = {argument.lstrip("+").partition("=")[0] for argument in kept}
    usual = {"optimizer.sharded": False, "memory.limit": None, "memory.recompute": "none"}
    added = [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in best.overrides.items()
        if key not in keys and (key not in usual or usual[key] != value)
    ]
    return " ".join(["horovodrun", "-np", str(config.plan.ranks), "python -m trainer", *kept, *added])

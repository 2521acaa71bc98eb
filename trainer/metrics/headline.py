"""A run's summary when it starts: one line and a table."""

from trainer.distributed.environment import why_threads
from trainer.plan.crossing import crossing_lines
from trainer.plan.table import stages_table
from trainer.run import Run


def layout_table(run: Run) -> str:
    """Return the headline, and a table of the stages."""
    plan = run.plan
    table = stages_table(plan.layout, plan.partition, run.schedule, plan.memory)
    crossing = crossing_lines(run.model, plan.partition, run.config.batch.micro_size)
    return "\n".join([headline(run), table, *crossing])


def headline(run: Run) -> str:
    """Return one line with the model, layout, schedule, step and devices."""
    config, layout, sizes = run.config, run.plan.layout, run.plan.sizes
    devices = {str(device) for device in run.devices}
    on_each = layout.stages // layout.ranks_per_group
    each = f", {on_each} per rank" if on_each > 1 and layout.ranks_per_group > 1 else ""
    return (
        f"{config.model.name}: {layout.world} rank{_s(layout.world)} = "
        f"{layout.replicas} replica{_s(layout.replicas)} x {layout.stages} stage{_s(layout.stages)}{each}, "
        f"schedule {config.schedule}; a step: {config.batch.global_size} samples in {len(sizes)} "
        f"micro-batch{'es' if len(sizes) != 1 else ''}, {_threads(run)}, "
        f"{', '.join(sorted(devices))}{_precision(config.precision)}"
    )


def _threads(run: Run) -> str:
    reason = why_threads(run.config.threads, run.world.local_size, run.threads)
    return f"{run.threads} thread{_s(run.threads)} per rank{f' ({reason})' if reason else ''}"


def _precision(precision: str) -> str:
    return "" if precision == "fp32" else f", {precision}"


def _s(number: int) -> str:
    return "" if number == 1 else "s"

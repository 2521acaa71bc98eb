"""The table at the start of a run: who holds what."""

from collections import Counter
from collections.abc import Sequence

from trainer.cut import Cut
from trainer.layout import Layout
from trainer.pipeline.recomputation import Recompute
from trainer.run import Run
from trainer.schedule.actions import Kind, Schedule
from trainer.sizes import size_text


def layout_table(run: Run) -> str:
    """Return the headline, and a table of the stages."""
    return f"{headline(run)}\n{stages_table(run.plan.layout, run.plan.partition, run.schedule)}"


def stages_table(layout: Layout, cut: Cut, schedule: Schedule) -> str:
    """Return a table of the stages: their ranks, layers, parameters, bytes and share of the work.

    If the schedule splits backwards, also the share of the trained parameters whose gradients it puts off,
    and a line with the layers of split stages that put off nothing. If layers compute again, how many do.
    """
    total = sum(cost.cost for cost in cut.costs)
    rows = [["stage", "ranks", "layers", "parameters", "bytes", "work"]]
    for stage, layers in enumerate(cut.stages):
        costs = [cut.costs[layer] for layer in layers]
        ranks = [layout.rank_of(stage, replica) for replica in range(layout.replicas)]
        names = costs[0].name if len(costs) == 1 else f"{costs[0].name} .. {costs[-1].name} ({len(costs)})"
        rows.append(
            [
                str(stage),
                _ranks(ranks),
                names,
                f"{sum(cost.parameters for cost in costs):,}",
                size_text(sum(cost.parameter_bytes for cost in costs)),
                f"{sum(cost.cost for cost in costs) / total:.0%}",
            ]
        )
    split = {a.stage for worker in schedule.workers for a in worker if a.kind is Kind.WEIGHT_GRADIENT}
    again = Counter(mode.value for mode in cut.recompute if mode is not Recompute.NONE)
    notes = [
        f"  computes again: {number} of {len(cut.costs)} layers, {mode}" for mode, number in again.items()
    ]
    if not split:
        return "\n".join([_align(rows), *notes])
    column = ["put off"]
    for stage, layers in enumerate(cut.stages):
        costs = [cut.costs[layer] for layer in layers]
        share = sum(cost.put_off for cost in costs) / max(1, sum(cost.trained for cost in costs))
        column.append(f"{share:.1%}" if share and stage in split else "none")
    whole = [
        cut.costs[layer].name
        for stage in sorted(split)
        for layer in cut.stages[stage]
        if cut.costs[layer].trained and not cut.costs[layer].put_off
    ]
    if whole:
        notes.insert(0, f"  whole backwards: {', '.join(whole)}")
    return "\n".join([_align([[*row, cell] for row, cell in zip(rows, column, strict=True)]), *notes])


def headline(run: Run) -> str:
    """Return a line: the model, the layout, the step, the devices."""
    config, layout, sizes = run.config, run.plan.layout, run.plan.sizes
    devices = {str(device) for device in run.devices}
    on_each = layout.stages // layout.ranks_per_group
    each = f", {on_each} a rank" if on_each > 1 and layout.ranks_per_group > 1 else ""
    return (
        f"{config.model.name}: {layout.world} rank{_s(layout.world)} = "
        f"{layout.replicas} replica{_s(layout.replicas)} x {layout.stages} stage{_s(layout.stages)}{each}, "
        f"schedule {config.schedule}; a step: {config.batch.global_size} samples in {len(sizes)} "
        f"micro-batch{'es' if len(sizes) != 1 else ''}, {run.threads} thread{_s(run.threads)} a rank, "
        f"{', '.join(sorted(devices))}{_precision(config.precision)}"
    )


def _precision(precision: str) -> str:
    return "" if precision == "fp32" else f", {precision}"


def _s(number: int) -> str:
    return "" if number == 1 else "s"


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) <= 4:  # noqa: PLR2004
        return " ".join(map(str, ranks))
    return f"{ranks[0]} {ranks[1]} .. {ranks[-1]}"


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text_columns = 3  # the others are numbers, and stand on the right
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)

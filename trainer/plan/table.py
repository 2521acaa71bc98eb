"""Tables of a plan: who holds what, in how much memory."""

from collections import Counter
from collections.abc import Iterator, Sequence

from trainer.config.sizes import size_text
from trainer.distributed.layout import Layout
from trainer.pipeline.recomputation import Recompute
from trainer.plan.memory import Memory
from trainer.plan.stages import Partition
from trainer.schedule.actions import Kind, Schedule

_TEXT_COLUMNS = 3  # the others are numbers, and stand on the right


def stages_table(layout: Layout, partition: Partition, schedule: Schedule, memory: Memory) -> str:
    """Return a table of the stages: their ranks, layers, parameters, bytes and share of the work.

    The memory of a rank, as predicted, stands with its first stage. If the schedule splits backwards, a
    column has the share of the trained parameters whose gradients are deferred, and a line beneath the table
    the layers of split stages that defer nothing. Another line has the layers that recompute.

    Args:
        layout: Who holds what.
        partition: The layers of each stage.
        schedule: Of one replica, by rank.
        memory: Of the same ranks.
    """
    total = sum(cost.cost for cost in partition.costs)
    rows = [["stage", "ranks", "layers", "parameters", "bytes", "work", "memory"]]
    shown: set[int] = set()
    for stage, layers in enumerate(partition.stages):
        costs = [partition.costs[layer] for layer in layers]
        rank = schedule.placement[stage]
        names = costs[0].name if len(costs) == 1 else f"{costs[0].name} .. {costs[-1].name} ({len(costs)})"
        rows.append(
            [
                str(stage),
                _ranks([layout.rank_of(stage, replica) for replica in range(layout.replicas)]),
                names,
                f"{sum(cost.parameters for cost in costs):,}",
                size_text(sum(cost.parameter_bytes for cost in costs)),
                f"{sum(cost.cost for cost in costs) / total:.0%}",
                "" if rank in shown else size_text(memory.total(rank)),
            ]
        )
        shown.add(rank)
    split = {a.stage for worker in schedule.workers for a in worker if a.kind is Kind.BACKWARD_WEIGHT}
    notes = [*_recomputed(partition)]
    if not split:
        return "\n".join([align(rows), *notes])
    column = [
        "deferred",
        *(_deferred(partition, stage) if stage in split else "none" for stage in range(len(rows) - 1)),
    ]
    whole = [
        partition.costs[layer].name
        for stage in sorted(split)
        for layer in partition.stages[stage]
        if partition.costs[layer].trained and not partition.costs[layer].deferred
    ]
    if whole:
        notes.insert(0, f"  not split: {', '.join(whole)}")
    return "\n".join([align([[*row, cell] for row, cell in zip(rows, column, strict=True)]), *notes])


def _recomputed(partition: Partition) -> Iterator[str]:
    """Yield a line for every way in which layers recompute."""
    modes = Counter(mode.value for mode in partition.recompute if mode is not Recompute.NONE)
    for mode, number in modes.items():
        yield f"  recomputed: {number} of {len(partition.costs)} layers ({mode})"


def _deferred(partition: Partition, stage: int) -> str:
    """Return the share of a stage's trained parameters whose gradients a split backward defers."""
    costs = [partition.costs[layer] for layer in partition.stages[stage]]
    share = sum(cost.deferred for cost in costs) / max(1, sum(cost.trained for cost in costs))
    return f"{share:.1%}" if share else "none"


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) <= 4:  # noqa: PLR2004
        return " ".join(map(str, ranks))
    return f"{ranks[0]} {ranks[1]} .. {ranks[-1]}"


def align(rows: Sequence[Sequence[str]], text_columns: int = _TEXT_COLUMNS) -> str:
    """Return rows of cells in columns, indented by two spaces."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)

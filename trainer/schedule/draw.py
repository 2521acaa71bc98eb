"""Draws a schedule as text."""

from trainer.schedule.actions import Kind, Schedule
from trainer.schedule.timeline import Timeline

IDLE = "."
_LABELS = {
    Kind.FORWARD: "{}",
    Kind.BACKWARD: "({})",
    Kind.BACKWARD_INPUT: "({})",
    Kind.BACKWARD_WEIGHT: "{{{}}}",
}


def draw_text(schedule: Schedule, timeline: Timeline, width: int = 160) -> str:
    """Return a row for every worker: forwards as `3`, backwards as `(3)`, idle time as dots.

    The first part of a split backward is drawn like a whole one, its weight gradients as `{3}`.

    1F1B with three stages and four micro-batches, where a backward takes twice as long as a forward:

        0 |0 1 2 ........(0) 3 (1) ..(2) ..(3) |
        1 |..0 1 ....(0) 2 (1) 3 (2) ..(3) ....|
        2 |....0 (0) 1 (1) 2 (2) 3 (3) ........|

    Args:
        schedule: What workers do.
        timeline: When they do it.
        width: The maximum length of a row, in characters; labels that do not fit are cut.
    """
    cells = [
        (worker, start, end, _LABELS[action.kind].format(action.micro_batch))
        for worker, actions in enumerate(schedule.workers)
        for action, start, end in zip(actions, timeline.starts[worker], timeline.ends[worker], strict=True)
        if action.kind in _LABELS and end > start
    ]
    name = len(str(len(schedule.workers) - 1))
    room = max(width - name - 3, 1)
    # Characters for a unit of time: enough for every label and a space after it, if there is room.
    scale = max(((len(label) + 1) / (end - start) for _, start, end, label in cells), default=0.0)
    scale = min(scale, room / timeline.makespan) if cells else 0.0
    columns = round(timeline.makespan * scale)
    rows = [[IDLE] * columns for _ in schedule.workers]
    for worker, start, end, label in cells:
        first, last = round(start * scale), round(end * scale)
        rows[worker][first:last] = label[: last - first].ljust(last - first)
    return "\n".join(f"{worker:>{name}} |{''.join(row)}|" for worker, row in enumerate(rows))

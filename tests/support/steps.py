"""Steps without a run: what ranks would have observed, according to the simulator."""

from tests.support.schedules import training_schedule
from trainer.metrics.timeline import StepTimeline
from trainer.schedule.simulate import simulate
from trainer.schedule.timeline import ActionTimes, AllReduce, RankTimeline
from trainer.step import StepResult, StepSummary

FORWARD, BACKWARD, MESSAGE = 0.02, 0.04, 0.001  # seconds
STAGES, MICRO_BATCHES = 3, 4
ALL_REDUCES = (AllReduce("block.1", 1024, 0.30, 0.33), AllReduce("block.0", 1024, 0.32, 0.34))

SUMMARY = StepSummary(
    loss=1.25,
    grad_norm=0.5,
    count=1000,
    waited=(0.1, 0.3),
    cpu_seconds=(0.5, 0.5),
    peak_memory=(1, 1),
)
RESULT = StepResult(step=1, summary=SUMMARY, lr=1e-3, seconds=0.5)


def step(stages: int = STAGES, micro_batches: int = MICRO_BATCHES) -> StepTimeline:
    """Return a step that was slower than predicted, because of its messages."""
    measured, predicted = (_ranks(stages, micro_batches, message) for message in (MESSAGE, 0.0))
    seconds, predicted_seconds = (max(rank.times[-1].end for rank in each) for each in (measured, predicted))
    return StepTimeline("gpt, 3 stages", 17, seconds, predicted_seconds, measured, predicted, 2e-6)


def _ranks(stages: int, micro_batches: int, message: float) -> tuple[RankTimeline, ...]:
    schedule = training_schedule("1f1b", stages, micro_batches)
    timeline = simulate(schedule, [FORWARD] * stages, [BACKWARD] * stages, message)
    ranks = []
    for rank, actions in enumerate(schedule.workers):
        rows = zip(timeline.starts[rank], timeline.ends[rank], timeline.busy[rank], strict=True)
        times = tuple(ActionTimes(start, end - busy, end) for start, end, busy in rows)
        ranks.append(RankTimeline(actions, times, ALL_REDUCES if rank == 0 and message else ()))
    return tuple(ranks)

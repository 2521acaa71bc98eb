"""Predicts a run's step from observed steps, by simulating the schedule that the run executes.

Every rank keeps its last steps. For a prediction the ranks agree on a step of median duration and exchange
their observations of it within their group. From these each rank derives the same `Machine` (see
`trainer.schedule.calibrate`), and simulates its group's schedule on it.
"""

import statistics
from collections import deque
from pathlib import Path

from trainer.metrics.best_effort import best_effort
from trainer.metrics.clock import clock_offset
from trainer.metrics.headline import headline
from trainer.metrics.observer import RunObserver
from trainer.metrics.timeline import StepTimeline
from trainer.pipeline.timings import StepTimings
from trainer.run import Run
from trainer.schedule.calibrate import RankObservation, calibrate, reduce_points, stage_buckets, work_times
from trainer.schedule.machine import Machine
from trainer.schedule.simulate import simulate_on
from trainer.schedule.timeline import RankTimeline, Timeline
from trainer.step import StepResult

_KEPT = 20  # steps
_FIRST = 5  # number of steps before the first forecast; the earlier ones warm up


class Forecast(RunObserver):
    """Keeps a rank's last steps, and predicts from those of all ranks. All ranks must call each method.

    Args:
        run: The run.
        path: The file for a typical step, measured and predicted; written at the end.

    Attributes:
        timeline: The latest prediction of this replica's step; at first from the costs of the layers.
    """

    def __init__(self, run: Run, path: Path) -> None:
        self._run = run
        self._path = path
        self._kept: deque[tuple[int, StepTimings]] = deque(maxlen=_KEPT)
        self._steps = 0
        self._due = _FIRST
        self.timeline: Timeline = run.plan.prediction(run.replica)

    def step(self, result: StepResult) -> None:
        """Keep the run's latest step; update the prediction whenever the number of steps has doubled."""
        if self._steps:  # the first step allocates and connects
            self._kept.append((result.step, self._run.engine.timings))
        self._steps += 1
        if self._steps == self._due:
            self._due *= 2
            self.timeline = self._simulate(self._machine(self._observe(self._typical())))

    def end(self) -> None:
        """Write the file."""
        timeline = self.step_timeline(headline(self._run))
        if timeline is not None and self._run.world.rank == 0:
            with best_effort(self._path):
                timeline.save(self._path)

    def step_timeline(self, title: str) -> StepTimeline | None:
        """Return a typical step of this replica, measured and predicted; None after fewer than two steps."""
        if not self._kept:
            return None
        typical = self._typical()
        observations = self._observe(typical)
        machine = self._machine(observations)
        predicted = self._simulate(machine)
        step, observed = self._kept[typical]
        return StepTimeline(
            title=title,
            step=step,
            seconds=observed.seconds,
            predicted_seconds=predicted.seconds,
            measured=tuple(rank.step for rank in observations),
            predicted=predicted.by_rank(self._run.schedule, machine.begin),
            clock_error=max(rank.clock_error for rank in observations),
        )

    def _typical(self) -> int:
        """Return the index of the kept step of median duration on rank 0; all ranks keep the same steps."""
        seconds = [observed.seconds for _, observed in self._kept]
        median = seconds.index(statistics.median_low(seconds))
        chosen: int = self._run.world.all_gather_objects(median)[0]
        return chosen

    def _observe(self, typical: int) -> list[RankObservation]:
        """Return the observations of each rank of the group."""
        run, steps = self._run, [observed for _, observed in self._kept]
        group = run.groups.model_parallel
        offset = clock_offset(group)
        begin = group.all_gather_objects(steps[typical].begin)[0]
        step = steps[typical].timeline.on(lambda moment: moment + offset.seconds - begin)
        stage_of = {layer.name: stage for stage in run.stages for layer in run.stages[stage].layers}
        observation = RankObservation(
            work=work_times(each.timeline for each in steps),
            begin=statistics.median(each.times[0].start - each.begin for each in steps),
            end=statistics.median(each.end - each.times[-1].end for each in steps),
            step=step,
            clock_error=offset.error,
            sizes=run.engine.remote.sizes,
            reduced=self._reduced(step),
            buckets=stage_buckets(step, stage_of),
        )
        observations: list[RankObservation] = group.all_gather_objects(observation)
        return observations

    def _reduced(self, step: RankTimeline) -> list[tuple[int, float]]:
        """Return bytes and seconds of the step's all-reduces, as the last replica to join measured them.

        That one waited for no other, so its time is the shortest.
        """
        own = {reduce.layer: reduce.end - reduce.start for reduce in step.all_reduces}
        all_replicas = self._run.groups.data_parallel.all_gather_objects(own)
        return reduce_points(step, [min(replica[layer] for replica in all_replicas) for layer in own])

    def _machine(self, observations: list[RankObservation]) -> Machine:
        run = self._run
        layout, size = run.plan.layout, run.world.local_size
        return calibrate(
            observations,
            layout.stages,
            replicas=layout.replicas,
            first=layout.ranks_of_group(run.replica).start,
            ranks_per_node=size if size < run.world.size else None,
        )

    def _simulate(self, machine: Machine) -> Timeline:
        return simulate_on(machine, self._run.plan.schedules)[self._run.replica]

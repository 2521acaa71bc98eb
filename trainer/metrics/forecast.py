"""Predicts a run's step from the steps that it has observed, on the schedule that it runs.

Every rank keeps its last steps. For a prediction the ranks agree on a step that took a usual time, tell
their group what they saw of it, arrive at the same `Machine` (see `trainer.schedule.calibrate`), and
simulate their group's schedule on it.
"""

import statistics
from collections import deque
from pathlib import Path

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
_FIRST = 5  # the step behind which the first forecast is made; the steps before it warm up


class Forecast(RunObserver):
    """A rank's last steps, and what follows from those of all ranks, which call everything together.

    Args:
        run: The run.
        path: The file for a usual step, measured and predicted; written at the end.

    Attributes:
        timeline: The step of this replica as predicted last: at first from the costs of the layers.
    """

    def __init__(self, run: Run, path: Path) -> None:
        self._run = run
        self._path = path
        self._kept: deque[tuple[int, StepTimings]] = deque(maxlen=_KEPT)
        self._steps = 0
        self._due = _FIRST
        self.timeline: Timeline = run.plan.prediction(run.replica)

    def step(self, result: StepResult) -> None:
        """Keep the step that the run has just done; predict again whenever their number has doubled."""
        if self._steps:  # the first one allocates and connects
            self._kept.append((result.step, self._run.engine.timings))
        self._steps += 1
        if self._steps == self._due:
            self._due *= 2
            self.timeline = self._simulate(self._machine(self._see(self._usual())))

    def end(self) -> None:
        """Write the file."""
        timeline = self.step_timeline(headline(self._run))
        if timeline is not None and self._run.world.rank == 0:
            timeline.save(self._path)

    def step_timeline(self, title: str) -> StepTimeline | None:
        """Return a usual step of this replica, measured and predicted; None where too few were done."""
        if not self._kept:
            return None
        usual = self._usual()
        seen = self._see(usual)
        machine = self._machine(seen)
        predicted = self._simulate(machine)
        step, observed = self._kept[usual]
        return StepTimeline(
            title=title,
            step=step,
            seconds=observed.seconds,
            predicted_seconds=predicted.seconds,
            measured=tuple(rank.step for rank in seen),
            predicted=predicted.by_rank(self._run.schedule, machine.begin),
            clock_error=max(rank.clock_error for rank in seen),
        )

    def _usual(self) -> int:
        """Return which of the kept steps took a median time on rank 0; every rank has kept the same ones."""
        seconds = [observed.seconds for _, observed in self._kept]
        usual = seconds.index(statistics.median_low(seconds))
        chosen: int = self._run.world.all_gather_objects(usual)[0]
        return chosen

    def _see(self, usual: int) -> list[RankObservation]:
        """Return what each rank of the group has seen."""
        run, steps = self._run, [observed for _, observed in self._kept]
        group = run.groups.model_parallel
        offset = clock_offset(group)
        begin = group.all_gather_objects(steps[usual].begin)[0]
        step = steps[usual].timeline.on(lambda moment: moment + offset.seconds - begin)
        stage_of = {layer.name: stage for stage in run.stages for layer in run.stages[stage].layers}
        seen = RankObservation(
            work=work_times(each.timeline for each in steps),
            begin=statistics.median(each.times[0].start - each.begin for each in steps),
            end=statistics.median(each.end - each.times[-1].end for each in steps),
            step=step,
            clock_error=offset.error,
            sizes=run.engine.remote.sizes,
            reduced=self._reduced(step),
            buckets=stage_buckets(step, stage_of),
        )
        everyone: list[RankObservation] = group.all_gather_objects(seen)
        return everyone

    def _reduced(self, step: RankTimeline) -> list[tuple[int, float]]:
        """Return bytes and seconds of the step's all-reduces; who joined last waited for nobody."""
        mine = {reduce.layer: reduce.end - reduce.start for reduce in step.all_reduces}
        everyone = self._run.groups.data_parallel.all_gather_objects(mine)
        return reduce_points(step, [min(theirs[layer] for theirs in everyone) for layer in mine])

    def _machine(self, seen: list[RankObservation]) -> Machine:
        run = self._run
        layout, size = run.plan.layout, run.world.local_size
        return calibrate(
            seen,
            layout.stages,
            replicas=layout.replicas,
            first=layout.ranks_of_group(run.replica).start,
            ranks_per_node=size if size < run.world.size else None,
        )

    def _simulate(self, machine: Machine) -> Timeline:
        return simulate_on(machine, self._run.plan.schedules)[self._run.replica]

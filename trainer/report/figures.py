"""`python -m trainer.report.figures`: draws the schedules in the docs from the code that runs them."""

import argparse
from pathlib import Path

from trainer.report.gantt import schedules_gantt
from trainer.report.style import FORMATS, save
from trainer.schedule.actions import Schedule
from trainer.schedule.assemble import training_schedule
from trainer.schedule.resolve import recipes
from trainer.schedule.simulate import simulate
from trainer.schedule.timeline import Timeline

STAGES, MICRO_BATCHES = 4, 8
FORWARD, BACKWARD = 1.0, 2.0  # a backward computes two gradients, each as expensive as the forward


def main() -> None:
    """Draw every schedule, alone and all together; the files are the same every time."""
    parser = argparse.ArgumentParser(prog="python -m trainer.report.figures", description=__doc__)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("docs/figures"), help="default: docs/figures"
    )
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS, help="default: all")
    given = parser.parse_args()
    for file in draw(given.folder, given.format):
        print(file)


def draw(folder: Path, formats: tuple[str, ...] = FORMATS) -> list[Path]:
    """Draw the schedules into a folder; return the files."""
    schedules = [training_schedule(recipe, STAGES, MICRO_BATCHES) for recipe in recipes().values()]
    simulated = [(each, _simulated(each)) for each in schedules]
    step = (
        f"a step of {STAGES} stages and {MICRO_BATCHES} micro-batches, a backward twice as long as a forward"
    )
    files = save(schedules_gantt(simulated, f"Schedules: {step}"), folder / "schedules", formats)
    for schedule, timeline in simulated:
        figure = schedules_gantt([(schedule, timeline)], f"{schedule.name}: {step}")
        files += save(figure, folder / f"schedule-{schedule.name}", formats)
    return files


def _simulated(schedule: Schedule) -> Timeline:
    """Return the times of a schedule; if workers hold n stages each, a stage takes 1/n of the time."""
    stages = schedule.stages
    part = STAGES / stages
    return simulate(schedule, [FORWARD * part] * stages, [BACKWARD * part] * stages)


if __name__ == "__main__":
    main()
